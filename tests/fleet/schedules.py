"""Seeded schedules of a fleet under faults: three signers, a database of three nodes, and what goes wrong.

    python -m tests.fleet.schedules --seeds 0-19 --jobs 1 [--seconds 30] [--broken reclaimed_by_age]

Signers want different blocks for one position, hosts are killed, stopped and cut off, clocks are set, the database
fails over, commits are cancelled or let go while they wait, devices fail. Then everything is mended, a new block must
be signed, and what was written down is judged (checker.py). The summary is JSON on standard output; the exit code is 1
if there was a fault.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from tests.chaos.schedules import LIES, LOSSES
from tests.fleet.breakages import BREAKAGES
from tests.fleet.checker import check
from tests.fleet.cluster import Cluster, Template, cluster
from tests.fleet.history import lines_since, true_boottime
from tests.fleet.nodes import DATABASE
from tests.fleet.proxy import Proxy
from tests.fleet.site import HOSTS, Pooler, Signer, faketime, floors_of, holder_of, latest_epoch, rows_of
from tests.support.run_folder import fast_folder
from tests.support.seeds import added, parse, run_seeds

CHUNK = 4
"""Schedules that one process takes at a time."""
SECONDS = 8.0
"""Of faults, with three to seven doings; longer schedules have more of them."""
OPENS, HEALS, ENDS = 300.0, 300.0, 100.0
"""The most that opening, healing and ending take, in seconds of a machine that has time for them."""
ALONE = 2.0
"""How long a database without a standby may wait for a signer that believes it, in such seconds."""
LOOK = 0.05
"""Seconds between two looks; a look counts as no more than two of them, since what is late here is late there too."""
DONE = 600.0
"""The most that what happens takes, in seconds: each part of it ends by itself."""
TTL = 1.2
DOINGS = {"kill": 3, "stop": 4, "part": 4, "slow": 1, "cut": 2, "reply": 3, "clock": 2, "cancel": 4, "bounce": 1,
          "standby": 2}  # fmt: skip
"""What goes wrong, with weights."""
CHANGES = {"": 3, "fail_over": 3, "split": 3, "lose": 3}
"""Of the primary: one a schedule."""
LATE = "late"
"""In most of the schedules, beside those."""
EMPTIED = "emptied"
"""In some, beside those."""
OF_THE_DATABASE = {LATE, EMPTIED, "cancel", "bounce", "standby", "crash", "machine", "isolate", *CHANGES}

_STANDBYS = "SELECT application_name, state, sync_state FROM pg_stat_replication"
_BUSY = """SELECT pid, state, wait_event, pg_blocking_pids(pid)::text, extract(epoch FROM now() - xact_start)::float4,
    left(query, 60) FROM pg_stat_activity WHERE backend_type = 'client backend' AND state <> 'idle'"""


@dataclass(frozen=True)
class Doing:
    """Something that happens `at` seconds after the fleet began to sign, to a host or to the one that holds."""

    at: float
    what: str
    host: int | None
    dice: int


@dataclass(frozen=True)
class Plan:
    """What a seed stands for."""

    seed: int
    strict: bool
    pooled: bool
    faults: bool
    rate: float
    seconds: float
    doings: tuple[Doing, ...]


def plan(
    seed: int,
    seconds: float = SECONDS,
    weights: Mapping[str, int] = DOINGS,
    changes: Mapping[str, int] = CHANGES,
    *,
    late: float = 0.8,
    emptied: float = 0.4,
    dense: float = SECONDS,
) -> Plan:
    """The schedule of a seed. `late`, `emptied`: how likely it has that. `dense`: the seconds for which there are three
    to seven doings and one change of the primary."""
    dice = random.Random(seed)
    doings = []
    for _ in range(round(dice.randint(3, 7) * seconds / dense)):
        what = dice.choices(list(weights), list(weights.values()))[0]
        host = dice.choice([None, None, None, 0, 1, 2])
        doings.append(Doing(dice.uniform(0.0, seconds - 1.5), what, host, dice.randrange(1 << 30)))
    spans = max(round(seconds / dense), 1)
    for span in range(spans):
        change = dice.choices(list(changes), list(changes.values()))[0]
        if change:
            at = span * seconds / spans + dice.uniform(1.0, seconds / spans - 2.5)
            doings.append(Doing(at, change, None, dice.randrange(1 << 30)))
    beside = random.Random(f"{LATE} {seed}")  # the others stay what they are for this seed
    if beside.random() < late:
        doings.append(Doing(0.0, LATE, None, beside.randrange(1 << 30)))
    beside = random.Random(f"{EMPTIED} {seed}")
    if beside.random() < emptied:
        doings.append(Doing(beside.uniform(0.5, seconds - 2.0), EMPTIED, None, beside.randrange(1 << 30)))
    return Plan(
        seed=seed,
        strict=dice.random() < 0.3,
        pooled=dice.random() < 0.25,
        faults=dice.random() < 0.5,
        rate=dice.choice([1.0, 1.0, 1.0, 1.5, 0.67]),
        seconds=seconds,
        doings=tuple(sorted(doings, key=lambda doing: doing.at)),
    )


class Verdict:
    """What became of one schedule."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.faults: Counter[str] = Counter()
        self.answers: Counter[str] = Counter()
        self.doings: Counter[str] = Counter()
        self.notes: list[str] = []
        self.bound = self.epochs = 0
        self.healed = 0.0

    def fault(self, kind: str, note: str) -> None:
        """Note a fault."""
        self.faults[kind] += 1
        if self.faults[kind] == 1:
            self.notes.append(f"{self.name}: {kind}: {note}")

    def as_dict(self) -> dict[str, Any]:
        """For the process that adds them up."""
        return {
            "faults": self.faults,
            "answers": self.answers,
            "doings": self.doings,
            "notes": self.notes,
            "schedules": 1,
            "positions bound": self.bound,
            "epochs": self.epochs,
            "slowest to heal": self.healed,
        }


