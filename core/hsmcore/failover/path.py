"""What a key manager signs with: the way of its requests, and the work on keys that one member and levels have in
common."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

from hsmcore._native import Lease, Waiter
from hsmcore.audit import AuditLog
from hsmcore.base.keyring import KeyRing, KeyVersion
from hsmcore.base.log import get_logger
from hsmcore.base.receipt import Receipt
from hsmcore.errors import HsmError, KeyMismatch, KeyNotFound
from hsmcore.failover.endpoint import Endpoint
from hsmcore.failover.levels import EMERGENCY
from hsmcore.members import Member
from hsmcore.members.base import SIGN_SECONDS, Submit, TokensTold, WithReceipt, refuse_closed
from hsmcore.members.snapshot import MemberSnapshot


class Ask(NamedTuple):
    """What a caller asks for."""

    message: Any
    timeout: float | None
    """Seconds; None: `requestTimeoutMs`."""
    extra: bytes | None
    """The addition to its audit records."""
    only: bytes | None = None
    """The public key that signs it, or none does."""
    any_key: bool = False
    """Whether another key may sign although a signature under the first one may exist."""
    gather: bool = False
    """Whether more come in this iteration of the loop."""


class Way(Protocol):
    """The way of requests to the members. Belongs to the event loop. Errors are HsmError."""

    # On the way of every signature: attributes, so that a signature costs no further call.
    submit: Submit
    receipt: WithReceipt
    key_index: int
    answers_recorded: bool
    """Whether the engine records an answer that is an error; else the key manager does."""

    @abstractmethod
    def ask(self, asked: Ask, waiter: Waiter | None = None) -> asyncio.Future[Receipt]:
        """Submit a message. `waiter`: takes the answer in place of a future, and is returned, where nothing else need
        see the answer before it. Raises KeyNotCurrent if only one key may sign it, which is not the current one."""

    @abstractmethod
    def submit_many(
        self,
        messages: Sequence[Any],
        timeout: float | None,
        return_exceptions: bool,
        extra: bytes | None,
        only: bytes | None = None,
    ) -> Awaitable[list[Any]]:
        """`only`: as of Ask."""

    @abstractmethod
    def abandon(self, asked: Any, message: Any) -> object:
        """Called when the wait for an answer of `submit` or `ask` to this message was cancelled."""

    @abstractmethod
    def keep(self, message: Any, public_key: bytes) -> object:
        """A signature of the message under this key exists that its caller does not get: no other key may sign it."""


class SigningPath(Way, ABC):
    """The members of a key manager. Belongs to the event loop that opens it. Errors are HsmError."""

    submit: Submit
    receipt: WithReceipt
    key_index = 0
    answers_recorded = True
    has_levels = False
    """Whether it is a FailoverService."""

    def __init__(self, endpoints: Sequence[Endpoint], audit: AuditLog) -> None:
        self.endpoints = endpoints
        """Every member, in the order of the levels."""
        self._audit = audit

    # ---- keys --------------------------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def version(self) -> KeyVersion:
        """The key that signs now, or that signed last. Raises KeyNotFound."""

    def signing(self) -> list[KeyVersion]:
        """As ManagerPort.signing."""
        return [self.version]

    @property
    def member(self) -> Member:
        """The member for rare work on keys. Raises HsmError while none runs."""
        started = [endpoint.member for endpoint in self.endpoints if endpoint.member is not None]
        if not started:
            raise HsmError("no member has started", status="TOKEN_LOST")
        return started[0]

    def check_operation(self, operation: str) -> None:
        """Raise EmergencyRefused if the emergency level is active and does not allow the operation."""

    def running(self) -> list[Endpoint]:
        """The members that have started."""
        return [endpoint for endpoint in self.endpoints if endpoint.member is not None]

    def _lasting(self) -> list[tuple[Endpoint, Member]]:
        """The running members of all levels but the emergency level."""
        return [
            (endpoint, endpoint.member)
            for endpoint in self.endpoints
            if endpoint.member is not None and endpoint.level_name != EMERGENCY
        ]

    def _loaded(self, version: KeyVersion) -> list[tuple[Endpoint, KeyVersion]]:
        """The running members that have loaded a key, each with its own version of that key."""
        return [
            (endpoint, own)
            for endpoint in self.running()
            if (own := endpoint.versions.get(version.public_key)) is not None
        ]

    def lasting(self) -> list[Member]:
        """As ManagerPort.members."""
        return [member for _, member in self._lasting()]

    def holders(self, public_key: bytes | None = None) -> list[Member]:
        """As ManagerPort.holders, but empty if there is none."""
        key = public_key or self.signing()[0].public_key
        return [member for endpoint, member in self._lasting() if key in endpoint.versions]

    async def load_key(self, identity: bytes) -> KeyVersion:
        """Load a key by its CKA_ID on every member that holds it. Raises KeyNotFound if no member does, KeyMismatch if
        the id means different keys."""
        found: list[KeyVersion] = []
        missing = KeyNotFound(f"no member holds a key with id {identity.hex()}")
        for endpoint, member in self._lasting():
            if endpoint.member is not member:
                continue  # it stopped while another member loaded the key
            try:
                version = await member.load_key(identity)
            except KeyNotFound as error:
                missing = error
                continue
            endpoint.knows(version)
            found.append(version)
        if not found:
            raise missing
        if len({version.public_key for version in found}) > 1:
            raise KeyMismatch(f"key {identity.hex()} is not the same one on all members")
        return found[0]

    def use(self, version: KeyVersion) -> None:
        """Sign with this key from now on, where a member holds it."""
        for endpoint, own in self._loaded(version):
            endpoint.use(own)
        for endpoint in self.running():
            endpoint.signing.clear_cache()

    async def sign_as(self, version: KeyVersion, message: bytes) -> bytes:
        """Sign with a key that need not be the current one, on the first member that has loaded it."""
        for endpoint, own in self._loaded(version):
            if endpoint.level_name != EMERGENCY:
                signed = endpoint.signing.submit(message, SIGN_SECONDS, own.index, own=True)
                return signed if isinstance(signed, bytes) else await signed
        raise KeyNotFound(f"no running member has loaded key {version.id}")

    def retire_key(self, version: KeyVersion) -> None:
        """Refuse every further signature with this key, in this process."""
        for endpoint, own in self._loaded(version):
            endpoint.signing.retire_key(own.index)

    def forget(self, version: KeyVersion) -> None:
        """Retire a key that never was current and was destroyed."""
        for endpoint, own in self._loaded(version):
            endpoint.versions.pop(version.public_key, None)
            endpoint.signing.retire_key(own.index)

    async def deactivate(self, version: KeyVersion) -> TokensTold:
        """Retire a key and deactivate it on every token that holds it, also where it is not loaded. A single member's
        error is raised."""
        self.retire_key(version)
        enforced, untold = True, []
        for endpoint in self.endpoints:
            if endpoint.level_name == EMERGENCY:
                continue
            try:
                enforced &= await endpoint.deactivate(version)
            except HsmError as error:
                untold.append(endpoint.name)
                get_logger().error("the token was not told to refuse a key", member=endpoint.name, error=str(error))
        return TokensTold(enforced and not untold, tuple(untold))

    # ---- life --------------------------------------------------------------------------------------------------------

    def begin(self, ring: KeyRing, check: Callable[[], object], lease: Lease | None = None) -> None:
        """Start to record, and add the members' keys to the ring. `check` raises where a request is not allowed.
        `lease`: what callers get is handed out under it."""
        del check  # an engine checks process and event loop itself
        self._ring, self._lease = ring, lease
        for endpoint in self.running():
            self._learn_key(endpoint)
        ring.make_current(self.version.id)

    def _learn_key(self, endpoint: Endpoint) -> None:
        endpoint.signing.hand_out_under(self._lease)
        if self._audit.enabled and endpoint.member is not None:
            endpoint.member.record_in(self._audit)
        endpoint.use(_disambiguated(endpoint.key_version, list(self._ring), endpoint.name))
        self._ring.add(endpoint.key_version)

    @abstractmethod
    def members(self) -> tuple[MemberSnapshot, ...]:
        """Every member, in the order of the levels. Any thread."""

    def refuse(self) -> None:
        """Refuse new requests of callers."""
        self.submit = self.receipt = refuse_closed
        if not self._audit.needs_member:  # else a member signs the last checkpoint, and refuses when it is stopped
            for endpoint in self.running():
                endpoint.signing.refuse()

    @abstractmethod
    def idle(self) -> Awaitable[None]:
        """Wait until every request is answered, and end all that could still add to the audit log."""

    @abstractmethod
    def close(self) -> Awaitable[None]:
        """Answer every request and stop the members. Idempotent; called again after an error, it stops the rest."""


def _disambiguated(version: KeyVersion, others: Sequence[KeyVersion], member: str) -> KeyVersion:
    """The version with an id of its own, if another member has another key with the same id."""
    same_id = any(other.id == version.id and other.public_key != version.public_key for other in others)
    return replace(version, id=f"{version.id}@{member}") if same_id else version
