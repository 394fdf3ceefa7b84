"""The signing path of a key manager with one member."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, Self, TypeVar

from hsmcore._native import Lease
from hsmcore.audit import AuditLog
from hsmcore.base.events import Events
from hsmcore.base.keyring import KeyRing, KeyVersion
from hsmcore.base.log import get_logger
from hsmcore.base.receipt import Receipt
from hsmcore.config import Config
from hsmcore.errors import HsmError, KeyNotCurrent, KeyNotFound
from hsmcore.members import Member, make_member
from hsmcore.members.base import SIGN_SECONDS, Retired, Submit, WithReceipt, refuse_closed
from hsmcore.members.snapshot import MemberSnapshot

T = TypeVar("T")

LOOK_SECONDS: Final = 0.5
"""Seconds between two looks whether the member is down."""


class SingleMember:
    """As SigningPath. Belongs to the event loop that opens it."""

    answers_recorded = True
    failover = None

    def __init__(self, member: Member, version: KeyVersion, audit: AuditLog, events: Events) -> None:
        self.member = member
        self.version, self.key_index = version, version.index
        self._audit, self._events = audit, events
        self._down = False
        self._look_again: asyncio.TimerHandle | None = None
        self._engine = engine = member.engine
        self.submit: Submit = engine.submit
        self.receipt: WithReceipt = engine.ask
        self.idle = engine.idle
        self._know(version)

    @classmethod
    async def open(cls, config: Config, audit: AuditLog, events: Events) -> Self:
        """Start the member. Raises HsmError, and leaves nothing open then."""
        rules = config.key_manager
        member = make_member(rules.own, rules, "primary", config.secret_variables)
        try:
            member.require_ready()  # software to install is reported before placeholders of an example
            config.require_complete()
            return cls(member, await member.start(), audit, events)
        except BaseException:
            await member.stop()
            raise

    def begin(self, ring: KeyRing, _check: Callable[[], object], lease: Lease | None = None) -> None:
        """The engine checks process and event loop itself."""
        self._engine.hand_out_under(lease)
        if self._audit.enabled:
            self.member.record_in(self._audit)
        ring.add(self.version)
        ring.make_current(self.version.id)
        self._look()

    def _look(self) -> None:
        """Tell an outage and its end, as the levels of failover tell those of their members."""
        self._look_again = asyncio.get_running_loop().call_later(LOOK_SECONDS, self._look)
        down = self._is_down()
        if down != self._down:
            self._down = down
            kind, log = ("member-down", get_logger().warning) if down else ("member-up", get_logger().info)
            details: dict[str, Any] = {"member": self.member.name, "from_level": self.member.level}
            log(kind, **details)
            self._audit.note(kind, result="ok", **details)
            self._events.emit(kind, **details)

    def _is_down(self) -> bool:
        try:
            return bool(self._engine.stats()["down"])
        except HsmError:
            return True  # it is closed

    async def close(self) -> None:
        if self._look_again is not None:
            self._look_again.cancel()
        await self.member.stop()

    def submit_many(
        self,
        messages: Sequence[Any],
        timeout: float | None,
        return_exceptions: bool,
        extra: bytes | None,
        only: bytes | None = None,
    ) -> Awaitable[list[Any]]:
        self._require(only)
        return self._awaited(self._engine.submit_many(messages, timeout, return_exceptions, self.key_index, extra))

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
        del any_key
        self._require(only)
        return self._engine.ask(message, timeout, self.version.index, extra, gather)

    def _require(self, only: bytes | None) -> None:
        if only is not None and only != self.version.public_key:
            raise KeyNotCurrent.of(only, self.version.public_key)

    async def _awaited(self, answer: asyncio.Future[T]) -> T:
        try:
            return await answer
        except asyncio.CancelledError:
            self._engine.abandon(answer)
            raise

    def abandon(self, answer: Any, _message: Any) -> None:
        self._engine.abandon(answer)

    def keep(self, message: Any, public_key: bytes) -> None:
        """There is no other key."""

    def check_operation(self, operation: str) -> None:
        """There is no emergency level."""

    def use(self, version: KeyVersion) -> None:
        self._engine.clear_cache()
        self.version, self.key_index = version, version.index
        self._know(version)

    def _know(self, version: KeyVersion) -> None:
        self._engine.signs_as(version.index, version, self.member.name, self.member.level)

    async def load_key(self, identity: bytes, known: KeyVersion | None = None) -> KeyVersion:
        if known is not None and known.index >= 0 and known.state == "active":
            return known
        return await self.member.load_key(identity)

    async def sign_as(self, version: KeyVersion, message: bytes) -> bytes:
        signed = self._engine.submit(message, SIGN_SECONDS, version.index, own=True)
        return signed if isinstance(signed, bytes) else await signed

    def lasting(self) -> list[Member]:
        return [self.member]

    def holders(self, public_key: bytes | None = None) -> list[Member]:
        del public_key
        return [self.member]

    def signing(self) -> list[KeyVersion]:
        return [self.version]

    def retire(self, version: KeyVersion) -> None:
        if version.index >= 0:
            self._engine.retire_key(version.index)

    forget = retire

    async def deactivate(self, version: KeyVersion) -> Retired:
        self.retire(version)
        try:
            return Retired((await self.member.control.deactivate(version.id)).enforced)
        except KeyNotFound:
            return Retired(True)  # a key that is gone signs nothing

    def members(self) -> tuple[MemberSnapshot, ...]:
        member, engine, version = self.member, self._engine, self.version
        down = self._is_down()
        return (
            MemberSnapshot(
                name=member.name,
                level=member.level,
                condition="open" if down else "ready",
                reason="the module fails, and recovery is under way" if down else "",
                signs=True,
                public_key=version.public_key,
                key_id=version.id,
                in_flight=engine.in_flight + engine.waiting,
                member=member,
            ),
        )

    def refuse(self) -> None:
        self.submit = self.receipt = refuse_closed
        if not self._audit.needs_member:
            self._engine.refuse()
