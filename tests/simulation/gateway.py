"""A gateway over one host, with its clients, over a simulated network."""

from __future__ import annotations

import asyncio
import random
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any, ClassVar, Final

from tests.simulation.clock import SECOND
from tests.simulation.gateway_script import FLOOD_UID, Entry, GatewayScript, Neighbour, NetFault, Order
from tests.simulation.law import Answer
from tests.simulation.law_gateway import GATEWAY_RULES, GatewayFacts
from tests.simulation.network import NetLoop, uid
from tests.simulation.script import Intent
from tests.simulation.world import World, _end, config_of, folder

from hsmcore.errors import HsmError
from hsmcore.gateway.client.client import Client
from hsmcore.gateway.gateway import RunningGateway, running, settings_of
from hsmcore.gateway.wire import messages as wire
from hsmcore.state import Desired, Store

_ENDS_NS: Final = 8 * SECOND
"""After the last caller, everything that is open has met its deadline."""
_STAYS_SECONDS: Final = 2.0
_SOCKET: Final = "sign.sock"
_LOOK_SECONDS: Final = 0.05
_FLOOD_IN_FLIGHT: Final = 8


class Process:
    """A program that signs through the gateway. Its client may be another one later."""

    def __init__(self, world: GatewayWorld, entry: Entry, number: int) -> None:
        self.world, self.entry, self.number = world, entry, number
        self.client: Any = None
        self.clients: list[Any] = []
        self.ready = asyncio.Event()

    async def begin(self) -> None:
        """Connect, as often as it takes."""
        self.ready.clear()
        while True:
            client = Client(f"unix:{_SOCKET}", connections=self.entry.connections, program="simulated")
            try:
                await client.initialize()
            except HsmError as error:
                self.world.tell(self.name, f"cannot connect: {type(error).__name__}")
                await asyncio.sleep(0.1)
            else:
                break
        self.client = client
        self.clients.append(client)
        self.ready.set()

    async def end(self) -> None:
        client = self.client
        self.world.tell(self.name, "closes")
        await client.close()
        self.world.tell(self.name, "is closed")
        outbox = client._outbox
        left = self.world.facts.left
        left["credits of a client"] = left.get("credits of a client", 0) + outbox._out
        left["futures of a client"] = left.get("futures of a client", 0) + len(list(outbox.unsettled()))
        left["links of a client"] = left.get("links of a client", 0) + len(client._connections.links)

    async def live(self, begin: int, intents: list[Intent]) -> None:
        uid.set(self.entry.uid)
        await self.begin()
        leaving = asyncio.ensure_future(self._leave(begin))
        await asyncio.gather(*(self.world._call(self, begin, one) for one in intents))  # type: ignore[arg-type]
        await leaving
        if self.number % 2:  # it stays for a while, and what it has asked for is answered
            await asyncio.sleep(_STAYS_SECONDS)
        await self.end()

    async def _leave(self, begin: int) -> None:
        for at, number in sorted(self.world.gateway.leaves):
            if number == self.number:
                await asyncio.sleep((begin + at - self.world.clock.ns) / SECOND)
                await self.end()
                await self.begin()

    @property
    def name(self) -> str:
        return f"{self.entry.name}/{self.number}"


class _Raw(asyncio.Protocol):
    """A neighbour's connection: it reads all that comes, and says what it was told to say."""

    def __init__(self, said: bytes) -> None:
        self.said = said
        self.lost = asyncio.get_running_loop().create_future()
        self.transport: Any = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        transport.write(self.said)

    def connection_lost(self, _error: Exception | None) -> None:
        if not self.lost.done():
            self.lost.set_result(None)


