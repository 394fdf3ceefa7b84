"""The signing path of a key manager with one member: its engine's own calls, without levels."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Final, Self, TypeVar

from hsmcore._native import Lease, Waiter
from hsmcore.audit import AuditLog
from hsmcore.base.events import Events
from hsmcore.base.keyring import KeyRing, KeyVersion
from hsmcore.base.log import get_logger
from hsmcore.base.receipt import Receipt
from hsmcore.base.scope import Scope
from hsmcore.config import Config
from hsmcore.errors import HsmError, KeyNotCurrent, KeyNotFound
from hsmcore.failover.endpoint import Endpoint
from hsmcore.failover.path import Ask, SigningPath
from hsmcore.members import make_member
from hsmcore.members.base import TokensTold
from hsmcore.members.snapshot import MemberSnapshot

T = TypeVar("T")

LOOK_SECONDS: Final = 1.0
"""Seconds between two looks whether the member is down."""


class SingleMember(SigningPath):
    """As SigningPath. Belongs to the event loop that opens it."""

    def __init__(self, endpoint: Endpoint, audit: AuditLog, events: Events) -> None:
        super().__init__((endpoint,), audit)
        self._endpoint, self._events = endpoint, events
        self._engine = engine = endpoint.signing
        self._down = False
        self._scope = Scope()
        self._scope.defer(endpoint.stop)
        self.key_index = endpoint.index
        self.submit, self.receipt = engine.submit, engine.ask

    @classmethod
    async def open(cls, config: Config, audit: AuditLog, events: Events) -> Self:
        """Start the member. Raises HsmError, and leaves nothing open then."""
        rules, level = config.key_manager, "primary"
        make = partial(make_member, rules.own, rules, level, config.secret_variables)
        endpoint = Endpoint(rules.own.name, 0, 0, level, make, rules.where, config.require_complete)
        await endpoint.start()
        return cls(endpoint, audit, events)

    def begin(self, ring: KeyRing, check: Callable[[], object], lease: Lease | None = None) -> None:
        super().begin(ring, check, lease)
        self._scope.every(LOOK_SECONDS, self._look, "the member's state is not known")

    async def _look(self) -> None:
        """Tell an outage and its end, as the levels of failover tell those of their members."""
        down = self._is_down()
        if down != self._down:
            self._down = down
            kind, log = ("member-down", get_logger().warning) if down else ("member-up", get_logger().info)
            details: dict[str, Any] = {"member": self._endpoint.name, "from_level": self._endpoint.level_name}
            log(kind, **details)
            self._audit.note(kind, result="ok", **details)
            self._events.emit(kind, **details)

    def _is_down(self) -> bool:
        try:
            return bool(self._engine.stats()["down"])
        except HsmError:
            return True  # it is closed

    def idle(self) -> Awaitable[None]:
        return self._engine.idle()

    def close(self) -> Awaitable[None]:
        return self._scope.close()

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

    def ask(self, asked: Ask, waiter: Waiter | None = None) -> asyncio.Future[Receipt]:
        message, timeout, extra, only, _, gather = asked
        if only is not None:
            self._require(only)
        return self._engine.ask(message, timeout, self.key_index, extra, gather, waiter)

    def _require(self, only: bytes | None) -> None:
        current = self._endpoint.version
        if only is not None and current is not None and only != current.public_key:
            raise KeyNotCurrent.of(only, current.public_key)

    async def _awaited(self, answer: asyncio.Future[T]) -> T:
        try:
            return await answer
        except asyncio.CancelledError:
            self._engine.abandon(answer)
            raise

    def abandon(self, asked: Any, message: Any) -> None:
        del message
        self._engine.abandon(asked)

    def keep(self, message: Any, public_key: bytes) -> None:
        """There is no other key."""

    @property
    def version(self) -> KeyVersion:
        return self._endpoint.key_version

    def _loaded(self, version: KeyVersion) -> list[tuple[Endpoint, KeyVersion]]:
        """By its index: a token may hold one key under two ids."""
        return [(self._endpoint, version)] if version.index >= 0 else []

    def use(self, version: KeyVersion) -> None:
        super().use(version)
        self.key_index = self._endpoint.index

    async def deactivate(self, version: KeyVersion) -> TokensTold:
        self.retire_key(version)
        try:
            return TokensTold((await self.member.control.deactivate(version.id)).enforced)
        except KeyNotFound:
            return TokensTold(True)  # a key that is gone signs nothing

    def members(self) -> tuple[MemberSnapshot, ...]:
        version, down = self.version, self._is_down()
        return (
            MemberSnapshot(
                name=self._endpoint.name,
                level=self._endpoint.level_name,
                condition="open" if down else "ready",
                reason="the module fails, and recovery is under way" if down else "",
                signs=True,
                public_key=version.public_key,
                key_id=version.id,
                in_flight=self._engine.in_flight + self._engine.waiting,
                member=self._endpoint.member,
            ),
        )
