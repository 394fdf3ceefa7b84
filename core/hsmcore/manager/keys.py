"""What a key manager does with its keys beside signing: choose, make, deactivate, back up, rotate."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any

from hsmcore.audit import AuditLog
from hsmcore.config import KeyManagerConfig
from hsmcore.errors import BadArgument, HsmError, KeyMismatch, KeyNotFound, MemberDown
from hsmcore.events import Events
from hsmcore.keyring import KeyRing, KeyVersion, successor_label
from hsmcore.members.base import SIGN_SECONDS
from hsmcore.rotation.context import ManagerPort
from hsmcore.state import StoredKey

if TYPE_CHECKING:
    from hsmcore.failover.service import FailoverService
    from hsmcore.handover import Handover
    from hsmcore.manager.background import BackgroundServices
    from hsmcore.members import Member


class KeyOperations:
    """A part of KeyManager."""

    audit: AuditLog
    _rules: KeyManagerConfig
    _ring: KeyRing
    _changing_keys: asyncio.Lock
    _events: Events
    _member: Member | None
    _failover: FailoverService | None
    _background: BackgroundServices | None
    _handover: Handover | None = None

    if TYPE_CHECKING:

        def _opened(self, operation: str | None = None) -> Member: ...
        def _current(self) -> KeyVersion: ...
        def _use(self, member: Member, key: KeyVersion) -> None: ...

    async def set_current_key_id(self, key_id: str) -> None:
        """Sign with another key from now on; it may be one of the ring or any other on the token. Requests that are
        queued already keep their key. The cache is wiped. Raises KeyNotFound, KeyDeactivated."""
        member = self._opened("setCurrentKeyId")
        async with self._changing_keys:
            if (key_id not in self._ring or self._ring.get(key_id).index < 0) and _bytes_of(key_id):
                await self._load(key_id)
            previous = self._current().id
            current = self._ring.get(key_id)
            if current.state == "active" and self._background is not None and self._background.rotation is not None:
                await self._background.rotation.chosen(current)  # durable before it signs
            current = self._ring.make_current(key_id)
            self._use(member, current)
        self.audit.record("set-current-key", result="ok", key_id=current.id, previous=previous, member=member.name)
        self._events.emit("key-changed", key_id=current.id, previous=previous)

    async def generate_key(self) -> str:
        """Make a new key pair of the current key's algorithm on the token. Returns its id; the current key stays."""
        member = self._opened("generateKey")
        current = self._current()
        rotation = self._rules.key_rotation
        record = await member.control.generate_key(
            current.algorithm,  # type: ignore[arg-type]  # an algorithm of the engine is one of the control plane
            successor_label(current.label, os.urandom(4)),
            extractable=rotation is not None and rotation.backup_enabled,
        )
        version = self._ring.add(await (self._failover or member).load_key(bytes.fromhex(record.id)))
        self.audit.record("generate-key", result="ok", key_id=version.id, member=member.name)
        self._events.emit("key-generated", key_id=version.id, public_key=version.public_key)
        return version.id

    async def deactivate_key(self, key_id: str) -> None:
        """Never sign with this key again; requests queued for it are refused. If it is the current one, signing fails
        with KeyDeactivated until another is made current. Tokens that can are made to refuse it too. Raises
        KeyNotFound."""
        member = self._opened("deactivateKey")
        async with self._changing_keys:
            version = self._ring.get(key_id)
            if self._background is not None and self._background.rotation is not None:
                await self._background.rotation.keys.deactivate(version.public_key)
            enforced = await self._retire(version.id)
        self.audit.record("deactivate-key", result="ok", key_id=version.id, enforced=enforced, member=member.name)
        self._events.emit("key-deactivated", key_id=version.id, enforced=enforced)

    async def export_key_backup(self, key_id: str) -> bytes:
        """The private key wrapped by the HSM; its plain value never leaves it. Raises KeyNotExportable when the key or
        the token does not allow it."""
        member = self._opened("exportKeyBackup")
        try:
            blob = await member.control.export_wrapped(key_id)
        except HsmError as error:
            self.audit.record("backup", result="error", error=error.status, key_id=key_id, member=member.name)
            raise
        self.audit.record("backup", result="ok", key_id=key_id, member=member.name)
        return blob

    def keys(self) -> list[KeyVersion]:
        """The key ring, oldest version first."""
        return list(self._ring)

    # ---- rotation ----

    async def rotate_key(self, reason: str = "") -> str:
        """Rotate now instead of when it is due. Returns the new key's id once it signs; the old one goes on verifying
        for `overlapDays`. Raises what made it fail (the old key signs on), StoreBusy while another rotation is under
        way, BadArgument without `keyRotation.enabled`."""
        self._opened("rotateKey")
        if self._background is None or self._background.rotation is None:
            raise BadArgument("keyRotation is not enabled", hint="Set keyRotation.enabled in the configuration.")
        return await self._background.rotation.rotate(reason)

    def on_rotation(self, handover: Handover) -> None:
        """Have `handover` tell the chain of each new key before it signs (see hsmcore.handover). Before initialize(),
        so that a rotation which was cut off finds it; one that was cut off in its handover waits for it."""
        self._handover = handover
        if self._background is not None and self._background.rotation is not None:
            self._background.rotation.handover = handover

    async def _begin_background(self, key: KeyVersion, stop: Callable[[], Awaitable[None]]) -> None:
        """If it fails, `stop` is called."""
        if self._background is None:
            return
        if self._background.rotation is not None:
            self._background.rotation.handover = self._handover
        port = ManagerPort(
            holders=self._holders,
            signing=self._signing,
            load=self._load,
            sign=self._sign_as,
            retire=self._retire,
            forget=self._forget,
            learn=self._learn,
            switch=self._switch,
            tell=self._tell,
            manager=self,
        )
        try:
            await self._background.begin(port, key, self._events)
        except BaseException:
            await self._end_background()
            self._member = self._failover = None
            await stop()
            raise

    async def _end_background(self) -> None:
        background, self._background = self._background, None
        if background is not None:
            await background.close()

    def _holders(self) -> list[Member]:
        """One at least. Raises MemberDown."""
        if self._failover is not None:
            found = self._failover.holders()
        else:
            found = [self._member] if self._member is not None else []
        if not found:
            raise MemberDown("no member that holds the current key is running")
        return found

    def _signing(self) -> list[KeyVersion]:
        """The current key first, then those of levels with keys of their own."""
        if self._failover is None:
            return [self._current()]
        levels, endpoints = self._failover.levels.levels, self._failover.running()
        others = [
            endpoint.version
            for endpoint in endpoints
            if endpoint.version is not None and levels[endpoint.level].other_keys
        ]
        return [self._failover.router.current or self._failover.version, *others]

    async def _load(self, key_id: str) -> KeyVersion:
        """Find a key by its id on every member that should hold it, and know it from then on."""
        known = self._ring.get(key_id) if key_id in self._ring else None
        if known is not None and known.index >= 0 and known.state == "active" and self._failover is None:
            return known
        version = await (self._failover or self._holders()[0]).load_key(_bytes_of(key_id))
        if known is not None and known.public_key != version.public_key:
            raise KeyMismatch(f"key {key_id} on the token is not the one that the key ring knows")
        if known is None or known.state == "active":
            self._ring.add(version)
        return version

    async def _sign_as(self, version: KeyVersion, message: bytes) -> bytes:
        if self._failover is not None:
            return await self._failover.sign_as(version, message)
        signed = self._holders()[0].engine.submit(message, SIGN_SECONDS, version.index)
        return signed if isinstance(signed, bytes) else await signed

    async def _retire(self, key_id: str) -> bool:
        """Also for a key that this process has never loaded, or that is gone."""
        version = self._ring.deactivate(key_id)
        self._refuse_key(version)
        if self._failover is not None:
            return await self._failover.deactivate(version)
        [member] = self._holders()
        try:
            return (await member.control.deactivate(version.id)).enforced
        except KeyNotFound:
            return True  # what is gone signs nothing

    def _refuse_key(self, version: KeyVersion) -> None:
        """No engine of this process signs with the key any more."""
        if self._failover is not None:
            self._failover.retire(version)
        elif self._member is not None and version.index >= 0:
            self._member.engine.retire_key(version.index)

    def _forget(self, key_id: str) -> None:
        if key_id not in self._ring:
            return
        version = self._ring.get(key_id)
        if self._failover is not None:
            self._failover.forget(version)
        else:
            self._refuse_key(version)
        self._ring.remove(key_id)

    def _learn(self, keys: Sequence[StoredKey]) -> None:
        """Keys of the store's ring that are not loaded here can still verify."""
        active = {key.public_key for key in keys if key.state == "active"}
        for key in keys:
            # A second row for the key that signs says nothing about it.
            if key.activated_ns is None or not key.public_key or (key.state != "active" and key.public_key in active):
                continue
            if key.key_id not in self._ring:
                self._ring.add(KeyVersion(key.key_id, key.label, key.algorithm, key.public_key, -1))
            version = self._ring.get(key.key_id)
            if key.state in ("deactivated", "destroyed") and version.state == "active":
                self._refuse_key(self._ring.deactivate(key.key_id))

    def _switch(self, version: KeyVersion) -> None:
        previous = self._current().id
        if version.id != previous:
            self._use(self._holders()[0], self._ring.make_current(version.id))
            self._events.emit("key-changed", key_id=version.id, previous=previous)

    def _tell(self, event: str, **details: Any) -> None:
        self.audit.note(event, result="error" if event == "rotation-failed" else "ok", **details)
        self._events.emit(event, **details)


def _bytes_of(key_id: str) -> bytes:
    try:
        return bytes.fromhex(key_id)
    except ValueError:
        return b""
