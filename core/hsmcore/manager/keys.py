"""Operations on keys: choose, generate, deactivate, back up; and the operations that a rotation needs."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from hsmcore.audit import AuditLog
from hsmcore.base.events import Events
from hsmcore.base.keyring import KeyRing, KeyVersion, successor_label
from hsmcore.config import Config, KeyManagerConfig
from hsmcore.errors import BadArgument, HsmError, KeyMismatch, MemberDown
from hsmcore.failover.path import SigningPath
from hsmcore.manager.lifecycle import ended
from hsmcore.manager.path import OwnTexts
from hsmcore.manager.rotation.context import ManagerPort
from hsmcore.members import Member
from hsmcore.members.base import TokensTold
from hsmcore.members.tokens import export_key
from hsmcore.state import StoreBusy

if TYPE_CHECKING:
    from hsmcore.manager.key_sets import KeySets
    from hsmcore.manager.publishing import PublicLogs
    from hsmcore.manager.rotation.service import RotationService
    from hsmcore.state import StoredKey

_ALARMING: Final = ("rotation-failed", "store-not-genuine")


class KeyOperations:
    """The key ring of an open key manager and the work on it. Belongs to the event loop.

    `rotation`: the service that owns the stored ring; None if keys are not rotated.
    """

    def __init__(
        self,
        path: SigningPath,
        rotation: RotationService | None,
        rules: KeyManagerConfig,
        audit: AuditLog,
        events: Events,
    ) -> None:
        self.ring = KeyRing()
        self._path, self._rotation, self._rules = path, rotation, rules
        self._audit, self._events = audit, events
        self._changing = asyncio.Lock()
        self._sets: KeySets | None = None
        self.logs: PublicLogs | None = None
        """The public logs of positions; None: there are none."""

    def public_key_of(self, key_id: str | None) -> bytes | None:
        """Return the public key of a version of the ring; None for None. Raises KeyNotFound."""
        return None if key_id is None else self.ring.get(key_id).public_key

    def port(self, manager: object) -> ManagerPort:
        """The operations that a rotation needs. `manager`: the key manager, for handovers."""
        return ManagerPort(
            members=self._path.lasting,
            holders=self._holders,
            signing=self._path.signing,
            load=self._load,
            sign=self._path.sign_as,
            deactivate=self._deactivate,
            forget=self._forget,
            learn=self._learn,
            switch=self._switch,
            tell=self._tell,
            manager=manager,
            introduce=self._introduce,
        )

    async def set_current(self, key_id: str) -> None:
        """As KeyManager.set_current_key_id."""
        member = self._member_for("setCurrentKeyId")
        async with self._changing:
            if (key_id not in self.ring or self.ring.get(key_id).index < 0) and _bytes_of(key_id):
                await self._load(key_id)
            previous = self._path.version.id
            current = self.ring.get(key_id)
            await self._path.endpoints[0].admits([current.public_key])
            if current.state == "active" and self._rotation is not None:
                await self._choose(current, self._rotation)
            current = self.ring.make_current(key_id)
            self._path.use(current)
        self._audit.record("set-current-key", result="ok", key_id=current.id, previous=previous, member=member.name)
        self._events.emit("key-changed", key_id=current.id, previous=previous)

    async def open_sets(self, config: Config, port: ManagerPort, parts: OwnTexts, *, rotates: bool) -> None:
        """Begin to have sets of the keys signed, and to publish positions, if the configuration says so."""
        if config.key_manager.publish is not None:
            from hsmcore.manager.publishing import PublicLogs

            self.logs = await PublicLogs.open(config, port, parts)
        if self._rotation is None:
            return
        from hsmcore.manager.key_sets import KeySets

        self._sets = await KeySets.open(config, self._rotation, port, parts, rotates=rotates)

    async def close(self) -> None:
        """End that. Idempotent."""
        await ended(self.logs)
        await ended(self._sets)

    async def position_proof(self, domain: str, position: int, timeout: float | None) -> bytes:
        """As KeyManager.position_proof."""
        if self.logs is None:
            hint = "Add keyManager.publish; see docs/PUBLIC_LOG.md."
            raise BadArgument("no positions are published", hint=hint)
        left = self._rules.request_timeout_ms / 1e3 if timeout is None else timeout
        return await self.logs.proof(domain, position, left)

    def key_set(self, since: int | None) -> bytes:
        """As KeyManager.key_set."""
        if self._sets is None:
            return b""
        return self._sets.newest if since is None else self._sets.since(since)

    async def _choose(self, version: KeyVersion, rotation: RotationService) -> None:
        """Make a key current in the store: durable before it signs, and no verifier meets a key that it does not
        know."""
        try:
            if not await self._introduce(version.public_key):
                raise StoreBusy("another process has the set of keys signed", hint="Make the key current there.")
            await rotation.chosen(version)
        finally:
            if self._sets is not None:
                self._sets.withdraw(version.public_key)

    async def _introduce(self, public_key: bytes) -> bool:
        return self._sets is None or await self._sets.introduce(public_key)

    async def generate(self) -> str:
        """As KeyManager.generate_key."""
        member = self._member_for("generateKey")
        current = self._path.version
        rotation = self._rules.key_rotation
        record = await member.control.generate_key(
            current.algorithm,  # type: ignore[arg-type]  # an algorithm of the engine is one of the control plane
            successor_label(current.label, os.urandom(4)),
            extractable=rotation is not None and rotation.backup_enabled,
        )
        version = self.ring.add(await self._path.load_key(bytes.fromhex(record.id)))
        self._audit.record("generate-key", result="ok", key_id=version.id, member=member.name)
        self._events.emit("key-generated", key_id=version.id, public_key=version.public_key)
        return version.id

    async def deactivate(self, key_id: str) -> None:
        """As KeyManager.deactivate_key."""
        member = self._member_for("deactivateKey")
        async with self._changing:
            version = self.ring.get(key_id)
            if self._rotation is not None:
                await self._rotation.keys.deactivate(version.public_key)
            enforced = (await self._deactivate(version.id)).enforced
        self._audit.record("deactivate-key", result="ok", key_id=version.id, enforced=enforced, member=member.name)
        self._events.emit("key-deactivated", key_id=version.id, enforced=enforced)

    async def export_backup(self, key_id: str) -> bytes:
        """As KeyManager.export_key_backup."""
        member = self._member_for("exportKeyBackup")
        try:
            blob = await export_key(member, key_id)
        except HsmError as error:
            self._audit.record("backup", result="error", error=error.status, key_id=key_id, member=member.name)
            raise
        self._audit.record("backup", result="ok", key_id=key_id, member=member.name)
        return blob

    async def rotate(self, reason: str) -> str:
        """As KeyManager.rotate_key."""
        self._member_for("rotateKey")
        if self._rotation is None:
            raise BadArgument("keyRotation is not enabled", hint="Set keyRotation.enabled in the configuration.")
        return await self._rotation.rotate(reason)

    def _member_for(self, operation: str) -> Member:
        self._path.check_operation(operation)
        return self._path.member

    def _holders(self, public_key: bytes | None = None) -> list[Member]:
        found = self._path.holders(public_key)
        if not found:
            raise MemberDown("no member that holds the current key is running")
        return found

    async def _load(self, key_id: str) -> KeyVersion:
        """Load a key on every member that should hold it, and add it to the ring."""
        known = self.ring.get(key_id) if key_id in self.ring else None
        version = await self._path.load_key(_bytes_of(key_id))
        if known is not None and known.public_key != version.public_key:
            raise KeyMismatch(f"key {key_id} on the token is not the one that the key ring knows")
        if known is None or known.state == "active":
            self.ring.add(version)
        return version

    async def _deactivate(self, key_id: str) -> TokensTold:
        """The key need not be loaded in this process, and may be destroyed."""
        self._look_at_sets()
        return await self._path.deactivate(self.ring.deactivate(key_id))

    def _forget(self, key_id: str) -> None:
        if key_id in self.ring:
            self._path.forget(self.ring.get(key_id))
            self.ring.remove(key_id)

    def _learn(self, keys: Sequence[StoredKey]) -> None:
        """Add the stored keys, so that keys which are not loaded in this process can verify."""
        active = {key.public_key for key in keys if key.state == "active"}
        for key in keys:
            # Another row with the public key of the active row says nothing about the key.
            if key.activated_ns is None or not key.public_key or (key.state != "active" and key.public_key in active):
                continue
            if key.key_id not in self.ring:
                self.ring.add(KeyVersion(key.key_id, key.label, key.algorithm, key.public_key, -1))
            version = self.ring.get(key.key_id)
            if key.state in ("deactivated", "destroyed") and version.state == "active":
                self._path.retire_key(self.ring.deactivate(key.key_id))

    def _switch(self, version: KeyVersion) -> None:
        previous = self._path.version.id
        if version.id != previous:
            self._holders()  # raises MemberDown: without a holder, the old key stays current
            self._path.use(self.ring.make_current(version.id))
            self._events.emit("key-changed", key_id=version.id, previous=previous)
            self._look_at_sets()

    def _look_at_sets(self) -> None:
        if self._sets is not None:
            self._sets.wake()

    def _tell(self, event: str, **details: Any) -> None:
        self._audit.note(event, result="error" if event in _ALARMING else "ok", **details)
        self._events.emit(event, **details)


def _bytes_of(key_id: str) -> bytes:
    try:
        return bytes.fromhex(key_id)
    except ValueError:
        return b""
