"""The interface of a member: a token, a cloud key or a key in memory that signs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Generic, NoReturn, Protocol, TypeVar

from hsmcore._native import Digest, Lease, Waiter
from hsmcore.base.keyring import KeyVersion
from hsmcore.base.receipt import Receipt
from hsmcore.config import KeyManagerConfig, Provider, ProviderSettings
from hsmcore.errors import EngineClosed
from hsmcore.members.control import ControlPlane, KeyNotExportable
from hsmcore.members.control.curves import Algorithm
from hsmcore.members.control.records import Deactivation, KeyRecord

if TYPE_CHECKING:
    from hsmcore.audit import AuditLog

SIGN_SECONDS: Final = 30.0
"""Timeout, in seconds, of the signatures that management of keys needs."""
VERIFY_EVERY: Final = {"always": 1, "sample": 64, "never": 0}
"""By `verifySignatures`: each worker verifies one in so many of its signatures before it hands it out; 0: none."""


Submit = Callable[[object, float | None, int, bytes | None], bytes | Awaitable[bytes]]
"""As SigningEngine.submit: message, timeout, key index, and what is added to the audit record."""


WithReceipt = Callable[[object, float | None, int, bytes | None], Awaitable[Receipt]]
"""As SigningEngine.ask."""


def refuse_closed(*_request: object) -> NoReturn:
    """Take the place of `submit` once close() has begun. Raises EngineClosed."""
    raise EngineClosed("the key manager is closed")


class SigningEngine(Protocol):
    """The path of one signature through a member. Belongs to the event loop; no method blocks.

    The native Engine serves PKCS#11 modules, OffloadEngine the other members. `key` is the `index` of a KeyVersion.
    Timeouts are seconds; None: the configured default. Errors are HsmError.
    """

    @property
    def in_flight(self) -> int:
        """Requests that hold a slot."""

    @property
    def waiting(self) -> int:
        """Requests that wait for a slot."""

    def submit(
        self, message: object, timeout: float | None = None, key: int = 0, extra: bytes | None = None, own: bool = False
    ) -> bytes | asyncio.Future[bytes]:
        """Sign one message, or a Digest. Returns the signature if the cache holds it and no record is written, else a
        future of it.
        `extra` is added to the audit record: members of a JSON object, beginning with a comma; b"": write no record.
        `own`: hsmcore itself has it signed, which needs no lease."""

    def hand_out_under(self, lease: Lease | None) -> None:
        """Refuse the requests of callers with NotHolder while `lease` is over, and their answers that come then."""

    def ask(
        self,
        message: object,
        timeout: float | None = None,
        key: int = 0,
        extra: bytes | None = None,
        gather: bool = False,
        waiter: Waiter | None = None,
    ) -> asyncio.Future[Receipt]:
        """Sign one message. Returns a future of its Receipt, or `waiter`, which takes it. `gather`: workers may be told
        at the end of this iteration of the event loop."""

    def submit_many(
        self,
        messages: object,
        timeout: float | None = None,
        return_exceptions: bool = False,
        key: int = 0,
        extra: bytes | None = None,
    ) -> asyncio.Future[list[Any]]:
        """Sign a batch. Returns a future of the list of signatures, in order."""

    place: Any
    """The object by which the router knows the engine: its Endpoint; see Routes."""

    def signs_as(self, key: int, version: KeyVersion, member: str, level: str) -> None:
        """Say what receipts of the key at this index tell."""

    def abandon(self, future: asyncio.Future[Any]) -> bool | None:
        """Give up `future`. Returns False if nothing was or will be signed for it; otherwise a signature may exist."""

    def asked_for(self, answer: Any) -> tuple[int, bytes | Digest] | None:
        """Return the key's index and the message of the request that this future of `submit` waits for, or that was
        answered after the future was cancelled; None: neither, or this was asked before."""

    def move(self) -> None:
        """Answer every caller whose message is not signed with DeadlineExceeded: this member does not answer, others
        can."""

    def retire_key(self, index: int) -> None:
        """Refuse every further request for this key, and the queued ones."""

    def clear_cache(self) -> None:
        """Wipe all cached signatures."""

    def refuse(self) -> None:
        """Refuse every further request."""

    def idle(self) -> asyncio.Future[None]:
        """Return a future that is done when every caller has its answer."""

    def stats(self) -> dict[str, Any]:
        """Return counters and latency histograms, with the native Engine's names."""

    def cache_stats(self) -> dict[str, int]:
        """Return hits, misses, joined, evictions, entries, in_flight and bytes."""


