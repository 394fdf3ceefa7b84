"""What a member is to the rest: a token, a cloud key or a key in memory that can sign."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol, TypeVar

from hsmcore.config import KeyManagerConfig, Provider, ProviderSettings
from hsmcore.control import ControlPlane, KeyNotExportable
from hsmcore.control.curves import Algorithm
from hsmcore.control.records import Deactivation, KeyRecord
from hsmcore.keyring import KeyVersion

if TYPE_CHECKING:
    from hsmcore.audit import AuditLog

SIGN_SECONDS: Final = 30.0
"""Timeout, in seconds, of a signature that rare work on keys needs."""
SAMPLE_EVERY: Final = 64
"""With "sample", a worker verifies one in so many of its signatures before it hands it out."""
VERIFY_EVERY: Final = {"always": 1, "sample": SAMPLE_EVERY, "never": 0}
"""`verifySignatures` as the engine takes it: one signature in so many; 0: none."""


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


class KeyAdmin(Protocol):
    """Rare, slow work on a member's keys. ControlPlane is one for tokens."""

    async def list_keys(self) -> list[KeyRecord]: ...
    async def generate_key(
        self, algorithm: Algorithm, label: str, key_id: bytes | None = None, *, extractable: bool = False
    ) -> KeyRecord: ...
    async def deactivate(self, key_id: str) -> Deactivation: ...
    async def destroy(self, key_id: str) -> None: ...


@dataclass(frozen=True, slots=True)
class NonExportable:
    """In the place of a token: no copy of a key leaves the member. It makes keys completely or not at all, and never
    uses an id twice. The texts are those of the errors."""

    export: str
    """Of a key that is to be copied; {} is its id."""
    restore: str
    hint: str

    def error(self, text: str, member: str) -> KeyNotExportable:
        return KeyNotExportable(text, member=member, hint=self.hint)


S_co = TypeVar("S_co", bound=ProviderSettings, covariant=True)


@dataclass(frozen=True, slots=True)
class MemberSpec(Generic[S_co]):
    """What a member is made from. A class of members is called with one of these; it loads and connects nothing."""

    provider: Provider
    settings: S_co
    """`config` of the provider."""
    rules: KeyManagerConfig
    level: str
    hidden_variables: frozenset[str] = frozenset()
    """Environment variables that no child process inherits."""


class Member(Protocol):
    """One place that can sign. Belongs to the event loop that starts it."""

    name: str
    level: str

    @property
    def engine(self) -> SigningEngine: ...

    @property
    def control(self) -> KeyAdmin: ...

    @property
    def token(self) -> ControlPlane | NonExportable:
        """What wraps keys and holds ceremonies, or why the member cannot; see tokens.py."""

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
