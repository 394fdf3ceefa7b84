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
from hsmcore.errors import HsmError, NotHolder
from hsmcore.fleet.entry import RENEWALS
from hsmcore.fleet.orders import Verb, order
from hsmcore.recovery.witness import Witness
from hsmcore.state import Store
from hsmcore.state.schema import FLEET_HOST
from hsmcore.state.seal import EARLIER

FLOORS: Final = 20
"""Looks between two notes of the highest positions in the database."""
_NOTE: Final = 300
CERTIFICATE_SECONDS: Final = 3600.0
"""Seconds between two looks at the database's certificates."""
_FAILED: Final = "a duty of the fleet's host has failed"


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

    async def claim(self, *, force: bool = False, reason: str = "") -> None: ...
    async def release(self, reason: str = "") -> None: ...
    def drain(self, on: bool) -> None: ...


class Duties:
    """One host's. Belongs to one event loop. `ttl_ms`: of the lease."""

    def __init__(self, host: Host, store: Store, witness: Witness, ttl_ms: int) -> None:
        self._host, self._store, self._witness = host, store, witness
        self._seconds = ttl_ms / 1e3 / RENEWALS
        self._answered = -1
        self._due = FLOORS
        self._heard_of = store.incarnation
        """Of the server that the lease's connection has heard last."""
        self.certificates: Mapping[str, float] = {}
        """As Store.certificates, at the last look. Replaced, never changed; any thread may read it."""
        self._wake = asyncio.Event()
        self._scope, self._following = Scope(), Scope()
        self._unsubscribe: Callable[[], object] = lambda: None

    async def begin(self) -> None:
        """Compare log and database before the host may claim anything, then go on by itself. What fails is tried
        again: until then nothing with a position is bound."""
        self._loop = asyncio.get_running_loop()

        def told(_scope: str, problem: str) -> None:
            if problem == EARLIER:
                self._witness.lost("its seal is an earlier one")
                self._attend_soon()

        ends = self._store.on_connect(self.connected), self._store.watch(told)
        self._unsubscribe = lambda: [end() for end in ends]
        try:
            try:
                await self._watch()
            except Exception as error:  # noqa: BLE001  # rows and records may hold anything; the next look may find them mended
                log_failure(error, _FAILED)
        except BaseException:
            self._unsubscribe()
            raise
        self._scope.every(self._seconds, self._watch, _FAILED, wake=self._wake, at_once=False)
        self._scope.every(CERTIFICATE_SECONDS, self._look_at_certificates, _FAILED)

    def connected(self) -> None:
        """Another server answers, or the same one began again: compare. Any thread."""
        self._witness.connected()
        self._attend_soon()

    def _attend_soon(self) -> None:
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._wake.set)

    async def close(self) -> None:
        """Stop. Idempotent."""
        self._unsubscribe()
        self._unsubscribe = lambda: None
        await self._following.close()
        if self._scope.is_open:
            await self._scope.close()
            with suppress(HsmError):
                await self._witness.write_floors()

    async def _watch(self) -> None:
        if self._heard_of != self._store.incarnation:
            await self._witness.standing()  # the store's connection may wait for work, and be the former server's
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

    def heard(self, orders: Mapping[Verb, str], incarnation: str) -> None:
        """Follow the orders that a look has found. One after the other, and beside the looks: a claim may wait for the
        end of a lease. `incarnation`: of the server that answered, as Store.incarnation."""
        if self._heard_of != incarnation:
            self._heard_of = incarnation
            self._wake.set()
        self._host.drain("drain" in orders)
        gives_up = "drain" in orders and self._host.state in ("holder", "doubtful")
        if not self._following.is_open and (gives_up or orders.keys() - {"drain"}):
            self._following.start(self._obey(orders), failed=_FAILED)

    async def _obey(self, orders: Mapping[Verb, str]) -> None:
        if "drain" in orders:
            with suppress(NotHolder):
                await self._host.release(orders["drain"] or "drained")
        for verb, reason in orders.items():
            if verb != "drain":
                await self._follow(verb, reason)

    async def _follow(self, verb: Verb, reason: str) -> None:
        # Withdrawn first: a later life must not follow it once more.
        await self._store.run(partial(order, host=self._host.host, verb=verb, reason=None))
        why = ""
        try:
            if verb == "release":
                await self._host.release(reason)
            elif self._host.drained:
                why = "it is drained"
            else:
                await self._host.claim(force=verb == "seize", reason=reason)
        except HsmError as error:
            why = str(error.args[0])
        if why:
            asked = "claim" if verb == "seize" else verb
            get_logger().warning("an order was not followed", order=asked, reason=why)
            await self._store.run(partial(self._say, text=f"{asked}: {why}"))

    def _say(self, connection: Connection, *, text: str) -> None:
        note = "".join(c if c.isprintable() else " " for c in text)[:_NOTE]
        connection.execute(update(FLEET_HOST).where(FLEET_HOST.c.name == self._host.host).values(note=note))