class GatewayWorld(World):
    LOOP: ClassVar = NetLoop
    RULES: ClassVar = GATEWAY_RULES

    def __init__(self, script: GatewayScript) -> None:
        super().__init__(script)
        self.gateway = script
        self.path = str(folder() / "state" / _SOCKET)
        self.net = self.loop.network  # type: ignore[attr-defined]
        self.net.tell = self.tell
        before = self.facts
        self.facts: GatewayFacts = GatewayFacts(script, self.ledger, before.keys)
        for device in self.devices.values():
            device.touched = self.facts.touched
        self.served: RunningGateway | None = None
        self.entries = list(script.entries)
        self.names: dict[str, str] = {}
        """Of members, as operators name them."""
        self.refused: dict[int, int] = {}
        self.net.refuses = lambda whose: self.refused.get(whose, 0) > self.clock.ns

    async def _life(self) -> None:
        self.tell("gateway", f"starts; turns are {self.chance.order.kind}")
        stack = await self._start()
        begin = self.clock.ns
        for fault in self.script.faults:
            self._strike(replace(fault, at_ns=begin + fault.at_ns))
        for one in self.gateway.net:
            self._break(replace(one, at_ns=begin + one.at_ns))
        for at, lasts in self.script.stalls:
            self.loop.call_later(at / SECOND, self._stall, lasts)
        processes = [Process(self, entry, number) for number, entry in enumerate(self.gateway.processes)]
        lives = [
            process.live(begin, [one for one in self.script.intents if one.number % len(processes) == process.number])
            for process in processes
        ]
        callers = asyncio.gather(*lives)
        others = asyncio.gather(*(self._disturb(begin, one) for one in self.gateway.neighbours))
        reloads = asyncio.gather(*(self._reload(begin, *one) for one in self.gateway.reloads))
        orders = asyncio.gather(*(self._order(begin, one) for one in self.gateway.orders))
        for at, gap in self.gateway.restarts:
            await asyncio.sleep((begin + at - self.clock.ns) / SECOND)
            await self._stop(stack)
            await asyncio.sleep(gap / SECOND)
            stack = await self._start()
        await callers
        await others
        await reloads
        await orders
        await self._settle()
        await self._stop(stack)
        self._count_connections()

    def _configs(self) -> dict[str, Any]:
        rules = {
            one.name: {"uid": [one.uid], "keys": ["default"], "inFlight": one.in_flight, "weight": one.weight}
            for one in self.entries
        }
        rules["flood"] = {"uid": [FLOOD_UID], "keys": ["default"], "inFlight": _FLOOD_IN_FLIGHT}
        block = {"listen": [f"unix:{self.path}"], "clients": rules, "maxTimeoutMs": 5000, "drainMs": 2000}
        if self.gateway.in_flight is not None:
            block["inFlight"] = self.gateway.in_flight
        edits = self.gateway.edits[: len(self.facts.stops)]
        failover = {name: value for edit in ({}, *edits[-1:]) for name, value in edit.items()}
        script = replace(self.script, failover={**self.script.failover, **failover})
        return {"default": config_of(script, gateway=block)}

    async def _order(self, begin: int, order: Order) -> None:
        """As the command line: it writes to the state store, also while no gateway runs."""
        await asyncio.sleep((begin + order.at_ns - self.clock.ns) / SECOND)
        rules = next(iter(self._configs().values()))
        name = f"{order.kind}:{self.names[order.member]}" if order.member else order.kind
        store = await Store.open(rules.key_manager.state_place, rules.state_secret)
        try:
            await Desired(store).set(name, order.value, "simulated")
        finally:
            await store.close()
        self.facts.orders.append((self.clock.ns, order))
        self.tell("operator", f"{name}: {order.value}")

    async def _start(self) -> AsyncExitStack:
        configs = self._configs()
        stack = AsyncExitStack()
        self.served = await stack.enter_async_context(running(configs, settings_of(configs)))
        self.tell("gateway", "serves")
        members = self.served.managers["default"].members()
        self.names = {one.name: member.name for one, member in zip(self.script.members, members, strict=True)}
        return stack

    async def _reload(self, begin: int, at: int, place: int, in_flight: int) -> None:
        """The operator has changed a client's rules."""
        await asyncio.sleep((begin + at - self.clock.ns) / SECOND)
        self.entries[place] = replace(self.entries[place], in_flight=in_flight)
        if self.served is None:
            return
        configs = self._configs()
        followed = await self.served.reload(lambda: settings_of(configs))
        self.facts.reloads.append(self.clock.ns)
        self.tell("gateway", f"follows {self.entries[place].name} with {in_flight}: {followed}")

    async def _stop(self, stack: AsyncExitStack) -> None:
        served, self.served = self.served, None
        assert served is not None
        self.tell("gateway", "drains")
        self.facts.stops.append(self.clock.ns)
        self.facts.drained.append(await served.drain())
        self.tell("gateway", f"has drained: {self.facts.drained[-1]}")
        self.facts.drained_ns.append(self.clock.ns)
        await stack.aclose()
        self.facts.starts.append(self.clock.ns)
        self.tell("gateway", "has ended")
        self._left("places of connections", len(served.server._gate._open))
        self._left("connections of the server", len(served.server.connections))

    def _left(self, what: str, count: int) -> None:
        self.facts.left[what] = self.facts.left.get(what, 0) + count

    async def _settle(self) -> None:
        """No client is there any more: nothing is open soon."""
        assert self.served is not None
        until, server = self.clock.ns + _ENDS_NS, self.served.server
        while (server.desk.open or server.connections) and self.clock.ns < until:  # noqa: ASYNC110  # nobody tells
            await asyncio.sleep(_LOOK_SECONDS)
        self._left("connections that no client has", len(server.connections))
        self._left("open requests", server.desk.open)
        for queue in server.desk.queues.values():
            self._left("turns", queue.turns.under_way + queue.turns.waiting)
        for client in server.desk.directory.clients.values():
            self._left("connections of a client", client.connections)
            self._left("requests in sessions", sum(len(one.open) for one in client.sessions._sessions.values()))
            for counter in server.desk.counters(client):
                self._left("held requests", sum(len(one.held) + len(one.waiting) for one in counter.accounts))

    def _count_connections(self) -> None:
        self._left("sockets", sum(not link.ended for link in self.net.links))
        self.facts.seen = [link.seen for link in self.net.links]

    # ---- the network -----------------------------------------------------------------------------------------------

    def _break(self, fault: NetFault) -> None:
        self.facts.net.append(fault)
        self.loop.happens(fault.at_ns - self.clock.ns, lambda: self._begin_fault(fault))

    def _begin_fault(self, fault: NetFault) -> None:
        self.tell("net", f"FAULT {fault}")
        until = self.clock.ns + fault.lasts_ns
        if fault.kind == "refused":
            self.refused[fault.uid] = until
        elif fault.kind == "slow":
            self.net.slower = 30
            self.loop.happens(fault.lasts_ns, self._usual)
        for link in self.net.open_of(fault.uid):
            ways = {"up": [link.up], "down": [link.down], "both": [link.up, link.down]}[fault.way]
            for way in ways:
                if fault.kind == "silent":
                    way.silent_until = until
                elif fault.kind == "cut":
                    way.breaks_at = way.passed + fault.bytes
            if fault.kind == "cut" and not fault.bytes:
                link.break_()

    def _usual(self) -> None:
        self.net.slower = 1

    # ---- callers ---------------------------------------------------------------------------------------------------

    async def _ask(self, manager: Any, attempt: Any, wanted: list[bytes], answers: list[Answer]) -> None:
        """`manager`: a process."""
        client = manager.client
        kind = "many" if len(wanted) > 1 else attempt.kind
        try:
            if kind == "many":
                found = await client.sign_many(wanted, attempt.timeout, return_exceptions=True)
            elif kind == "receipt":
                found = [await client.sign_with_receipt(wanted[0], attempt.timeout)]
            else:
                found = [await client.sign(wanted[0], attempt.timeout)]
        except Exception as error:  # noqa: BLE001  # the law says which may come
            found = [error] * len(answers)
        for one, result in zip(answers, found, strict=True):
            _end(one, result, self.clock.ns)

    async def _disturb(self, begin: int, one: Neighbour) -> None:
        await asyncio.sleep((begin + one.at_ns - self.clock.ns) / SECOND)
        uid.set(one.uid)
        self.tell("other", f"{one.kind} of {one.uid}, {one.count}")
        said = _said(one)
        try:
            _, raw = await self.loop.create_unix_connection(lambda: _Raw(said), _SOCKET)
        except OSError:
            return
        await asyncio.wait([raw.lost], timeout=2.0)
        raw.transport.abort()
        await raw.lost
        self.tell("other", f"{one.kind} of {one.uid} is gone")


def _said(one: Neighbour) -> bytes:
    rng = random.Random(f"neighbour/{one}")
    hello = wire.hello(rng.randbytes(wire.NONCE_BYTES), "flood")
    name = b"flood %d %d" % (one.at_ns, one.count)
    signs = [wire.sign(at + 1, wire.Sign("", 1000, None, 0, name + b"/%d" % at)) for at in range(one.count)]
    if one.kind == "flood":
        return hello + b"".join(signs)
    if one.kind == "batches":
        parts = [[name + b"/%d/%d" % (at, part) for part in range(8)] for at in range(one.count // 8)]
        return hello + b"".join(
            wire.sign_many(at + 1, wire.SignMany("", 1000, 0, messages)) for at, messages in enumerate(parts)
        )
    if one.kind == "verify":
        return hello + b"".join(wire.verify(at + 1, wire.Verify("", bytes(64), name)) for at in range(one.count))
    if one.kind in ("garbage", "stranger"):
        good = hello + b"".join(signs)
        at = rng.randrange(len(good))
        return good[:at] + rng.randbytes(1 + rng.randrange(one.count)) + good[at:]
    return hello[: rng.randrange(1, len(hello))] if one.kind == "half" else b""