class Schedule:
    """One plan, run. Belongs to one event loop."""

    def __init__(self, plan_: Plan, database: Any, folder: Path, broken: str | None, name: str = DATABASE) -> None:
        self.plan, self.verdict = plan_, Verdict(f"seed {plan_.seed}")
        self.database: Cluster = database
        self.stale: set[str] = set()
        """Hosts that are still led to the primary that was left behind."""
        self.pooler = Pooler(Proxy(database.port)) if plan_.pooled else None
        self.hosts = []
        for host in HOSTS:
            way = Proxy(lambda host=host: self._way(host))  # type: ignore[misc]
            self.hosts.append(Signer(host, folder / host, way, name, broken=broken, seed=plan_.seed))
        self.fleet = {"ttlMs": int(TTL * 1e3), "unordered": "strict" if plan_.strict else "lease"}
        self.losses: list[tuple[int, int]] = []
        """When the database lost what it had confirmed."""
        self.background: set[asyncio.Task[None]] = set()
        self._one_at_a_time = asyncio.Lock()
        """What happens to the database."""

    def _way(self, name: str) -> int | None:
        if self.pooler is not None and self.pooler.bouncer is not None:
            return self.pooler.bouncer.port
        if name in self.stale and self.database.old is not None:
            return self.database.old.port
        return self.database.port()

    async def run(self) -> Verdict:
        """From opening to judging."""
        try:
            if self.pooler is not None:
                await self.pooler.start()
            for host in self.hosts:
                await host.way.start()
            self._prepare()
            for host in self.hosts:
                host.start(self.fleet)
            if await self._signs_blocks(OPENS):
                await self._do_all()
                await self._mend()
            else:
                self.verdict.fault("not opened", "".join(host.said() for host in self.hosts) or "nothing is signed")
            await self._end()
        finally:
            for task in self.background:
                task.cancel()
            for host in self.hosts:
                await asyncio.to_thread(host.kill)
                await host.way.close()
            if self.pooler is not None:
                await self.pooler.close()
        return self.verdict

    def _prepare(self) -> None:
        dice = random.Random(self.plan.seed)
        if faketime() is not None:
            if self.plan.rate != 1.0:
                dice.choice(self.hosts).rate = self.plan.rate
            for host in self.hosts:
                if host.rate == 1.0 and any(doing.what == "clock" for doing in self.plan.doings):
                    host.step_clock(0)
        if self.plan.faults:
            for host in self.hosts:
                actions = [{"action": name} for name in dice.sample([*LOSSES, *LIES], 2)]
                faults = [{"function": "C_Sign", "probability": 0.02, **action} for action in actions]
                host.chaos.write(faults=faults)

    async def _signs_blocks(self, seconds: float) -> bool:
        """Whether a block that is asked for from now on is released in time."""
        begun = true_boottime()
        places = [host.history.stat().st_size if host.history.exists() else 0 for host in self.hosts]
        async for _ in _looks(seconds):
            for number, host in enumerate(self.hosts):
                lines, places[number] = lines_since(host.history, places[number])
                for found in lines:
                    if found["what"] == "release" and found["position"] is not None and found["asked"] > begun:
                        return True
        return False

    # ---- what goes wrong ----

    async def _do_all(self) -> None:
        for doing in self.plan.doings:
            if doing.what == LATE:  # before the others, which would be in its way
                self.verdict.doings[LATE] += 1
                await self._do(doing)
        begun = time.monotonic()
        for doing in self.plan.doings:
            if doing.what == LATE:
                continue
            await asyncio.sleep(max(begun + doing.at - time.monotonic(), 0))
            self.verdict.doings[doing.what] += 1
            task = asyncio.ensure_future(self._do(doing))
            self.background.add(task)
        await asyncio.sleep(max(begun + self.plan.seconds - time.monotonic(), 0))
        await asyncio.wait_for(asyncio.gather(*self.background), DONE)
        self.background.clear()

    async def _do(self, doing: Doing) -> None:
        if doing.host is None:
            held = await asyncio.to_thread(holder_of, self.database.leader) if self.database.leader else None
            host = next((host for host in self.hosts if host.name == held), self.hosts[doing.dice % 3])
        else:
            host = self.hosts[doing.host]
        happen = getattr(self, f"_{doing.what}")
        if doing.what in OF_THE_DATABASE:
            async with self._one_at_a_time:
                await happen(host, random.Random(doing.dice))
        else:
            await happen(host, random.Random(doing.dice))

    async def _kill(self, host: Signer, dice: random.Random) -> None:
        await asyncio.to_thread(host.kill)
        await asyncio.sleep(dice.uniform(0.1, 1.0))
        host.start(self.fleet)

    async def _stop(self, host: Signer, dice: random.Random) -> None:
        host.stop()
        await asyncio.sleep(dice.choice([0.5, 1.0, 3.0]) * TTL)
        host.cont()

    async def _part(self, host: Signer, dice: random.Random) -> None:
        requests, replies = dice.choice([(True, True), (True, False), (False, True)])
        host.way.hold(requests=requests, replies=replies)
        await asyncio.sleep(dice.choice([0.3, 1.0, 3.0]) * TTL)
        host.way.heal()

    async def _slow(self, host: Signer, dice: random.Random) -> None:
        host.way.delay = dice.uniform(0.005, 0.2)
        await asyncio.sleep(1.0)
        host.way.delay = 0.0

    async def _cut(self, host: Signer, _dice: random.Random) -> None:
        host.way.cut()

    async def _reply(self, host: Signer, dice: random.Random) -> None:
        host.way.reply_limit = dice.randrange(2000)

    async def _clock(self, host: Signer, dice: random.Random) -> None:
        host.step_clock(dice.choice([600, -600]))

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
        self.database.links[self.database.synchronous.name].hold()
        await asyncio.sleep(dice.uniform(0.2, 1.0))
        await self.database.synchronize_with(leader, "")
        if dice.random() < 0.5:
            await self._signs_blocks(ALONE)
            await self.database.fail_over()
            self._cut_all()
        else:
            await asyncio.sleep(dice.uniform(0.0, 0.5))
            await self.database.synchronize_with(leader, self.database.synchronous.name)
            self.database.links[self.database.synchronous.name].heal()

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
                dice.choice([other for other in self.hosts if other is not host]).ask_to_claim()
                before, end = await asyncio.to_thread(latest_epoch, leader), time.monotonic() + 2.5
                while time.monotonic() < end and await asyncio.to_thread(latest_epoch, leader) == before:  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
            finally:
                self.database.let_go(held)

    async def _bounce(self, _host: Signer, _dice: random.Random) -> None:
        if self.database.leader is not None:
            await self.database.bounce(self.database.leader)

    async def _standby(self, _host: Signer, dice: random.Random) -> None:
        await self.database.kill(self.database.synchronous)
        await asyncio.sleep(dice.uniform(0.1, 0.8))
        await asyncio.to_thread(self.database.synchronous.start)

    async def _fail_over(self, _host: Signer, dice: random.Random) -> None:
        await self._three()
        if dice.random() < 0.5:  # with commits that waited, were cancelled, and are lost
            self.database.links[self.database.synchronous.name].hold()
            await asyncio.sleep(0.2)
            await self.database.cancel_waiting_commit()
            await asyncio.sleep(dice.uniform(0.0, 0.3))
        await self.database.fail_over()
        self._cut_all()

    async def _split(self, _host: Signer, dice: random.Random) -> None:
        await self._three()
        self.stale = {host.name for host in self.hosts if dice.random() < 0.6}
        await self.database.split()
        for host in self.hosts:
            if host.name not in self.stale:
                host.way.cut()
        for _ in range(dice.randint(1, 5)):
            await asyncio.sleep(dice.uniform(0.1, 0.4))
            await self.database.cancel_waiting_commit()
        await self.database.end_split()
        self.stale = set()
        self._cut_all()

    async def _lose(self, _host: Signer, dice: random.Random) -> None:
        """What was confirmed is lost with both nodes that have it, but for what the hosts' audit logs say."""
        await self._three()
        self.database.links[self.database.asynchronous.name].hold()
        await asyncio.sleep(dice.uniform(0.2, 1.0))
        begun = true_boottime()
        await self.database.lose()
        self.losses.append((begun, true_boottime()))
        self._cut_all()

    async def _three(self) -> None:
        """Have a node that died in an earlier change follow again."""
        if self.database.asynchronous.process is None:
            self._mend_database()
            await self.database.rejoin()

    def _cut_all(self) -> None:
        for host in self.hosts:
            host.way.cut()
        if self.pooler is not None:
            self.pooler.behind.cut()

    # ---- afterwards ----

    def _mend_database(self) -> None:
        for link in self.database.links.values():
            link.heal()

    async def _mend(self) -> None:
        begun = time.monotonic()
        self._mend_database()
        for host in self.hosts:
            host.way.heal()
            host.cont()
            host.chaos.write()
            host.start(self.fleet)
        if not await self._signs_blocks(HEALS):
            said = "; ".join(f"{host.name}: {host.read().lines[-2:]}" for host in self.hosts)
            self.verdict.fault("not healed", f"{await self._looks()} {said}"[:3000])
        self.verdict.healed = time.monotonic() - begun

    async def _looks(self) -> str:
        """What the database is doing."""
        if self.database.leader is None:
            return "no primary"
        try:
            standbys = await self.database.ask(self.database.leader, _STANDBYS)
            return f"{self.database.leader.name} {standbys} {await self.database.ask(self.database.leader, _BUSY)}"
        except psycopg.Error as error:
            return str(error)

    async def _end(self) -> None:
        for host in self.hosts:
            host.ask_to_end()
        async for _ in _looks(ENDS):
            if all(host.ended() for host in self.hosts):
                break
        for host in self.hosts:
            if not host.ended():
                self.verdict.fault("does not end", f"{host.name}: {host.said()}")
                await asyncio.to_thread(host.kill)
            elif host.said():
                self.verdict.fault("failed", f"{host.name}: {host.said()}")
        await asyncio.to_thread(self._judge)

    def _judge(self) -> None:
        hosts = [host.read() for host in self.hosts]
        assert self.database.leader is not None
        try:
            rows, floors = rows_of(self.database.leader), floors_of(self.database.leader)
        except psycopg.Error as error:
            return self.verdict.fault("no rows", str(error))
        check(hosts, rows, floors, self.verdict.fault, self.losses)
        for host in hosts:
            self.verdict.answers += host.answers()
        self.verdict.bound += len(rows)
        self.verdict.epochs += max((row.epoch for row in rows), default=0)
        return None


