"""What goes wrong in a schedule, one method for each. Each takes the host that it is for and the dice for the rest, and
ends by itself; what it has done to the database stands in `losses`, `twins` and `floors`, for the checker.
"""

from __future__ import annotations

import asyncio
import json
import random
import shutil
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Any, NamedTuple

import psycopg
from tests.fleet.checker import Twins
from tests.fleet.clone import ASLEEP
from tests.fleet.cluster import Cluster
from tests.fleet.history import lines_of, true_boottime
from tests.fleet.nodes import Node
from tests.fleet.signer import CHAIN
from tests.fleet.site import LOOK, Signer, Site, floors_of, latest_epoch, looks
from tests.support.postgres import USER

from hsmcore.cli import fleet as cli_fleet
from hsmcore.fleet.machine import Machine

DOINGS = {"kill": 3, "stop": 3, "part": 3, "silent": 3, "slow": 1, "cut": 2, "reply": 2, "clock": 2, "cancel": 3,
          "bounce": 1, "restart": 2, "standby": 2, "lock": 2, "floor": 2, "exhaust": 1, "login": 1,
          "claim": 2, "clone": 1}  # fmt: skip
"""What goes wrong, with weights."""
CHANGES = {"": 3, "fail_over": 3, "split": 3, "lose": 3, "switch_over": 3, "rows_back": 2}
"""Of the database: one a schedule."""
LATE = "late"
"""In most of the schedules, beside those."""
EMPTIED = "emptied"
"""In some, beside those."""
OF_THE_DATABASE = {LATE, EMPTIED, "cancel", "bounce", "restart", "standby", "lock", "floor", "exhaust", "login",
                   "crash", "machine", "isolate", *CHANGES}  # fmt: skip
"""One of these at a time."""
LOCKS = {
    "epoch": "SELECT FROM {}.fleet FOR UPDATE",
    "positions": "LOCK TABLE {}.bound IN ACCESS EXCLUSIVE MODE",
    "turn": "SELECT FROM {}.schema_version FOR UPDATE",
}
"""What another session may hold."""
_BEHIND = 20
"""Positions between the highest one and a floor that is raised."""
_ALONE = 2.0
"""How long a database without a standby may wait for a signer that believes it, in seconds of a machine with time."""
_AWAKE = 20.0
"""The longest that a process takes to be there."""


class Span(NamedTuple):
    """When something went wrong."""

    what: str
    begun: int
    ended: int


