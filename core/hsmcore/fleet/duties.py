"""What a host of a fleet does beside its lease: it has the witness compare log and database, and follows the operators'
orders."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Final, Protocol

from sqlalchemy import Connection, update

from hsmcore.base.log import get_logger
from hsmcore.base.scope import Scope, log_failure
from hsmcore.errors import HsmError
from hsmcore.fleet.orders import Order, Verb, fulfil, orders
from hsmcore.recovery.witness import Witness
from hsmcore.state import Store
from hsmcore.state.schema import FLEET_HOST
from hsmcore.state.seal import EARLIER

LOOKS: Final = 4
"""Looks in the life of a lease."""
FLOORS: Final = 20
"""Looks between two notes of the highest positions in the database."""
_NOTE: Final = 300
CERTIFICATE_SECONDS: Final = 3600.0
"""Seconds between two looks at the database's certificates."""


class Host(Protocol):
    """What the duties need of hsmcore.fleet.membership."""

    drained: bool
    """Whether the host claims no epoch, on an operator's word: `drain`."""

    @property
    def host(self) -> str: ...
    @property
    def state(self) -> str: ...
    @property
    def incident(self) -> int:
        """The number of the incident that is open, or 0."""

    async def claim(self, at_least: Mapping[str, int] | None = None, force: bool = False, reason: str = "") -> None: ...
    async def release(self, reason: str = "") -> None: ...
    def drain(self, on: bool) -> None: ...


_FAILED: Final = "a duty of the fleet's host has failed"


class Duties:
    """One host's. Belongs to one event loop. `ttl_ms`: of the lease."""

    def __init__(self, host: Host, store: Store, witness: Witness, ttl_ms: int) -> None:
        self._host, self._store, self._witness = host, store, witness
        self._seconds = ttl_ms / 1e3 / LOOKS
        self._answered = -1
        self._due = FLOORS
        self.certificates: Mapping[str, float] = {}
        """As Store.certificates, at the last look. Replaced, never changed; any thread may read it."""
        self._wake = asyncio.Event()
        self._scope = Scope()
        self._unsubscribe: Callable[[], object] = lambda: None

    async def begin(self) -> None:
        """Compare log and database before the host may claim anything, then go on by itself. What fails is tried
        again: until then nothing with a position is bound."""
        loop = asyncio.get_running_loop()

        def connected() -> None:
            self._witness.connected()
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(self._wake.set)

        def told(_scope: str, problem: str) -> None:
            if problem == EARLIER:
                self._witness.lost("its seal is an earlier one")
                with suppress(RuntimeError):
                    loop.call_soon_threadsafe(self._wake.set)

        ends = self._store.on_connect(connected), self._store.watch(told)
        self._unsubscribe = lambda: [end() for end in ends]
        try:
            for work in (self._watch, self._look_at_drain):
                try:
                    await work()
                except Exception as error:  # noqa: BLE001  # rows and records may hold anything; the next look may find them mended
                    log_failure(error, _FAILED)
        except BaseException:
            self._unsubscribe()
            raise
        # Two tasks: a claim may wait for the end of a lease, and must not keep an incident unanswered.
        self._scope.every(self._seconds, self._watch, _FAILED, wake=self._wake, at_once=False)
        self._scope.every(self._seconds, self._obey, _FAILED, at_once=False)
        self._scope.every(CERTIFICATE_SECONDS, self._look_at_certificates, _FAILED)

    async def close(self) -> None:
        """Stop. Idempotent."""
        self._unsubscribe()
        if self._scope.is_open:
            await self._scope.close()
            with suppress(HsmError):
                await self._witness.write_floors()

    async def _watch(self) -> None:
        if not self._witness.settled or self._host.incident not in (0, self._answered):
            await self._attend()
        self._due -= 1
        if self._due <= 0:
            self._due = FLOORS
            await self._witness.write_floors()

    async def _attend(self) -> None:
        self._answered = (await self._witness.attend()).number

    async def _look_at_certificates(self) -> None:
        self.certificates = await asyncio.get_running_loop().run_in_executor(None, self._store.certificates)

    async def _look_at_drain(self) -> dict[Verb, Order]:
        found = await self._store.run(lambda connection: orders(connection, self._host.host), turn=False)
        self._host.drain("drain" in found)
        return found

    async def _obey(self) -> None:
        found = await self._look_at_drain()
        if (drain := found.get("drain")) is not None and self._host.state in ("holder", "doubtful"):
            await self._host.release(drain.reason or "drained")
        if "release" in found:
            await self._follow(found["release"])
        if "claim" in found:
            await self._follow(found["claim"])

    async def _follow(self, order: Order) -> None:
        await self._store.run(lambda connection: fulfil(connection, order.verb, self._host.host))
        why = ""
        try:
            if order.verb == "release":
                await self._host.release(order.reason)
            elif self._host.drained:
                why = "it is drained"
            else:
                await self._host.claim(order.at_least or None, order.force, order.reason)
        except HsmError as error:
            why = str(error.args[0])
        if why:
            get_logger().warning("an order was not followed", order=order.verb, reason=why)
            await self._store.run(partial(self._say, text=f"{order.verb}: {why}"))

    def _say(self, connection: Connection, *, text: str) -> None:
        note = "".join(c if c.isprintable() else " " for c in text)[:_NOTE]
        connection.execute(update(FLEET_HOST).where(FLEET_HOST.c.name == self._host.host).values(note=note))
