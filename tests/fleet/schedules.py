"""Seeded schedules of a fleet under faults: three signers, a database of three nodes, and what goes wrong.

    python -m tests.fleet.schedules --seeds 0-19 --jobs 1 [--seconds 30] [--only silent] [--broken reclaimed_by_age]

Signers want different blocks for one position, the database is up to a tenth of a second away, hosts are killed,
stopped and cut off, clocks are set, the database fails over, commits are cancelled or let go while they wait, others
lock its rows, devices fail (nemeses.py). Then everything is mended, a new block must be signed, and what was written
down is judged (checker.py). The summary is JSON on standard output, for table.py; the exit code is 1 if there was a
fault.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import random
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import psycopg
from tests.chaos.schedules import LIES, LOSSES
from tests.fleet.breakages import BREAKAGES
from tests.fleet.checker import check, refused_without_need
from tests.fleet.cluster import Cluster, Template, cluster
from tests.fleet.history import lines_of, stalled_for, true_boottime
from tests.fleet.nemeses import CHANGES, DOINGS, EMPTIED, LATE, Nemeses
from tests.fleet.nodes import DATABASE
from tests.fleet.site import LOOK, Site, faketime, floors_of, looks, prepare, rows_of
from tests.support.run_folder import fast_folder
from tests.support.seeds import added, parse, run_seeds
from tests.support.zygote import server

from hsmcore.config.fleet import Fleet

CHUNK = 8
"""Schedules that one process takes at a time."""
SECONDS = 8.0
"""Of faults, with three to seven doings; longer schedules have more of them."""
OPENS, HEALS, ENDS = 120.0, 120.0, 100.0
"""The most that opening, healing and ending take, in seconds of a machine that has time for them."""
SOON = 3.0
"""Lives of a lease within which a fleet should heal."""
MENDED = "mended"
"""The file with the time at which nothing goes wrong any more, and each host is open."""
DONE = 600.0
"""The most that what happens takes, in seconds: each part of it ends by itself."""
TTLS = {0.0: 1.2, 0.002: 1.2, 0.02: 1.2, 0.06: 2.0, 0.1: 2.0}
"""Lives of leases, in seconds, by the round trip to the database."""

MODES = Fleet.model_fields["unordered"].annotation
UNORDERED = ("lease", "lease", "strict", "any" if "any" in get_args(MODES) else "lease")
"""What a schedule may have as `fleet.unordered`."""
NEMESES = sorted({*DOINGS, *CHANGES, LATE, EMPTIED} - {""})

_VARIES = re.compile(r"\w+:\d+:[0-9a-f]+|\b\d[\d.]*")
"""What is another text in each refusal."""
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
    """What a seed stands for. `round_trip`: to the database, in seconds."""

    seed: int
    unordered: str
    pooled: bool
    faults: bool
    rate: float
    round_trip: float
    seconds: float
    doings: tuple[Doing, ...]

    @property
    def ttl(self) -> float:
        """Seconds of a lease."""
        return TTLS[self.round_trip]


def plan(
    seed: int,
    seconds: float = SECONDS,
    weights: Mapping[str, int] = DOINGS,
    changes: Mapping[str, int] = CHANGES,
    *,
    late: float = 0.8,
    emptied: float = 0.4,
    dense: float = SECONDS,
    trips: Sequence[float] = (0.0, *TTLS),
) -> Plan:
    """The schedule of a seed. `late`, `emptied`: how likely it has that. `dense`: the seconds for which there are three
    to seven doings and one change of the primary."""
    dice = random.Random(seed)
    doings = []
    for _ in range(round(dice.randint(3, 7) * seconds / dense) if weights else 0):
        what = dice.choices(list(weights), list(weights.values()))[0]
        host = dice.choice([None, None, None, 0, 1, 2])
        doings.append(Doing(dice.uniform(0.0, seconds - 1.5), what, host, dice.randrange(1 << 30)))
    spans = max(round(seconds / dense), 1) if changes else 0
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
        unordered=dice.choice(UNORDERED),
        pooled=dice.random() < 0.25,
        faults=dice.random() < 0.5,
        rate=dice.choice([1.0, 1.0, 1.0, 1.5, 0.67]),
        round_trip=dice.choice(trips),
        seconds=seconds,
        doings=tuple(sorted(doings, key=lambda doing: doing.at)),
    )


def plan_of_one(seed: int, seconds: float, what: str) -> Plan:
    """A schedule in which one thing goes wrong again and again, and nothing else."""
    weights, changes = ({}, {what: 1}) if what in (*CHANGES, EMPTIED) else ({what: 1}, {})
    return plan(seed, seconds, weights, changes, late=0.0, emptied=0.0)


class Verdict:
    """What became of one schedule."""

    def __init__(self, plan_: Plan) -> None:
        self.plan = plan_
        self.faults: Counter[str] = Counter()
        self.answers: Counter[str] = Counter()
        self.doings: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        """Without need, by what went wrong at that time."""
        self.why_refused: Counter[str] = Counter()
        self.notes: list[str] = []
        self.bound = self.epochs = self.finished = self.left = self.stalls = 0
        """`finished`, `left`: positions that a host that died had bound, and what became of them."""
        self.healed = 0.0
        """Lives of a lease from when nothing goes wrong any more and each host is open, to a block that is asked for
        then and signed; 0: it did not come to that."""
        self.starting = 0.0
        """Lives of a lease from the end of all faults until each host is open: what a start takes is the machine's."""
        self.seconds: Counter[str] = Counter()
        """That each part took."""

    def fault(self, kind: str, note: str) -> None:
        """Note a fault."""
        self.faults[kind] += 1
        if self.faults[kind] == 1:
            self.notes.append(f"seed {self.plan.seed}: {kind}: {note}")

    @contextmanager
    def during(self, part: str) -> Iterator[None]:
        """Count the seconds of the body."""
        begun = time.monotonic()
        try:
            yield
        finally:
            self.seconds[part] += time.monotonic() - begun  # type: ignore[assignment]

    def as_dict(self) -> dict[str, Any]:
        """For the process that adds them up."""
        asked = self.plan
        row: dict[str, Any] = {"starting": round(self.starting, 2)}
        row |= {
            "seed": asked.seed,
            "round trip": asked.round_trip,
            "unordered": asked.unordered,
            "pooled": asked.pooled,
        }
        row |= {"healed": round(self.healed, 2), "faults": self.faults, "doings": self.doings, "stalls": self.stalls}
        row |= {
            "released": self.answers["released"],
            "bound": self.bound,
            "finished": self.finished,
            "left": self.left,
            "refused": self.refused,
            "in incidents": sum(count for why, count in self.why_refused.items() if "is open" in why),
        }
        return {
            "faults": self.faults,
            "answers": self.answers,
            "doings": self.doings,
            "refused without need": self.refused,
            "refused without need, by status": self.why_refused,
            "notes": self.notes,
            "schedules": 1,
            "positions bound": self.bound,
            "positions finished": self.finished,
            "positions left": self.left,
            "epochs": self.epochs,
            "slowest to heal": self.healed,
            "healed late": int(self.healed > SOON),
            "parts": self.seconds,
            "each": [row],
        }


