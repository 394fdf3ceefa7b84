"""What a key manager signs with, behind one interface: a single member, or the levels of failover."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, Protocol, cast

from hsmcore._native import Lease
from hsmcore.audit import AuditLog
from hsmcore.base.events import Events
from hsmcore.base.keyring import KeyRing, KeyVersion
from hsmcore.base.receipt import Receipt
from hsmcore.config import Config
from hsmcore.errors import NotInitialized
from hsmcore.failover.health import Verify
from hsmcore.failover.service import FailoverService
from hsmcore.manager.single import SingleMember
from hsmcore.members import Member
from hsmcore.members.base import Retired, Submit, WithReceipt
from hsmcore.members.snapshot import MemberSnapshot


class SigningPath(Protocol):
    """The way from a key manager to its members. Belongs to the event loop. Errors are HsmError."""

    # On the way of every signature: attributes, so that a signature costs no further call.
    @property
    def submit(self) -> Submit: ...

    @property
    def receipt(self) -> WithReceipt: ...
    @property
    def key_index(self) -> int: ...
    @property
    def answers_recorded(self) -> bool:
        """Whether the engine records an answer that is an error; else the key manager does."""

    def ask(
        self,
        message: Any,
        timeout: float | None,
        extra: bytes | None,
        only: bytes | None = None,
        *,
        any_key: bool = False,
        gather: bool = False,
    ) -> asyncio.Future[Receipt]:
        """Submit a message. `only`: the public key that signs, or none does; raises KeyNotCurrent. `any_key`: another
        key may sign although a signature under the first one may exist. `gather`: more come in this turn of the
        loop."""

    def submit_many(
        self,
        messages: Sequence[Any],
        timeout: float | None,
        return_exceptions: bool,
        extra: bytes | None,
        only: bytes | None = None,
    ) -> Awaitable[list[Any]]:
        """`only`: as `ask`."""

    def abandon(self, asked: Any, message: Any) -> object:
        """Called when the wait for an answer of `submit` or `ask` to this message was cancelled."""

    def keep(self, message: Any, public_key: bytes) -> object:
        """A signature of the message under this key exists that its caller does not get: no other key may sign it."""

    # Keys.
    @property
    def version(self) -> KeyVersion:
        """The key that signs. Raises KeyNotFound."""

    @property
    def member(self) -> Member:
        """The member for rare work on keys. Raises HsmError while none runs."""

    def check_operation(self, operation: str) -> None:
        """Raise EmergencyRefused if the emergency level is active and does not allow the operation."""

    def use(self, version: KeyVersion) -> None:
        """Sign with this key from now on."""

    async def load_key(self, identity: bytes, known: KeyVersion | None = None) -> KeyVersion:
        """Load a key by its CKA_ID. `known`: the key ring's version of it. Raises KeyNotFound, KeyMismatch."""

    async def sign_as(self, version: KeyVersion, message: bytes) -> bytes:
        """Sign with a key that need not be the current one."""

    def lasting(self) -> list[Member]:
        """As ManagerPort.members."""

    def holders(self, public_key: bytes | None = None) -> list[Member]:
        """As ManagerPort.holders, but empty if there is none."""

    def signing(self) -> list[KeyVersion]:
        """As ManagerPort.signing."""

    def retire(self, version: KeyVersion) -> None:
        """Refuse every further signature with this key, in this process."""

    async def deactivate(self, version: KeyVersion) -> Retired:
        """Retire a key and deactivate it on every token."""

    def forget(self, version: KeyVersion) -> None:
        """Retire a key that never was current and was destroyed."""

    # State.
    @property
    def failover(self) -> FailoverService | None:
        """What only levels have: counters, budget, history; None for a single member."""

    def members(self) -> tuple[MemberSnapshot, ...]:
        """Every member, in the order of the levels. Any thread."""

    def begin(self, ring: KeyRing, check: Callable[[], object], lease: Lease | None = None) -> None:
        """Start to record, and add the members' keys to the ring. `check` raises where a request is not allowed.
        `lease`: what callers get is handed out under it."""

    def refuse(self) -> None:
        """Refuse new requests of callers. A member may still have to sign the audit log's last checkpoint."""

    def idle(self) -> Awaitable[None]:
        """Wait until every request is answered, and end all that could still add to the audit log."""

    def close(self) -> Awaitable[None]:
        """Answer every request and stop the members. Idempotent; called again after an error, it stops the rest."""


def running(path: SigningPath) -> list[Member]:
    """Return the running members, those in service first."""
    started = sorted(path.members(), key=lambda one: one.condition not in ("ready", "ramping"))
    return [one.member for one in started if one.member is not None]


def signers(path: SigningPath) -> list[bytes]:
    """Return the Ed25519 public keys that sign now."""
    return [version.public_key for version in path.signing() if version.algorithm == "ed25519"]


class Ring(Protocol):
    """What the key ring makes of a configuration."""

    config: Config
    """The configuration, with the key ring's current key put into it."""
    pinned: frozenset[str]
    """Names of the members that start with that key."""


async def open_path(ring: Ring, configured: Config, verify: Verify, audit: AuditLog, events: Events) -> SigningPath:
    """Start the members of a configuration. Raises HsmError, and leaves nothing open then."""
    if ring.config.key_manager.has_levels:
        return await FailoverService.open(ring.config, verify, audit, events, ring.pinned, configured)
    return await SingleMember.open(ring.config, audit, events)


class _Unopened:
    """Has no members; every other use raises NotInitialized."""

    failover = None

    def members(self) -> tuple[MemberSnapshot, ...]:
        return ()

    def __getattr__(self, name: str) -> Any:
        raise NotInitialized("used before initialize()")


UNOPENED: Final = cast("SigningPath", _Unopened())
"""The path before `initialize()`."""
