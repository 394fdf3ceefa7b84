"""A fleet: three hosts, each a real KeyManager with a device of its own, before one database; their callers; what goes
wrong; and what happened.

Read fleet_script.py first, then this, then server.py and database.py.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, Final

from tests.simulation import clock, server, threads
from tests.simulation.chance import Chance
from tests.simulation.clock import SECOND, Clock
from tests.simulation.device import Device, Fault, Key, Ledger
from tests.simulation.fleet_journal import Lines, Log
from tests.simulation.fleet_network import Network
from tests.simulation.fleet_operator import switch_over
from tests.simulation.fleet_script import ASKS, HOSTS, Ask, Doing, FleetScript
from tests.simulation.hosts import HostsLoop, Process, bury
from tests.simulation.law import SHUT_NS, Facts
from tests.simulation.law_fleet import FleetFacts, HostAnswer, broken_by_fleet
from tests.simulation.loop import Stuck
from tests.simulation.script import MS
from tests.simulation.server import ALONE, SHARED, Claimed, Server, Session
from tests.simulation.world import Outcome, folder, prepare

from hsmcore.config import load
from hsmcore.errors import DoubleSign, HsmError, PolicyRefused
from hsmcore.manager.key_manager import KeyManager
from hsmcore.state import positions

CHAIN: Final = "default/block"
SECRET: Final = "HSMCORE_SIMULATED_FLEET_SECRET"
os.environ[SECRET] = "a secret of a simulated fleet, of 32 bytes and more"
_HEAD: Final = b"\xffhsmcore\x01\x01\x07default"
_PID: Final = f":{os.getpid()}"
_DEVICE_NS: Final = 300_000
FAR: Final = 40
_RETRY: Final = 0.5
"""Seconds from a start that failed to the next one."""
_SPREAD_NS: Final = 400 * MS
"""What a block takes to another host, at most."""
_DATABASE: Final = frozenset({"bounce", "fail over", "lose", "alone", "hold", "forge"})
"""What happens to the database: one at a time."""


class Host:
    """One host: its device and its disk outlive its processes."""

    def __init__(self, name: str, device: Device, facts: Facts) -> None:
        self.name, self.device, self.facts = name, device, facts
        self.lines = Lines()
        self.process: Process | None = None
        self.manager: KeyManager | None = None
        self.lives, self.ending = 0, False
        self.released: dict[int, bytes] = {}
        """The blocks that it has signed, by position."""
        self.asked: dict[int, HostAnswer] = {}
        """Calls under way."""


class Fleet:
    """Runs a script once."""

    def __init__(self, script: FleetScript) -> None:
        self.script = script
        self.chance = Chance(script.seed)
        self.clock = Clock()
        self.loop = HostsLoop(self.chance, self.clock)
        self.ledger = Ledger()
        self.begin_ns = self.clock.ns
        self.outcome = Outcome()
        self.network = Network(self.loop, dict(zip(HOSTS, script.trip_ns, strict=True)))
        self.server = Server(self.loop, self.network)
        self.server.tell, self.server.on_claim = self.tell, self._claimed
        key = Key.of("first")
        keys = {"first": key.public_key}
        self.hosts: dict[str, Host] = {}
        self.processes: list[Process] = []
        self.killed: list[Process] = []
        for name in HOSTS:
            device = Device(f"{name}0", [key], _DEVICE_NS, self.chance, self.clock, self.ledger)
            facts = Facts(script, self.ledger, keys)  # type: ignore[arg-type]  # the rules that ask for more are not for fleets
            device.tell, device.touched = self.tell, facts.touched
            self.hosts[name] = Host(name, device, facts)
        self.facts = FleetFacts(
            script, {name: host.facts for name, host in self.hosts.items()}, self.server.bound, self.server.claimed
        )
        self.facts.begin_ns = self.begin_ns
        self.head = 0
        """The highest position that was published."""
        self.changing = False
        """Whether something happens to the database."""

    def run(self) -> Outcome:
        """Run it, and judge it."""
        prepare(self.chance, self.ledger, {host.device.name: host.device for host in self.hosts.values()})
        with self._running():
            try:
                self.loop.run_until_complete(self._life())
            except (Stuck, HsmError) as error:
                self.outcome.broken.append(f"alive: {type(error).__name__}: {error.args[0]}")
            else:
                self._note_the_end()
        if not self.outcome.broken:
            self.outcome.broken = [what.replace(_PID, ":1") for what in broken_by_fleet(self.facts)]
        return self.outcome

    @contextmanager
    def _running(self) -> Iterator[None]:
        clock.run(self.clock)
        threads.worlds[:] = [self.loop]
        server.servers[:] = [self.server]
        try:
            yield
        finally:
            threads.worlds.clear()
            server.servers.clear()
            clock.rest()
            for process in self.processes:
                self.loop.kill(process)
                bury(process)
            for task in asyncio.all_tasks(self.loop):
                task._log_destroy_pending = False
            self.loop.close()

    def tell(self, who: str, what: str) -> None:
        what = what.replace(_PID, ":1")  # holders are named by it, and it is another one in each process
        self.outcome.story.append(f"{self.clock.shown:11.6f} {who:>8} {what}")

    # ---- life ------------------------------------------------------------------------------------------------------

    async def _life(self) -> None:
        self.tell("fleet", f"begins; turns are {self.chance.order.kind}")
        for host, at in zip(self.hosts.values(), self.script.starts_ns, strict=True):
            self.loop.call_later(at / SECOND, self._start, host)
        for doing in self.script.doings:
            self.loop.call_later(doing.at_ns / SECOND, self._do, doing)
        for ask in self.script.asks:
            self.loop.call_later(ask.at_ns / SECOND, self._ask, ask)
        await asyncio.sleep(self.script.seconds)
        self.facts.closing_ns = self.clock.ns
        for host in self.hosts.values():
            await self._end(host)

    def _start(self, host: Host) -> None:
        host.lives += 1
        process = host.process = Process(host.name, host.lives)
        self.processes.append(process)
        self.tell(process.name, "starts")
        self.loop.begin(process, self._live(host, process))

    async def _live(self, host: Host, process: Process) -> None:
        while True:
            manager = KeyManager(self.config_of(host.name), audit=Log(host.lines))
            try:
                await manager.initialize()
            except HsmError as error:
                self.tell(process.name, f"does not open: {type(error).__name__}: {error.args[0]}")
                await asyncio.sleep(_RETRY)
                continue
            host.manager = manager
            manager.on("fleet", partial(self._noted, process))
            self.tell(process.name, "is open")
            self.facts.opened.append((self.clock.ns, process.name))
            return

    def config_of(self, name: str) -> Any:
        """The configuration of a host."""
        return config_of(self.script, name)

    def _steal(self, host: Host, lasts: int, rng: random.Random) -> None:
        """Of thief.py."""
        raise NotImplementedError

    def _noted(self, process: Process, details: Any) -> None:
        said = f"{details['state']} of epoch {details['epoch']}{' by force' if details.get('forced') else ''}"
        reason = details["reason"]
        self.tell(process.name, f"{details['record'] or 'fleet'}: {said}{reason and f', {reason}'}")
        if details.get("forced"):
            self.facts.forced.add(details["epoch"])

    def _claimed(self, claim: Claimed) -> None:
        for host in self.hosts.values():
            fleet = None if host.manager is None else host.manager.fleet
            if fleet is not None and fleet._machine.instance != claim.holder and fleet.lease.until > self.clock.ns:
                left = fleet.lease.until - self.clock.ns
                self.facts.leased.append((self.clock.ns, claim.epoch, claim.host, host.name, left))

    async def _end(self, host: Host) -> None:
        """End a process in order."""
        process, manager = host.process, host.manager
        if process is None:
            return
        self.tell(process.name, "closes")
        host.facts.closed_ns = self.clock.ns
        if manager is not None:
            over = self.loop.create_future()
            process.ends.append(lambda: over.done() or over.set_result(None))
            closing = self.loop.begin(process, manager.close())
            closing.add_done_callback(lambda _: over.done() or over.set_result(None))
            await over
            if not process.alive:
                return  # it was killed in between
            await asyncio.sleep(SHUT_NS / SECOND)
            left = [task for task in asyncio.all_tasks(self.loop) if getattr(task, "process", None) is process]
            self.facts.left["tasks"] = self.facts.left.get("tasks", 0) + len(left)
            if closing.exception() is not None:
                self.facts.left[f"error of an end: {closing.exception()!r}"] = 1
            if not process.alive:
                return
        self.tell(process.name, "is closed")
        self._gone(host)

    def _gone(self, host: Host) -> None:
        process, host.process, host.manager = host.process, None, None
        assert process is not None
        for answer in host.asked.values():
            answer.ended_ns, answer.ends, answer.killed = self.clock.ns, 1, True
        host.asked.clear()
        if process.still:
            host.facts.stalls[-1] = host.facts.stalls[-1][0], self.clock.ns
        self.loop.kill(process)

    def _note_the_end(self) -> None:
        facts = self.facts
        corpses = sum(len(process.tasks) for process in self.processes)
        facts.left["tasks of the world"] = len(asyncio.all_tasks(self.loop)) - corpses
        facts.left["errors that no one took"] = len(self.loop.failures)
        facts.left["transactions"] = sum(bool(one.turn) for one in self.server.sessions)
        bound = self.server.rows("SELECT domain, position, digest FROM bound")
        facts.rows = {(domain, position): digest for domain, position, digest in bound}
        facts.floors = dict(self.server.rows("SELECT name, floor FROM watermark"))

    # ---- what goes wrong -------------------------------------------------------------------------------------------

    def _do(self, doing: Doing) -> None:
        holder = self.server.holder[2]
        rng = random.Random(f"{self.script.seed}/{doing.dice}")
        host = self.hosts[doing.host or holder or HOSTS[doing.dice % 3]]
        if doing.what in _DATABASE:
            if self.changing:
                return
            self.changing = True
        self.tell("fleet", f"FAULT {doing}: {host.name}")
        self.facts.doings.append(replace(doing, at_ns=self.clock.ns, host=host.name))
        getattr(self, _DOES[doing.what].__name__)(host, doing.lasts_ns, rng)

    def _later(self, after_ns: int, work: Any, *arguments: Any) -> None:
        self.loop.happens_to(None, after_ns, partial(work, *arguments))

    def _kill(self, host: Host, lasts: int, rng: random.Random) -> None:
        del rng
        if host.process is not None:
            self.tell(host.process.name, "is killed")
            self.killed.append(host.process)
            self.facts.kills.append((self.clock.ns, host.name, self.server.holder[2] == host.name))
            self._gone(host)
            self._later(lasts, self._start, host)

    def _stall(self, host: Host, lasts: int, rng: random.Random) -> None:
        del rng
        process = host.process
        if process is None or process.still:
            return
        host.facts.stalls.append((self.clock.ns, self.clock.ns + lasts))
        self.loop.freeze(process)
        self._later(lasts, self._go_on, process)

    def _go_on(self, process: Process) -> None:
        if process.alive and process.still:
            self.tell(process.name, "goes on")
            self.loop.go_on(process)

    def _restart_in_order(self, host: Host, lasts: int, rng: random.Random) -> None:
        del rng
        if host.process is not None and host.manager is not None and not host.process.still and not host.ending:
            host.ending = True
            self.loop.create_task(self._ends_and_starts(host, lasts))

    async def _ends_and_starts(self, host: Host, lasts: int) -> None:
        process = host.process
        await self._end(host)
        host.ending = False
        if host.process is None and process not in self.killed:
            self._later(lasts, self._start, host)

    def _part(self, host: Host, lasts: int, rng: random.Random) -> None:
        both: list[tuple[Any, ...]] = [("requests", "replies"), ("requests",), ("replies",)]
        self.network.hold(host.name, rng.choice(both), self.clock.ns + lasts)

    def _silence(self, host: Host, lasts: int, rng: random.Random) -> None:
        del rng
        self.network.silence(host.name, self.clock.ns + lasts)

    def _copy(self, host: Host, lasts: int, rng: random.Random) -> None:
        """A copy of the process renews once. The process is to find that out; then an operator starts another one."""
        process, manager = host.process, host.manager
        if process is None or manager is None or manager.fleet is None or not manager.fleet._machine.epoch:
            return
        if self.server.copy_renews(manager.fleet._machine.instance):
            self.facts.copied.append((self.clock.ns, process.name))
            self._later(2 * self.script.ttl_ms * MS, self._end_of_copy, host, process, lasts, rng)

    def _end_of_copy(self, host: Host, process: Process, lasts: int, rng: random.Random) -> None:
        if host.process is process:
            self._kill(host, lasts, rng)

    def _slow(self, host: Host, lasts: int, rng: random.Random) -> None:
        self.network.slow_ns[host.name] = rng.randrange(5 * MS, 300 * MS)
        self._later(lasts, self.network.slow_ns.pop, host.name, 0)

    def _cut(self, host: Host, lasts: int, rng: random.Random) -> None:
        del lasts, rng
        for session in [one for one in self.server.sessions if one.process.host == host.name]:
            self.server.drop(session)

    def _mute(self, host: Host, lasts: int, rng: random.Random) -> None:
        del lasts, rng
        self.server.mute.add(host.name)

    def _bounce(self, host: Host, lasts: int, rng: random.Random) -> None:
        del host, rng
        self.server.stops()
        self._later(lasts, self._starts, False, False)

    def _fail_over(self, host: Host, lasts: int, rng: random.Random) -> None:
        del host, rng
        self.server.stops()
        self._later(lasts, self._starts, True, False)

    def _lose(self, host: Host, lasts: int, rng: random.Random) -> None:
        """What was confirmed since now will be lost, but for what the audit logs say."""
        del host
        begun = self.clock.ns
        self.server.lags()

        def dies() -> None:
            self.tell("database", "is lost, and a standby that lagged is promoted")
            self.server.stops()
            self._later(down := rng.randrange(100 * MS, 2 * SECOND), self._starts, True, True)
            self.facts.losses.append((begun, self.clock.ns + down))

        self._later(lasts, dies)

    def _hold(self, host: Host, lasts: int, rng: random.Random) -> None:
        del host
        self.loop.create_task(switch_over(self, lasts, rng))

    def _starts(self, promoted: bool, lost: bool) -> None:
        self.server.starts(promoted=promoted, lost=lost)
        self.tell("database", f"runs, on timeline {self.server.timeline}")
        self.changing = False

    def _alone(self, host: Host, lasts: int, rng: random.Random) -> None:
        """Commits wait for a standby that does not answer. Some waits are cancelled; then it answers, or takes the
        place of the server, without those."""
        del host
        self.server.lags()
        self.server.waits(True)
        for _ in range(rng.choice((0, 1, 3))):
            self._later(rng.randrange(lasts), self.server.cancel)
        promotes = rng.random() < 0.5

        def ends() -> None:
            if promotes:
                self.server.stops()
                self._later(rng.randrange(100 * MS, 2 * SECOND), self._starts, True, True)
            else:
                self.changing = False
            self.server.waits(False)

        self._later(lasts, ends)

    def _device(self, host: Host, lasts: int, rng: random.Random) -> None:
        kind: Any = rng.choice(("gone", "hang", "slow", "error"))
        failure = ("C_Sign", "SESSION_LOST") if kind == "error" else ("", "")
        fault = Fault(self.clock.ns, lasts, host.device.name, kind, 1.0, failure, 1000)
        host.device.faults.append(fault)
        host.facts.faults.append(fault)

    def _clock(self, host: Host, lasts: int, rng: random.Random) -> None:
        del host, lasts
        self.server.wall_ahead = rng.choice((-1, 1)) * rng.randrange(600 * SECOND)

    def _claim(self, host: Host, lasts: int, rng: random.Random) -> None:
        del lasts, rng
        if host.manager is not None and host.process is not None:
            self.loop.begin(host.process, self._ordered(host.manager, "claim", force=True, reason="the script says so"))

    def _late(self, host: Host, lasts: int, rng: random.Random) -> None:
        """Binds are held when they have read who holds the epoch, while another host claims it by force, and binds.
        Only what they have locked keeps the claim from coming before their end: their position is so far ahead that no
        row of the other one is in its way."""
        del lasts
        other = self.hosts[rng.choice([name for name in HOSTS if name != host.name])]
        number = ASKS + rng.randrange(1 << 30) * 8
        held = rng.randrange(200 * MS, 900 * MS)
        self.network.hold(host.name, ("replies",), self.clock.ns + held)
        for at in range(2):
            self._ask(Ask(number + at, 0, host.name, "far", 3.0, dice=at))
        self._later(rng.randrange(20 * MS), self._claim, other, 0, rng)
        for at in range(2, 6):
            ask = Ask(number + at, 0, other.name, "next", 1.0)
            self._later(rng.randrange(held), self._ask, ask)

    def _floor(self, host: Host, lasts: int, rng: random.Random) -> None:
        """An operator raises the floor, a few positions behind the highest one, from this host."""
        del lasts
        [(high,)] = self.server.rows("SELECT coalesce(max(high), -1) FROM watermark")
        if host.manager is not None and host.process is not None and high > 0:
            self.loop.begin(host.process, self._raise(host.manager, max(high - rng.randrange(4), 0)))

    async def _raise(self, manager: KeyManager, floor: int) -> None:
        assert manager.fleet is not None
        raised = partial(positions.raise_floor, domain=CHAIN, floor=floor, reason="the script says so")
        try:
            await manager.fleet._store.run(raised)
        except HsmError as error:
            self.tell("fleet", f"the floor {floor} is refused: {type(error).__name__}")
        else:
            self.facts.raised.append((self.clock.ns, floor))

    def _forge(self, host: Host, lasts: int, rng: random.Random) -> None:
        del host, rng
        ends = self.server.forge()

        def over() -> None:
            ends()
            self.changing = False

        self._later(lasts, over)

    def _release(self, host: Host, lasts: int, rng: random.Random) -> None:
        del lasts, rng
        if host.manager is not None and host.process is not None:
            self.loop.begin(host.process, self._ordered(host.manager, "release"))

    async def _ordered(self, manager: KeyManager, verb: str, **said: Any) -> None:
        if manager.fleet is None:
            return
        try:
            await getattr(manager.fleet, verb)(**said)
        except HsmError as error:
            self.tell("fleet", f"the {verb} is refused: {type(error).__name__}")

    def _busy(self, host: Host, lasts: int, rng: random.Random) -> None:
        """A transaction of another program has a lock."""
        del host
        other = Session(Process("other", 0), 0, 0)
        other.turn, other.watched = 1, True  # its transactions may be idle for long
        name = rng.choice(("turn", "fleet"))

        def has() -> Any:
            yield from self.server.lock(other, name, SHARED if rng.random() < 0.3 else ALONE)
            self._later(lasts, self.server.end, other)

        self.server.sessions[other] = None
        self.server.receive(other, has, lambda _answer: None)

    # ---- callers ---------------------------------------------------------------------------------------------------

    def _ask(self, ask: Ask) -> None:
        host = self.hosts[ask.host or self.server.holder[2] or HOSTS[ask.dice % 3]]
        process, manager = host.process, host.manager
        if process is None or manager is None or manager.fleet is None:
            return
        message, position = self._payload(ask, host)
        answer = HostAnswer(
            ask.number, 0, message, self.clock.ns, int(ask.timeout * SECOND), False, ask.payload == "again",
            host=host.name, process=process.name, position=position,
        )  # fmt: skip
        answer.state = manager.fleet.state
        host.facts.answers.append(answer)
        host.facts.calls.setdefault(ask.number, []).append(answer)
        host.asked[ask.number] = answer
        task = self.loop.begin(process, self._sign(host, manager, ask, answer))
        task.add_done_callback(lambda _: self._ended(host, answer))  # also one that has taken no step
        if ask.leaves_ns is not None:
            self.loop.happens_to(process, ask.leaves_ns, task.cancel)

    def _payload(self, ask: Ask, host: Host) -> tuple[bytes, int | None]:
        if ask.payload == "message":
            return f"message {ask.number}".encode(), None
        if ask.payload == "again" and host.released:
            position = [*host.released][ask.dice % len(host.released)]
            return host.released[position], position
        position = self.head + 1
        if ask.payload == "other":
            position = max(self.head - ask.dice % 4, 1)
        elif ask.payload == "ahead":
            position += 1 + ask.dice % 8
        elif ask.payload == "far":
            position += FAR + ask.dice
        content = f"{host.name} {ask.number}".encode()
        return _HEAD + position.to_bytes(8) + hashlib.sha256(content).digest(), position

    async def _sign(self, host: Host, manager: KeyManager, ask: Ask, answer: HostAnswer) -> None:
        assert manager.fleet is not None
        machine = manager.fleet._machine
        held = machine.epoch
        try:
            answer.result = await manager.sign(answer.message, ask.timeout)
        except Exception as error:  # noqa: BLE001  # the law says which may come
            answer.result = error
            if isinstance(error, (DoubleSign, PolicyRefused)):  # what is bound and not published is passed over
                self.head = max(self.head, *(high for (high,) in self.server.rows("SELECT high FROM watermark")))
        self._ended(host, answer)
        free = self.script.unordered == "any" and answer.position is None
        answer.epoch = 0 if free else machine.epoch or held
        where = "" if answer.position is None else f" at {answer.position}"
        self.tell(answer.process, f"{ask.payload} {ask.number}{where}: {_shown(answer.result)}")
        if isinstance(answer.result, bytes) and answer.position is not None:
            host.released[answer.position] = answer.message
            self.head = max(self.head, answer.position)
            if self.script.follows:
                self._publish(answer.position)

    def _ended(self, host: Host, answer: HostAnswer) -> None:
        if host.asked.pop(answer.intent, None) is not None:
            answer.ended_ns, answer.ends = self.clock.ns, answer.ends + 1

    def _publish(self, position: int) -> None:
        for host in self.hosts.values():
            if host.process is not None:
                after = self.chance.time.randrange(_SPREAD_NS)
                self.loop.happens_to(host.process, after, partial(_caught_up, host, host.process, position))


_DOES: Final = {
    "kill": Fleet._kill,
    "stall": Fleet._stall,
    "end": Fleet._restart_in_order,
    "part": Fleet._part,
    "silence": Fleet._silence,
    "copy": Fleet._copy,
    "slow": Fleet._slow,
    "cut": Fleet._cut,
    "mute": Fleet._mute,
    "bounce": Fleet._bounce,
    "fail over": Fleet._fail_over,
    "lose": Fleet._lose,
    "device": Fleet._device,
    "clock": Fleet._clock,
    "claim": Fleet._claim,
    "release": Fleet._release,
    "busy": Fleet._busy,
    "alone": Fleet._alone,
    "late": Fleet._late,
    "hold": Fleet._hold,
    "floor": Fleet._floor,
    "forge": Fleet._forge,
    "steal": Fleet._steal,
}


def _caught_up(host: Host, process: Process, position: int) -> None:
    if host.process is process and host.manager is not None and host.manager.fleet is not None:
        host.manager.fleet.caught_up(CHAIN, position)


def _shown(result: Any) -> str:
    if isinstance(result, Exception):
        maybe = " (maybe signed)" if getattr(result, "maybe_signed", False) else ""
        return f"{type(result).__name__}{maybe}: {result.args[0] if result.args else ''}"
    return "left" if result is None else "signed"


def config_of(script: FleetScript, host: str, **more: Any) -> Any:
    """The configuration of a host."""
    place = {"modulePath": str(folder() / "module.so"), "tokenLabel": f"{host}0", "keyLabel": "first"}
    fleet = {
        "store": {"url": "postgresql://hsmcore:none@127.0.0.1/hsmcore"},
        "name": "worlds",
        "host": host,
        "ttlMs": script.ttl_ms,
        "unordered": script.unordered,
        "singleNode": script.single_node,
    } | ({"prefer": script.prefer} if script.prefer else {})
    manager = {
        "type": "pkcs11",
        "config": {**place, "sessions": 2, "verifySignatures": "always"},
        "maxCacheSize": 0,
        "policy": {"kinds": ["block", "raw"]},
        "fleet": fleet,
        **more,
    }
    sealed = {"stateSecret": {"env": SECRET}} if script.sealed else {}
    return load({"sequencer": {"keyManager": manager, **sealed}})