class Schedule:
    """One plan, run. Belongs to one event loop. `heals`: the most that healing takes."""

    Nemeses = Nemeses

    def __init__(
        self,
        plan_: Plan,
        database: Any,
        folder: Path,
        broken: str | None = None,
        name: str = DATABASE,
        heals: float = HEALS,
    ) -> None:
        self.plan, self.verdict, self.heals = plan_, Verdict(plan_), heals
        self.database: Cluster = database
        fleet = {"ttlMs": int(plan_.ttl * 1e3), "unordered": plan_.unordered}
        ways = {"pooled": plan_.pooled, "round_trip": plan_.round_trip, "name": name}
        self.site = Site(database, folder, fleet, **ways, broken=broken, seed=plan_.seed)
        self.nemeses = self.Nemeses(self.site, plan_.ttl)
        self.background: set[asyncio.Task[None]] = set()
        self.mended = 1 << 62
        """When nothing goes wrong any more."""

    async def run(self) -> Verdict:
        """From opening to judging."""
        site, during = self.site, self.verdict.during
        try:
            with during("opening"):
                await site.open()
                self._prepare()
                for host in site.hosts:
                    host.start(site.fleet)
                opened = await site.signs_blocks(OPENS)
            if opened is not None:
                with during("faults"):
                    await self._do_all()
                with during("healing"):
                    await self._mend()
            else:
                said = "".join(host.said() for host in site.hosts)
                self.verdict.fault("not opened", said or f"nothing is signed: {self._last_lines()}")
            with during("ending"):
                await self._end()
        finally:
            for task in self.background:
                task.cancel()
            await site.close()
        return self.verdict

    def _prepare(self) -> None:
        dice, hosts = random.Random(self.plan.seed), self.site.hosts
        if faketime() is not None:
            if self.plan.rate != 1.0:
                dice.choice(hosts).rate = self.plan.rate
            for host in hosts:
                if host.rate == 1.0 and any(doing.what == "clock" for doing in self.plan.doings):
                    host.step_clock(0)
        if self.plan.faults:
            for host in hosts:
                actions = [{"action": name} for name in dice.sample([*LOSSES, *LIES], 2)]
                faults = [{"function": "C_Sign", "probability": 0.02, **action} for action in actions]
                host.chaos.write(faults=faults)

    async def _do_all(self) -> None:
        late = [doing for doing in self.plan.doings if doing.what == LATE]
        for doing in late:  # before the others, which would be in its way
            self.verdict.doings[LATE] += 1
            await self.nemeses.do(doing.what, doing.host, doing.dice)
        begun = time.monotonic()
        for doing in self.plan.doings:
            if doing in late:
                continue
            await asyncio.sleep(max(begun + doing.at - time.monotonic(), 0))
            self.verdict.doings[doing.what] += 1
            task = asyncio.ensure_future(self.nemeses.do(doing.what, doing.host, doing.dice))
            self.background.add(task)
        await asyncio.sleep(max(begun + self.plan.seconds - time.monotonic(), 0))
        await asyncio.wait_for(asyncio.gather(*self.background), DONE)
        self.background.clear()

    async def _mend(self) -> None:
        await self.nemeses.mend()
        self.mended = true_boottime()
        histories = [host.history for host in self.site.hosts]
        life = self.plan.ttl / min(1.0, *(host.rate for host in self.site.hosts))  # by the slowest clock
        opened = await self.site.opens(self.heals)
        self.verdict.starting = (self.heals if opened is None else opened) / life
        begun = true_boottime()
        (self.site.folder / MENDED).write_text(str(begun))
        signed = await self.site.signs_blocks(self.heals)
        if opened is None or signed is None:
            self.verdict.fault("not healed", f"{await self._looks()} {self._last_lines()}"[:3000])
        of_hosts = (true_boottime() - begun) / 1e9 - stalled_for(map(lines_of, histories), begun)
        self.verdict.healed = max(self.heals if signed is None else min(signed, of_hosts), LOOK) / life
        if signed is not None and self.verdict.healed > SOON:
            self.verdict.fault("healed late", f"{self.verdict.healed:.1f} lives of a lease")

    def _last_lines(self) -> str:
        return "; ".join(f"{host.name}: {lines_of(host.history)[-2:]}" for host in self.site.hosts)

    async def _looks(self) -> str:
        """What the database is doing."""
        leader = self.database.leader
        if leader is None:
            return "no primary"
        try:
            found = [await asyncio.to_thread(leader.ask, question) for question in (_STANDBYS, _BUSY)]
        except psycopg.Error as error:
            return str(error)
        return f"{leader.name} {found}"

    async def _end(self) -> None:
        for host in self.site.hosts:
            host.ask_to_end()
        async for _ in looks(ENDS):
            if all(host.ended() for host in self.site.hosts):
                break
        for host in self.site.hosts:
            if not host.ended():
                self.verdict.fault("does not end", f"{host.name}: {host.said()}")
                await asyncio.to_thread(host.kill)
            elif host.said():
                self.verdict.fault("failed", f"{host.name}: {host.said()}")
        await asyncio.to_thread(self._judge)

    def _judge(self) -> None:
        hosts = [host.read() for host in (*self.site.hosts, *self.site.clones)]
        leader = self.database.leader
        if leader is None:  # under Patroni, which looks by itself
            return self.verdict.fault("no rows", "there is no primary")
        try:
            rows, floors = rows_of(leader), floors_of(leader)
        except psycopg.Error as error:
            return self.verdict.fault("no rows", str(error))
        done = self.nemeses
        check(hosts, rows, floors, self.verdict.fault, done.losses, done.twins, done.floors, done.backs)
        for host, line in refused_without_need(hosts):
            again = int(self.plan.ttl * SOON * 1e9)
            near = [span for span in done.spans if span.begun < line["at"] < span.ended + again]
            if near:
                what = max(near, key=lambda span: span.begun).what
            elif line["at"] > self.mended:
                what = "healing"
            else:
                what = "nothing" if any(span.begun < line["at"] for span in done.spans) else "opening"
            self.verdict.refused[what] += 1
            sort = "message" if line["position"] is None else "block"
            self.verdict.why_refused[f"{sort}: {_VARIES.sub('…', line['why'])[:100]}"] += 1
            if what == "nothing" and self.verdict.refused[what] == 1:
                self.verdict.notes.append(f"seed {self.plan.seed}: refused without any fault: {host.name}: {line}")
        for host in hosts:
            self.verdict.answers += host.answers()
            self.verdict.stalls += len(host.of("stall"))
            self.verdict.finished += len(host.of("finished"))
            self.verdict.left += len(host.of("left"))
        self.verdict.bound += len(rows)
        self.verdict.epochs += max((row.epoch for row in rows), default=0)
        return None


