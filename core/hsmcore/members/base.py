"""What a member is to the rest: a token, a cloud key or a key in memory that can sign."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from hsmcore.control.curves import Algorithm
from hsmcore.control.faults import KeyNotExportable
from hsmcore.control.records import Deactivation, KeyRecord
from hsmcore.errors import KeyUnusable
from hsmcore.keyring import KeyVersion

if TYPE_CHECKING:
    from hsmcore.audit import AuditLog


class SigningEngine(Protocol):
    """The way of one signature through a member. Belongs to the event loop; nothing here blocks.

    The native Engine is one; OffloadEngine is another, for what is no PKCS#11 module. `key` is the `index` of a
    KeyVersion. Timeouts are seconds; None: the configured default. Errors are HsmError.
    """

    @property
    def in_flight(self) -> int:
        """Requests that the member works on."""

    @property
    def waiting(self) -> int:
        """Requests that wait for room."""

    def submit(
        self, message: object, timeout: float | None = None, key: int = 0, extra: bytes | None = None
    ) -> bytes | asyncio.Future[bytes]:
        """Sign one message: its signature if the cache holds it and nothing is recorded, else a future of it. `extra`
        goes into its audit record: members of a JSON object, beginning with a comma; b"": there is to be none."""

    def submit_with_receipt(
        self, message: object, timeout: float | None = None, key: int = 0, extra: bytes | None = None
    ) -> asyncio.Future[tuple[bytes, int | None, bool]]:
        """Sign one message: a future of (signature, number of its audit record or None, whether it was cached)."""

    def submit_many(
        self,
        messages: object,
        timeout: float | None = None,
        return_exceptions: bool = False,
        key: int = 0,
        extra: bytes | None = None,
    ) -> asyncio.Future[list[Any]]:
        """Sign a batch: a future of the list of signatures, in order."""

    def abandon(self, future: asyncio.Future[Any]) -> bool | None:
        """Nobody waits for `future` any more. False: nothing was signed for it, and nothing will be; else a signature
        may exist."""

    def retire_key(self, index: int) -> None:
        """Refuse every further request for this key, also those that are queued."""

    def clear_cache(self) -> None:
        """Wipe all cached signatures."""

    def refuse(self) -> None:
        """Take no further requests."""

    def idle(self) -> asyncio.Future[None]:
        """A future that is done when every caller has its answer."""

    def stats(self) -> dict[str, Any]:
        """Counters and latency histograms, with the native Engine's names."""

    def cache_stats(self) -> dict[str, int]:
        """hits, misses, joined, evictions, entries, in_flight, bytes."""


class Control(Protocol):
    """Rare, slow work on a member's keys; see ControlPlane. A member that cannot do one raises NotSupported."""

    makes_whole_keys: bool
    """Whether a key is there completely or not at all, also where its making was cut off."""

    async def list_keys(self) -> list[KeyRecord]: ...
    async def generate_key(
        self, algorithm: Algorithm, label: str, key_id: bytes | None = None, *, extractable: bool = False
    ) -> KeyRecord: ...
    async def deactivate(self, key_id: str) -> Deactivation: ...
    async def destroy(self, key_id: str) -> None: ...
    async def export_wrapped(self, key_id: str) -> bytes: ...
    async def import_wrapped(self, backup: bytes, key_id: str | None = None, label: str | None = None) -> KeyRecord: ...
    async def sweep(self, key_id: str, *, nameless: bool = False) -> int: ...
    async def new_key_id(self) -> bytes | None: ...
    async def prove(self, key_id: str, message: bytes) -> bytes: ...
    async def why_no_backup(self, algorithm: str) -> str | None: ...
    async def generate_sealed(
        self, label: str, key_id: bytes, seal_to: Sequence[bytes]
    ) -> tuple[KeyRecord, list[bytes]]: ...
    async def transport_key(self) -> bytes: ...
    async def import_transported(self, label: str, key_id: bytes, sealed: bytes) -> KeyRecord: ...
    async def import_sealed(self, label: str, key_id: bytes, sealed: bytes, recovery: bytearray) -> KeyRecord: ...


class KeepsItsKeys:
    """A part of Control for members that make keys, give no copy of one away, and choose their ids by themselves."""

    makes_whole_keys = True
    _keeps = "its keys stay where they are made"

    async def sweep(self, key_id: str, *, nameless: bool = False) -> int:
        del key_id, nameless
        return 0

    async def new_key_id(self) -> bytes | None:
        return None

    async def prove(self, key_id: str, message: bytes) -> bytes:
        del message
        raise KeyUnusable(f"key {key_id} is tried through the signing engine only")

    async def why_no_backup(self, algorithm: str) -> str | None:
        del algorithm
        return self._keeps

    async def generate_sealed(
        self, label: str, key_id: bytes, seal_to: Sequence[bytes]
    ) -> tuple[KeyRecord, list[bytes]]:
        del label, key_id, seal_to
        raise KeyNotExportable(self._keeps)

    async def transport_key(self) -> bytes:
        raise KeyNotExportable(self._keeps)

    async def import_transported(self, label: str, key_id: bytes, sealed: bytes) -> KeyRecord:
        del label, key_id, sealed
        raise KeyNotExportable(self._keeps)

    async def import_sealed(self, label: str, key_id: bytes, sealed: bytes, recovery: bytearray) -> KeyRecord:
        del label, key_id, sealed, recovery
        raise KeyNotExportable(self._keeps)


class Member(Protocol):
    """One place that can sign. Belongs to the event loop that starts it."""

    name: str
    level: str

    @property
    def engine(self) -> SigningEngine: ...

    @property
    def control(self) -> Control: ...

    def require_ready(self) -> None:
        """Raise, without connecting, when software that the member needs is not on this machine."""

    async def start(self) -> KeyVersion:
        """Connect, find and prove the configured key. When it fails or is cancelled, call `stop`."""

    def record_in(self, audit: AuditLog) -> None:
        """After `start`, once, with an open log: record every signature, and hand it out when its record is durable."""

    async def load_key(self, key_id: bytes) -> KeyVersion:
        """Find another key of the member by its id. Raises KeyNotFound."""

    async def stop(self) -> None:
        """Answer everybody and let everything go. Doing it twice is no error."""
