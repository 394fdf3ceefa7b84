"""Enter and leave the emergency level: start its members when no other level can sign; stop them, which destroys their
keys, when another level is back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from time import monotonic_ns
from typing import Any, Final

from hsmcore.base.keyring import KeyVersion
from hsmcore.base.log import get_logger
from hsmcore.base.scope import Scope
from hsmcore.errors import HsmError
from hsmcore.failover.breaker import SECOND
from hsmcore.failover.endpoint import Endpoint
from hsmcore.failover.events import Event
from hsmcore.failover.levels import EMERGENCY
from hsmcore.failover.router import Router

IDLE_S: Final = 10.0
"""Seconds for the emergency members to end their requests when the level is left."""


class EmergencyLevel:
    """Belongs to the event loop. `spawn` runs a coroutine that ends with the health monitor."""

    def __init__(self, router: Router, spawn: Callable[[Coroutine[Any, Any, None]], object]) -> None:
        self._router = router
        self._levels = router.levels
        self._spawn = spawn
        self._arming = False
        self._leaving = Scope()
        self._rearm_at = 0
        self._complaint = ""

    def supervise(self, now: int) -> None:
        """Enter or leave the level, if that is due."""
        endpoints = [endpoint for endpoint in self._levels.members if endpoint.level_name == EMERGENCY]
        if not endpoints:
            return
        wanted = self._levels.emergency_wanted(now)
        if self._levels.emergency_fault and now >= self._rearm_at:
            self._levels.emergency_failed("", now)
        elif wanted and not self._arming and any(endpoint.member is None for endpoint in endpoints):
            self._arming = True
            self._spawn(self._arm(endpoints))
        elif not wanted and not self._router.in_emergency and not self._leaving.is_open and not self._arming:
            left = [endpoint for endpoint in endpoints if endpoint.member is not None]
            if left:
                # Not spawned: if it were cancelled halfway, the end of a key would be told to nobody.
                self._leaving.start(self._leave(left), failed="the emergency level was not left")

    async def _arm(self, endpoints: list[Endpoint]) -> None:
        try:
            if not (await self._router.budget.begin()).usable:
                self._levels.emergency_used_up(True, "its budget or time is used up", monotonic_ns())
                return
            for endpoint in endpoints:
                if endpoint.member is None and not endpoint.drained:
                    version = await endpoint.start()
                    self._router.on_key(endpoint)
                    self._levels.events.append(
                        Event(
                            "emergency-entered",
                            None,
                            EMERGENCY,
                            endpoint.name,
                            self._levels.causes(endpoint.level),
                            _key(version),
                        )
                    )
                    self._levels.started(endpoint, version.public_key, monotonic_ns())
                    self._router.settle()
        except HsmError as error:
            if self._complaint != str(error):  # it is retried each second, and logged once
                self._complaint = str(error)
                get_logger().error("the emergency level cannot be started", error=str(error))
            self._rearm_at = monotonic_ns() + SECOND
            self._levels.emergency_failed(str(error.args[0]), monotonic_ns())
        finally:
            self._arming = False
            self._router.settle()

    async def _leave(self, endpoints: list[Endpoint]) -> None:
        try:
            for endpoint in endpoints:
                await self.destroy(endpoint)
        finally:
            self._router.settle()

    async def end(self) -> None:
        """Wait for members that are being stopped."""
        await self._leaving.finish()

    async def destroy(self, endpoint: Endpoint) -> None:
        """Stop an emergency member, which destroys its key, after its requests have ended."""
        version, member = endpoint.version, endpoint.member
        self._levels.stopped(endpoint, monotonic_ns())
        self._router.settle()
        if member is None:
            return
        try:
            async with asyncio.timeout(IDLE_S):
                await member.engine.idle()
        except TimeoutError:
            get_logger().error("an emergency member is ended in the middle of its work", member=endpoint.name)
        await endpoint.stop()
        details = _key(version) if version is not None else {}
        self._levels.events.append(
            Event("emergency-left", EMERGENCY, None, endpoint.name, "its key is destroyed", details)
        )
        self._router.settle()


def _key(version: KeyVersion) -> dict[str, Any]:
    return {"key_id": version.id, "public_key": version.public_key.hex()}