class Nemeses:
    """Those of one schedule. `ttl` in seconds. Belongs to one event loop."""

    def __init__(self, site: Site, ttl: float) -> None:
        self.site, self.ttl = site, ttl
        self.spans: list[Span] = []
        self.losses: list[tuple[int, int]] = []
        """When the database lost what it had confirmed."""
        self.twins: list[Twins] = []
        self.backs: list[tuple[int, int]] = []
        """When rows of positions were kept, and put back."""
        self.floors: list[tuple[int, str, int]] = []
        """From when on nothing is signed in a domain at or below a position."""
        self._one_at_a_time = asyncio.Lock()

    @property
    def database(self) -> Cluster:
        """The cluster."""
        found: Cluster = self.site.database
        return found

    async def do(self, what: str, number: int | None, seed: int) -> None:
        """Do one thing, to a host or to the one that holds the epoch."""
        dice, host = random.Random(seed), None
        if number is not None:
            host = self.site.hosts[number]
        happen: Callable[..., Any] = getattr(self, f"_{what}")

        async def do() -> None:
            whom = host or await self.site.holder() or self.site.hosts[seed % len(self.site.hosts)]
            begun = true_boottime()
            try:
                await happen(whom, dice)
            finally:
                self.spans.append(Span(what, begun, true_boottime()))

        if what in OF_THE_DATABASE:
            async with self._one_at_a_time:
                await do()
        else:
            await do()

    # ---- a host ----

    async def _kill(self, host: Signer, dice: random.Random) -> None:
        await asyncio.to_thread(host.kill)
        await asyncio.sleep(dice.uniform(0.1, 1.0))
        host.start(self.site.fleet)

    async def _stop(self, host: Signer, dice: random.Random) -> None:
        host.stop()
        await asyncio.sleep(dice.choice([0.5, 1.0, 3.0]) * self.ttl)
        host.cont()

    async def _clock(self, host: Signer, dice: random.Random) -> None:
        host.step_clock(dice.choice([600, -600]))

    async def _claim(self, _host: Signer, dice: random.Random) -> None:
        dice.choice(self.site.hosts).ask_to_claim()

    async def _clone(self, host: Signer, dice: random.Random) -> None:
        """A host goes on twice for a while, each with its own way to the database; then the second one is gone."""
        if not hasattr(Machine, "is_copied"):
            return  # both would go on for ever
        host.memory.unlink(missing_ok=True)
        twin = await self.site.clone(host)
        for path in host.folder.glob(f"{host.log.name}*"):
            copy = shutil.copytree if path.is_dir() else shutil.copy2
            with suppress(shutil.Error, FileNotFoundError):  # the host writes meanwhile: as a disk after a power cut
                copy(path, twin.folder / path.name)
        twin.start(self.site.fleet)
        end = time.monotonic() + _AWAKE
        while time.monotonic() < end and not host.memory.exists():
            await asyncio.sleep(0.02)
            if any(line["what"] == ASLEEP for line in lines_of(twin.history)):
                host.ask_for_memory()
                await asyncio.sleep(0.1)
        self.twins.append(Twins(host.name, twin.name, true_boottime() + int(self.ttl * 1e9)))
        await asyncio.sleep(dice.uniform(2.0, 5.0) * self.ttl)
        await asyncio.to_thread(twin.kill)

    # ---- its way ----

    async def _part(self, host: Signer, dice: random.Random) -> None:
        requests, replies = dice.choice([(True, True), (True, False), (False, True)])
        host.way.hold(requests=requests, replies=replies)
        await asyncio.sleep(dice.choice([0.3, 1.0, 3.0]) * self.ttl)
        host.way.heal()

    async def _silent(self, host: Signer, dice: random.Random) -> None:
        """Connections stay open and lose bytes: those of one host, or of all, as in a firewall that is replaced."""
        requests, replies = dice.choice([(True, True), (True, False), (False, True)])
        hosts = self.site.hosts if dice.random() < 0.4 else [host]
        for one in hosts:
            one.way.lose(requests=requests, replies=replies)
        await asyncio.sleep(dice.uniform(0.5, 5.0))
        for one in hosts:
            one.way.heal()

    async def _slow(self, host: Signer, dice: random.Random) -> None:
        host.way.delay = dice.uniform(0.005, 0.2)
        await asyncio.sleep(1.0)
        host.way.delay = 0.0

    async def _cut(self, host: Signer, _dice: random.Random) -> None:
        host.way.cut()

    async def _reply(self, host: Signer, dice: random.Random) -> None:
        host.way.reply_limit = dice.randrange(2000)

    # ---- what others do in the database ----

    async def _lock(self, _host: Signer, dice: random.Random) -> None:
        """Another session holds a lock."""
        statement, seconds = LOCKS[dice.choice(list(LOCKS))], dice.choice([0.3, 1.0, 3.0]) * self.ttl

        def hold(leader: Node) -> None:
            schema = leader.schema()
            with suppress(psycopg.Error), leader.connect(leader.database) as session, session.transaction():
                if schema is not None:
                    session.execute(statement.format(schema))  # type: ignore[arg-type]
                    time.sleep(seconds)

        if self.database.leader is not None:
            await asyncio.to_thread(hold, self.database.leader)

    async def _floor(self, _host: Signer, dice: random.Random) -> None:
        """An operator raises the floor, at some host."""
        at = dice.choice(self.site.hosts)
        with suppress(psycopg.Error):
            if self.database.leader is None or at.way.target() is None:
                return
            highest = await asyncio.to_thread(self.database.leader.highest)
            floor = highest - _BEHIND
            floors = await asyncio.to_thread(floors_of, self.database.leader)
            if floor <= floors.get(CHAIN, -1):
                return
            command = ("policy", "floor", "set", "block", f"{floor}", "--reason", "the schedule says so")
            code, _ = await asyncio.to_thread(at.command, *command)
            if code == 0:
                self.floors.append((true_boottime(), CHAIN, floor))

    async def _exhaust(self, _host: Signer, dice: random.Random) -> None:
        """Another program takes all connections of the role, when those of the hosts are gone."""

        def fill(leader: Node, held: ExitStack) -> None:
            with suppress(psycopg.Error):
                while True:
                    held.enter_context(leader.connect(leader.database, USER))

        if self.database.leader is None:
            return
        with ExitStack() as held:
            self.site.cut()
            await asyncio.to_thread(fill, self.database.leader, held)
            await asyncio.sleep(dice.uniform(0.3, 2.0))

    async def _login(self, _host: Signer, dice: random.Random) -> None:
        """The hosts' role may not log in for a while."""
        await self._role("NOLOGIN")
        self.site.cut()
        await asyncio.sleep(dice.uniform(0.3, 2.0))
        await self._role("LOGIN")

    async def _role(self, may: str) -> None:
        async for _ in looks(_AWAKE):
            with suppress(psycopg.Error):
                if self.database.leader is not None:
                    return await asyncio.to_thread(self.database.leader.execute, f"ALTER ROLE {USER} {may}")
        return None

    async def _rows_back(self, _host: Signer, dice: random.Random) -> None:
        """The rows of positions, and nothing else, are put back to what they were."""
        leader = self.database.leader
        if leader is None:
            return
        with suppress(psycopg.Error):
            begun = true_boottime()
            await asyncio.to_thread(leader.keep_rows)
            await asyncio.sleep(dice.uniform(0.3, 2.0))
            await asyncio.to_thread(leader.put_rows_back)
            self.backs.append((begun, true_boottime()))

    async def _late(self, host: Signer, dice: random.Random) -> None:
        """A bind is held when it has read who holds the epoch; another host claims that by force, and binds; then the
        first one goes on. Only what it has locked keeps the claim from coming before its end: its position is so far
        ahead that no row of the other one is in its way."""
        leader = self.database.leader
        if leader is None:
            return
        with suppress(psycopg.Error):
            held = await self.database.hold_a_bind(6.0)
            if held is None:
                return
            try:
                dice.choice([other for other in self.site.hosts if other is not host]).ask_to_claim()
                before, end = await asyncio.to_thread(latest_epoch, leader), time.monotonic() + 2.5
                while time.monotonic() < end and await asyncio.to_thread(latest_epoch, leader) == before:  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
            finally:
                self.database.let_go(held)

    # ---- the server ----

    async def _bounce(self, _host: Signer, _dice: random.Random) -> None:
        if self.database.leader is not None:
            await self.database.bounce(self.database.leader)

    async def _restart(self, _host: Signer, dice: random.Random) -> None:
        """As an operator does it: fast or immediate."""
        if self.database.leader is not None:
            await self.database.bounce(self.database.leader, dice.choice([signal.SIGINT, signal.SIGQUIT]))

    async def _standby(self, _host: Signer, dice: random.Random) -> None:
        await self.database.kill(self.database.synchronous)
        await asyncio.sleep(dice.uniform(0.1, 0.8))
        await asyncio.to_thread(self.database.synchronous.start)

    async def _cancel(self, _host: Signer, dice: random.Random) -> None:
        """Commits wait for the synchronous standby, and their waits are cancelled."""
        link = self.database.links[self.database.synchronous.name]
        link.hold()
        for _ in range(dice.randint(1, 4)):
            await asyncio.sleep(dice.uniform(0.05, 0.3))
            await self.database.cancel_waiting_commit()
        link.heal()

    async def _emptied(self, _host: Signer, dice: random.Random) -> None:
        """Commits wait for the synchronous standby, and someone empties the setting to get on: the server confirms them
        all. Half of the time it dies then, if possible with a block out that it confirmed alone, and the standby, which
        has none of them, takes its place."""
        leader = self.database.leader
        if leader is None:
            return
        await self.database.hold_a_commit()
        await asyncio.sleep(dice.uniform(0.2, 1.0))
        await self.database.synchronize_with(leader, "")
        if dice.random() < 0.5:
            await self.site.signs_blocks(_ALONE)
            await self.database.fail_over()
            self.site.cut()
        else:
            await asyncio.sleep(dice.uniform(0.0, 0.5))
            await self.database.synchronize_with(leader, self.database.synchronous.name)
            self.database.links[self.database.synchronous.name].heal()

    # ---- another server ----

    async def _fail_over(self, _host: Signer, dice: random.Random) -> None:
        await self._three()
        if dice.random() < 0.5:  # with commits that waited, were cancelled, and are lost
            self.database.links[self.database.synchronous.name].hold()
            await asyncio.sleep(0.2)
            await self.database.cancel_waiting_commit()
            await asyncio.sleep(dice.uniform(0.0, 0.3))
        await self.database.fail_over()
        self.site.cut()

    async def _switch_over(self, host: Signer, dice: random.Random) -> None:
        """The primary ends in order and the synchronous standby takes its place, while a host is away that ended in
        order, or not. Half of the time under a hold, and then perhaps to a server that has the hold's mark and nothing
        behind it."""
        await self._three()
        away = dice.choice([other for other in self.site.hosts if other is not host])
        if dice.random() < 0.5:
            away.ask_to_end()
            await asyncio.sleep(1.0)
        await asyncio.to_thread(away.kill)
        begun = true_boottime()
        mark = await self._hold(host) if dice.random() < 0.5 else ""
        if mark and dice.random() < 0.5:  # nothing was bound since, so that even this loses nothing
            await self.database.streams(self.database.asynchronous)
            await self._lose(host, dice)
        else:
            await self.database.streams(self.database.synchronous)
            await self.database.fail_over(signal.SIGINT)
            self.site.cut()
        if mark:
            await self._resume(host, mark)
            self.spans.append(Span("hold", begun, true_boottime()))
        await asyncio.sleep(dice.uniform(1.0, 4.0) * self.ttl)
        away.start(self.site.fleet)

    async def _hold(self, host: Signer) -> str:
        """The mark of a hold, or nothing: it was refused."""
        if not hasattr(cli_fleet, "hold"):
            return ""
        code, said = await asyncio.to_thread(host.command, "fleet", "hold", "--reason", "the schedule says so")
        return str(json.loads(said)["mark"]) if code == 0 else ""

    async def _resume(self, host: Signer, mark: str) -> None:
        """End the hold, with the mark unless a host has said that something was lost all the same."""
        end, with_mark = time.monotonic() + 3 * _AWAKE, [mark]
        while time.monotonic() < end:  # the host may be cut off just now
            command = ("fleet", "resume", *with_mark, "--reason", "the schedule says so")
            code, said = await asyncio.to_thread(host.command, *command)
            if code == 0:
                return
            if "mark" in said:
                with_mark = []
            await asyncio.sleep(LOOK)

    async def _split(self, _host: Signer, dice: random.Random) -> None:
        await self._three()
        self.site.stale = {host.name for host in self.site.hosts if dice.random() < 0.6}
        await self.database.split()
        for host in self.site.hosts:
            if host.name not in self.site.stale:
                host.way.cut()
        for _ in range(dice.randint(1, 5)):
            await asyncio.sleep(dice.uniform(0.1, 0.4))
            await self.database.cancel_waiting_commit()
        await self.database.end_split()
        self.site.stale = set()
        self.site.cut()

    async def _lose(self, _host: Signer, dice: random.Random) -> None:
        """What was confirmed is lost with both nodes that have it, but for what the hosts' audit logs say."""
        await self._three()
        self.database.links[self.database.asynchronous.name].hold()
        await asyncio.sleep(dice.uniform(0.2, 1.0))
        begun = true_boottime()
        await self.database.lose()
        self.losses.append((begun, true_boottime()))
        self.site.cut()

    async def _three(self) -> None:
        """Have a node that died in an earlier change follow again."""
        if self.database.asynchronous.process is None:
            self._join()
            await self.database.rejoin()

    def _join(self) -> None:
        """Let the standbys have all that the primary writes."""
        for link in self.database.links.values():
            link.heal()

    async def mend(self) -> None:
        """Let all be as it was."""
        self._join()
        await self._role("LOGIN")  # that may be lost with the server that had it
        self.site.heal()