def run_chunk(seeds: Iterable[int], **asked: Any) -> dict[str, Any]:
    """Some schedules one after the other, as the command line says."""
    return added(asyncio.run(_run_chunk(seeds, **asked)))


async def _run_chunk(
    seeds: Iterable[int], broken: str | None, keep: str | None, seconds: float, only: str | None, heals: float
) -> list[dict[str, Any]]:
    verdicts = []
    with tempfile.TemporaryDirectory(prefix="hsmcore-fleet-", dir=fast_folder()) as folder:
        await asyncio.to_thread(os.chmod, folder, 0o755)
        making = asyncio.to_thread(Template, Path(folder) / "template", prepare)
        template, _ = await asyncio.gather(making, asyncio.to_thread(server))  # the other one starts hosts
        for seed in seeds:
            place = Path(folder) / f"hosts-{seed}"
            place.mkdir()
            made = plan(seed, seconds) if only is None else plan_of_one(seed, seconds, only)
            async with cluster(template, Path(folder) / f"nodes-{seed}") as database:
                verdict = await Schedule(made, database, place, broken, heals=heals).run()
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
    own.add_argument("--only", choices=NEMESES, help="nothing else goes wrong")
    own.add_argument("--heals", type=float, default=HEALS, help="seconds that healing may take")
    ours, rest = own.parse_known_args(arguments)
    asked = parse("Seeded schedules of a fleet under faults.", rest, own)
    if asked.chunk:
        seeds, shared = json.load(sys.stdin)
        json.dump(run_chunk(seeds, **shared), sys.stdout)
        return 0
    size = min(CHUNK, math.ceil(len(asked.seeds) / asked.jobs))
    return run_seeds(asked, "tests.fleet.schedules", size, vars(ours))


if __name__ == "__main__":
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    sys.exit(main())