class KeyAdmin(Protocol):
    """Rare, slow work on a member's keys. ControlPlane implements it for tokens."""

    async def list_keys(self) -> list[KeyRecord]: ...
    async def generate_key(
        self, algorithm: Algorithm, label: str, key_id: bytes | None = None, *, extractable: bool = False
    ) -> KeyRecord: ...
    async def deactivate(self, key_id: str) -> Deactivation: ...
    async def destroy(self, key_id: str) -> None: ...


class AliasAdmin(KeyAdmin, Protocol):
    """The control plane of a member whose settings have a `key_alias`."""

    async def move_alias(self, alias: str, key_id: str) -> None:
        """Point the alias to the key. Idempotent. Raises HsmError."""


@dataclass(frozen=True, slots=True)
class NonExportable:
    """Replaces the token of a member whose keys cannot be copied. Such a member makes a key completely or not at all,
    and never reuses an id. The texts are those of the errors."""

    export: str
    """Error text for an export; {} is the key's id."""
    restore: str
    hint: str

    def error(self, text: str, member: str) -> KeyNotExportable:
        return KeyNotExportable(text, member=member, hint=self.hint)


@dataclass(frozen=True, slots=True)
class TokensTold:
    """The result of a deactivation on the tokens."""

    enforced: bool
    """Whether every token refuses it."""
    untold: tuple[str, ...] = ()
    """The members whose token could not be told: they are not running, or failed."""


S_co = TypeVar("S_co", bound=ProviderSettings, covariant=True)


@dataclass(frozen=True, slots=True)
class MemberSpec(Generic[S_co]):
    """The arguments of a member's class. Constructing a member loads and connects nothing."""

    provider: Provider
    settings: S_co
    """`config` of the provider."""
    rules: KeyManagerConfig
    level: str
    hidden_variables: frozenset[str] = frozenset()
    """Environment variables that no child process inherits."""

    def engine_rules(self) -> dict[str, Any]:
        """Return the arguments that every engine takes from the configuration."""
        rules = self.rules
        return {
            "member": self.provider.name,
            "max_message": rules.max_message_bytes,
            "default_timeout": rules.request_timeout_ms / 1e3,
            "cache_size": rules.max_cache_size,
            "single_flight": rules.single_flight,
            "cache_nondeterministic": rules.cache_non_deterministic,
            "takes_digests": rules.policy is not None and "prehashed" in rules.policy.kinds,
        }


class Member(Protocol):
    """One token or key store that signs. Belongs to the event loop that starts it."""

    name: str
    level: str

    @property
    def engine(self) -> SigningEngine: ...

    @property
    def control(self) -> KeyAdmin: ...

    @property
    def token(self) -> ControlPlane | NonExportable:
        """The token that wraps keys and holds ceremonies, or why there is none; see tokens.py."""

    def require_ready(self) -> None:
        """Raise HsmError if software that the member needs is not on this machine. Connects to nothing."""

    async def start(self) -> KeyVersion:
        """Connect, find and prove the configured key. After a failure or a cancellation, call `stop`."""

    def record_in(self, audit: AuditLog) -> None:
        """Record every signature and hand it out when its record is durable. Once, after `start`, with an open log."""

    async def load_key(self, key_id: bytes) -> KeyVersion:
        """Find another key of the member by its id. Raises KeyNotFound."""

    async def stop(self) -> None:
        """Answer every caller and release all resources. Idempotent."""
