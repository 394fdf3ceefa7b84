"""Entering and leaving the emergency level: its members are started when nothing else is left, and stopped, which
destroys their keys, when something else is back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from time import monotonic_ns
from typing import Any, Final

from hsmcore.errors import HsmError
from hsmcore.failover.breaker import SECOND
from hsmcore.failover.events import Event
from hsmcore.failover.levels import EMERGENCY
from hsmcore.failover.router import Router
from hsmcore.failover.seat import Seat
from hsmcore.keyring import KeyVersion
from hsmcore.log import get_logger

IDLE_S: Final = 10.0
"""How long the emergency members may take to end what they do when the level is left."""


class Arming:
    """Belongs to the event loop. `spawn` runs a coroutine that ends with the keeper."""

    def __init__(self, router: Router, spawn: Callable[[Coroutine[Any, Any, None]], None]) -> None:
        self._router = router
        self._levels = router.levels
        self._spawn = spawn
        self._arming = self._leaving = False
        self._rearm_at = 0
        self._complaint = ""

    def tend(self, now: int) -> None:
        """Enter or leave the level, if it is time for that."""
        seats = [seat for seat in self._levels.members if seat.level_name == EMERGENCY]
        if not seats:
            return
        wanted = self._levels.emergency_wanted(now)
        if self._levels.emergency_fault and now >= self._rearm_at:
            self._levels.emergency_failed("", now)
        elif wanted and not self._arming and any(seat.member is None for seat in seats):
            self._arming = True
            self._spawn(self._arm(seats))
        elif not wanted and not self._router.in_emergency and not self._leaving and not self._arming:
            left = [seat for seat in seats if seat.member is not None]
            if left:
                self._leaving = True
                self._spawn(self._leave(left))

    async def _arm(self, seats: list[Seat]) -> None:
        try:
            budget = self._router.budget
            if budget is not None and not (await budget.begin()).usable:
                self._levels.emergency_used_up(True, "its budget or time is used up", monotonic_ns())
                return
            for seat in seats:
                if seat.member is None and not seat.drained:
                    version = await seat.start()
                    self._router.on_key(seat)
                    self._levels.events.append(Event("emergency-entered", None, EMERGENCY, seat.name,
                                                     self._levels.causes(seat.level), _key(version)))  # fmt: skip
                    self._levels.started(seat, version.public_key, monotonic_ns())
        except HsmError as error:
            if self._complaint != str(error):  # it is tried again each second, and said once
                self._complaint = str(error)
                get_logger().error("the emergency level cannot be started", error=str(error))
            self._rearm_at = monotonic_ns() + SECOND
            self._levels.emergency_failed(str(error.args[0]), monotonic_ns())
        finally:
            self._arming = False
            self._router.settle()

    async def _leave(self, seats: list[Seat]) -> None:
        try:
            for seat in seats:
                await self.destroy(seat)
        finally:
            self._leaving = False
            self._router.settle()

    async def destroy(self, seat: Seat) -> None:
        """End an emergency member, and with it its key; what it is working on is waited for."""
        version, member = seat.version, seat.member
        self._levels.stopped(seat, monotonic_ns())
        if member is None:
            return
        try:
            await asyncio.wait_for(member.engine.idle(), IDLE_S)
        except TimeoutError:
            get_logger().error("an emergency member is ended in the middle of its work", member=seat.name)
        await seat.stop()
        details = _key(version) if version is not None else {}
        self._levels.events.append(Event("emergency-left", EMERGENCY, None, seat.name, "its key is destroyed", details))
        self._router.settle()


def _key(version: KeyVersion) -> dict[str, Any]:
    return {"key_id": version.id, "public_key": version.public_key.hex()}