async def _looks(seconds: float) -> AsyncIterator[None]:
    """Yield until that time is over, as far as this process has had its share of it."""
    left, before = seconds, time.monotonic()
    while left > 0:
        yield
        await asyncio.sleep(LOOK)
        now = time.monotonic()
        left, before = left - min(now - before, 2 * LOOK), now


def run_chunk(
    seeds: Iterable[int], broken: str | None = None, keep: str | None = None, seconds: float = SECONDS
) -> dict[str, Any]:
    """Some schedules one after the other. `keep`: a folder for the files of those that fail."""
    return added(asyncio.run(_run_chunk(seeds, broken, keep, seconds)))


async def _run_chunk(
    seeds: Iterable[int], broken: str | None, keep: str | None, seconds: float
) -> list[dict[str, Any]]:
    verdicts = []
    with tempfile.TemporaryDirectory(prefix="hsmcore-fleet-", dir=fast_folder()) as folder:
        await asyncio.to_thread(os.chmod, folder, 0o755)
        template = await asyncio.to_thread(Template, Path(folder) / "template")
        for seed in seeds:
            place = Path(folder) / f"hosts-{seed}"
            place.mkdir()
            async with cluster(template, Path(folder) / f"nodes-{seed}") as database:
                verdict = await Schedule(plan(seed, seconds), database, place, broken).run()
                for node in database.nodes:
                    shutil.copy(node.log, place / f"log-{node.name}")
            verdicts.append(verdict.as_dict())
            if keep is not None and verdict.faults:
                shutil.copytree(place, Path(keep) / str(seed), ignore=shutil.ignore_patterns("*.sock"))
            shutil.rmtree(place)
    return verdicts


def _length(text: str) -> float:
    seconds = float(text)
    if not SECONDS / 2 <= seconds < math.inf:
        raise argparse.ArgumentTypeError(f"at least {SECONDS / 2:.0f}")
    return seconds


def main(arguments: list[str] | None = None) -> int:
    """Run the schedules of a range of seeds."""
    own = argparse.ArgumentParser(add_help=False)
    own.add_argument("--broken", choices=sorted(BREAKAGES))
    own.add_argument("--keep", help="a folder for the files of schedules with faults")
    own.add_argument("--seconds", type=_length, default=SECONDS, help="of faults in each schedule")
    ours, rest = own.parse_known_args(arguments)
    asked = parse("Seeded schedules of a fleet under faults.", rest, own)
    if asked.chunk:
        json.dump(run_chunk(*json.load(sys.stdin)), sys.stdout)
        return 0
    size = min(CHUNK, math.ceil(len(asked.seeds) / asked.jobs))
    return run_seeds(asked, "tests.fleet.schedules", size, ours.broken, ours.keep, ours.seconds)


if __name__ == "__main__":
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    sys.exit(main())
