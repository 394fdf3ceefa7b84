"""Signing with keys that exist only in this process's locked memory."""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from hsmcore.base.keyring import KeyVersion, canonical
from hsmcore.base.log import get_logger
from hsmcore.errors import AlgorithmUnsupported, EngineClosed, KeyDeactivated
from hsmcore.members.base import MemberSpec, NonExportable
from hsmcore.members.control import ControlError, Deactivation, KeyRecord
from hsmcore.members.control.curves import Algorithm
from hsmcore.members.control.faults import no_such_key
from hsmcore.members.control.locked import LockedKey
from hsmcore.members.offload.engine import OffloadEngine
from hsmcore.providers.ephemeral.settings import EphemeralSettings

if TYPE_CHECKING:
    from hsmcore.audit import AuditLog

ALGORITHM: Algorithm = "ed25519"
LABEL = "ephemeral"
STOP_SECONDS = 5.0


@dataclass(slots=True)
class _Held:
    key: LockedKey
    record: KeyRecord
    index: int | None = None  # in the engine's table


class EphemeralKeys:
    """The keys of one member: the engine's back end and the control plane in one. No method waits."""

    def __init__(self, member: str) -> None:
        self._member = member
        self._held: dict[str, _Held] = {}
        self._by_index: dict[int, LockedKey] = {}
        self._closed = False

    def sign_now(self, key: int, message: bytes) -> bytes:
        return self._by_index[key].sign(message)

    def enter(self, key_id: str, engine: OffloadEngine) -> KeyVersion:
        """Add a key to the engine. Idempotent. Raises KeyNotFound, KeyDeactivated."""
        held = self._find(key_id)
        record = held.record
        if not held.key.alive:
            raise KeyDeactivated(f"key {record.id} was wiped", member=self._member)
        if held.index is None:
            held.index = engine.add_key(ALGORITHM, held.key.public_key)
            self._by_index[held.index] = held.key
        return KeyVersion(record.id, record.label, ALGORITHM, held.key.public_key, held.index)

    def wipe(self) -> None:
        """Overwrite every key, and refuse to make more. Idempotent."""
        self._closed = True
        for held in self._held.values():
            held.key.wipe()

    async def list_keys(self) -> list[KeyRecord]:
        """Return every key, wiped ones included, by label, then id."""
        records = (replace(held.record, can_sign=held.key.alive) for held in self._held.values())
        return sorted(records, key=lambda record: (record.label, record.id))

    async def generate_key(
        self, algorithm: Algorithm, label: str, key_id: bytes | None = None, *, extractable: bool = False
    ) -> KeyRecord:
        """Make a key pair. `extractable` is ignored: such a key never leaves this process."""
        del extractable
        if self._closed:
            raise EngineClosed("the ephemeral keys are gone", member=self._member)
        if algorithm != ALGORITHM:
            raise AlgorithmUnsupported(f"an ephemeral key is of algorithm {ALGORITHM}", member=self._member)
        identity = (secrets.token_bytes(16) if key_id is None else key_id).hex()
        if identity in self._held:
            raise ControlError(f"there is a key with the id {identity} already", member=self._member)
        key = LockedKey(self._member)
        record = KeyRecord(identity, label, ALGORITHM, key.public_key, True, True, False)
        self._held[identity] = _Held(key, record)
        return record

    async def deactivate(self, key_id: str) -> Deactivation:
        """Wipe the key, so that nothing can sign with it."""
        held = self._find(key_id)
        held.key.wipe()
        return Deactivation(held.record.id, True)

    async def destroy(self, key_id: str) -> None:
        """Wipe the key and forget it."""
        held = self._find(key_id)
        held.key.wipe()
        del self._held[held.record.id]

    def _find(self, key_id: str) -> _Held:
        held = self._held.get(canonical(key_id))
        if held is None:
            raise no_such_key(key_id)
        return held


class EphemeralMember:
    """Signs with a key that it makes when it starts. Belongs to the event loop that starts it."""

    token = NonExportable(
        "key {} lives in memory only",
        "an ephemeral key cannot be put back from a backup",
        "Keys that must survive belong on an HSM; an ephemeral one is for emergencies.",
    )

    def __init__(self, spec: MemberSpec[EphemeralSettings]) -> None:
        self.name = spec.provider.name
        self.level = spec.level
        self._settings = spec.settings
        self.control = EphemeralKeys(self.name)
        self.engine = OffloadEngine.before(self.control, queue_size=spec.rules.queue_size, **spec.engine_rules())

    def record_in(self, audit: AuditLog) -> None:
        self.engine.record(audit, self.level)

    def require_ready(self) -> None:
        """Do nothing: hsmcore depends on all that is needed."""

    async def start(self) -> KeyVersion:
        """Make the key. Raises OutOfMemory if memory cannot be locked."""
        record = await self.control.generate_key(self._settings.algorithm, LABEL)
        key = self.engine.name_key(self.control.enter(record.id, self.engine))
        self.engine.start(asyncio.get_running_loop())
        log = get_logger()
        if self.level != "emergency":
            log.warning(
                "EPHEMERAL KEY SIGNS: it is lost when this process ends and cannot be backed up; what it has signed "
                "can be verified but never signed for again",
                member=self.name,
                level=self.level,
                key=key.id,
                public_key=key.public_key.hex(),
                path=f"{self._settings.where}.allowEphemeralPrimary",
            )
        log.info("member started", member=self.name, level=self.level, key=key.id, algorithm=key.algorithm)
        return key

    async def load_key(self, key_id: bytes) -> KeyVersion:
        """Find another key by its id. Raises KeyNotFound, KeyDeactivated."""
        return self.engine.name_key(self.control.enter(key_id.hex(), self.engine))

    async def stop(self) -> None:
        """Answer every caller and wipe the keys. Idempotent."""
        try:
            await self.engine.stop(STOP_SECONDS)
        finally:
            self.control.wipe()
