"""One load test from beginning to end: processes started together, watched, stopped, verified, judged."""

from __future__ import annotations

import math
import selectors
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from hsmcore.errors import MemberDown
from hsmcore_bench.harness.signals import handled
from hsmcore_bench.load.buckets import Histogram
from hsmcore_bench.load.faults import Fault
from hsmcore_bench.load.generator import Generator, Path_, Share, start
from hsmcore_bench.load.hdrlog import HdrLog
from hsmcore_bench.load.injector import Injector
from hsmcore_bench.load.memory import Growth
from hsmcore_bench.load.mix import Kind, Messages, largest_of
from hsmcore_bench.load.problems import UsageProblem
from hsmcore_bench.load.shapes import Segment, shared
from hsmcore_bench.load.target import Target
from hsmcore_bench.load.verify import Verdict, records, verify

SERIES: Final = ("corrected", "uncorrected", "start")
_LEAD_SECONDS: Final = 0.3
"""From the order to start to the plan's time 0: longer than any of the processes needs to be ready."""
_TICK_SECONDS: Final = 1.0
_SLACK_SECONDS: Final = 30.0


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be done."""

    path: Path_
    segments: Sequence[Segment]
    kinds: Sequence[Kind]
    processes: int = 1
    poisson: bool = False
    seed: int = 1
    timeout: float | None = None
    """Seconds for each request; None: as the configuration says."""
    verify: bool = False
    faults: Sequence[Fault] = ()
    hdr: Path | None = None

    @property
    def seconds(self) -> float:
        """How long requests are started for."""
        return sum(part.seconds for part in self.segments)

    @property
    def requests(self) -> float:
        """How many are expected."""
        return sum(part.requests for part in self.segments)


@dataclass(slots=True)
class Tick:
    """What a watcher hears: where the run is, totals so far, and the latest second's rate and latencies."""

    doing: str
    done: float
    total: float
    counts: Counter[str] = field(default_factory=Counter)
    rate: float = 0.0
    latest: Histogram = field(default_factory=Histogram)


Watcher = Callable[[Tick], None]


@dataclass(slots=True)
class Outcome:
    """What was counted."""

    counts: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    histograms: dict[str, Histogram] = field(default_factory=lambda: {name: Histogram() for name in SERIES})
    keys: list[tuple[str, bytes]] = field(default_factory=list)
    last_answer: float = 0.0
    """Seconds from the start to the last report."""
    memory: Growth = field(default_factory=Growth)
    told: list[dict[str, Any]] = field(default_factory=list)
    struck: dict[str, int] = field(default_factory=dict)
    timeline: list[dict[str, Any]] = field(default_factory=list)
    """Of each second: when it ended, its rates, and percentiles of its latencies in nanoseconds."""
    signal: int | None = None
    verdict: Verdict | None = None

    def add(self, other: Outcome) -> None:
        """Take in another part of the same test. Memory is not added up: each part has processes of its own."""
        self.counts.update(other.counts)
        self.errors.update(other.errors)
        for name, histogram in other.histograms.items():
            self.histograms[name].add_all(histogram)
        self.keys += [key for key in other.keys if key not in self.keys]
        self.timeline += [second | {"at": second["at"] + self.last_answer} for second in other.timeline]
        self.last_answer += other.last_answer
        self.signal = self.signal or other.signal
        if other.verdict is not None:
            self.verdict = self.verdict or Verdict()
            self.verdict.add(other.verdict)

    def learn(self, line: dict[str, Any]) -> None:
        """Note the keys that a process names."""
        named = line.get("keys", [line] if "public_key" in line else [])
        for key in named:
            pair = (key["algorithm"], bytes.fromhex(key["public_key"]))
            if pair not in self.keys:
                self.keys.append(pair)


def run(plan: Plan, target: Target, watch: Watcher) -> Outcome:
    """Carry it out. Raises UsageProblem, HsmError. An interruption ends it early; the outcome says so."""
    if plan.verify and not target.honest:
        raise UsageProblem("--verify: the module that does nothing makes no signatures")
    if plan.faults and not target.sockets:
        raise UsageProblem(
            "faults need the chaos module with a control socket in front of the module: add --chaos, or name "
            "libhsmcore_chaos.so and a configuration with a socket in modulePath and moduleArgs"
        )
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hsmcore-load-")))
        timeout = plan.timeout or target.config.key_manager.request_timeout_ms / 1e3
        shares = [
            Share(
                number,
                plan.processes,
                shared(plan.segments, plan.processes),
                plan.kinds,
                plan.seed,
                plan.poisson,
                timeout,
                _TICK_SECONDS,
                folder / f"answers-{number}" if plan.verify else None,
            )
            for number in range(plan.processes)
        ]
        log = HdrLog(plan.hdr) if plan.hdr is not None else None
        if log is not None:
            stack.callback(log.close)
        outcome = Outcome()
        watch(Tick("logging in", 0, plan.seconds))
        # The first one alone: a PIN that is refused must not be sent by the others as well.
        generators = [stack.enter_context(start(plan.path, target, shares[0]))]
        outcome.learn(generators[0].ready())
        generators += [stack.enter_context(start(plan.path, target, share)) for share in shares[1:]]
        for generator in generators[1:]:
            outcome.learn(generator.ready())
        injector = Injector(plan.faults, target.sockets, plan.seconds)
        if plan.faults:
            injector.rehearse(plan.faults)
            stack.callback(injector.end)
        with _interruptible() as interruption:
            drive = _Drive(plan, generators, outcome, log)
            if plan.faults:
                injector.begin(drive.begin / 1e9)
            drive.run(plan.seconds + timeout + _SLACK_SECONDS, watch, interruption)
        outcome.signal = interruption[0] if interruption else None
        injector.end()
        outcome.told, outcome.struck = injector.done, injector.struck()
        for generator in generators:
            generator.close()
        if plan.verify:
            outcome.verdict = _verify(shares, outcome.keys, watch)
        _conclude(plan, outcome)
    return outcome


class _Drive:
    """The time in which requests are started and answered."""

    def __init__(self, plan: Plan, generators: Sequence[Generator], outcome: Outcome, log: HdrLog | None) -> None:
        self._plan, self._outcome, self._log = plan, outcome, log
        self._running = dict(enumerate(generators))
        self._fresh = {name: Histogram() for name in SERIES}
        self._ticked, self._signed = 0.0, 0
        self._seconds = Timeline()
        self.begin = time.monotonic_ns() + round(_LEAD_SECONDS * 1e9)
        if log is not None:
            log.begin(time.time() + _LEAD_SECONDS)
        for generator in generators:
            generator.send(f"go {self.begin}\n".encode())

    def run(self, give_up: float, watch: Watcher, interruption: Sequence[int]) -> None:
        """Until all is answered. Raises HsmError if a process ends before that, or has not answered all by `give_up`,
        in seconds from the start."""
        with selectors.DefaultSelector() as selector:
            for number, generator in self._running.items():
                selector.register(generator, selectors.EVENT_READ, number)
            while self._running:
                for key, _ in selector.select(0.1):
                    if self._hear(key.data):
                        selector.unregister(key.fileobj)
                now = time.monotonic() - self.begin / 1e9
                for generator in self._running.values() if interruption else ():
                    generator.stop()
                if now > give_up:
                    raise MemberDown("a generator did not end: its module hangs")
                if now - self._ticked >= _TICK_SECONDS or not self._running:
                    self._tick(now, watch)

    def _hear(self, number: int) -> bool:
        """Take in what a process says; whether that was all. It stays until it is closed, and so does its module."""
        generator = self._running[number]
        last = False
        for line in generator.lines():
            last = _take(line, self._outcome, self._fresh)
            self._seconds.add(number, line)
        if last:
            del self._running[number]
        elif generator.at_end:
            raise generator.ended()
        return last

    def _tick(self, now: float, watch: Watcher) -> None:
        outcome, fresh, seconds = self._outcome, self._fresh, self._plan.seconds
        if self._running and now <= seconds:
            outcome.memory.sample([generator.pid for generator in self._running.values()])
        length = max(now - self._ticked, 1e-3)
        rate = (outcome.counts["signed"] - self._signed) / length
        outcome.timeline = self._seconds.points()
        watch(Tick("signing", min(now, seconds), seconds, outcome.counts, rate, fresh["corrected"]))
        if self._log is not None and fresh["start"].count:
            self._log.write(self._ticked, now, fresh)
        for name, histogram in fresh.items():
            outcome.histograms[name].add_all(histogram)
        self._fresh = {name: Histogram() for name in SERIES}
        self._ticked, self._signed = now, outcome.counts["signed"]


class Timeline:
    """The seconds of a test, by the clocks of the processes that sign: a report is heard late, and what it counts was
    signed in a second of its own."""

    def __init__(self) -> None:
        self._heard: dict[int, float] = {}
        self._seconds: dict[int, tuple[dict[str, float], Histogram]] = {}

    def add(self, number: int, line: Mapping[str, Any]) -> None:
        """Take a report of a process in. A rest that is shorter than half a second is none."""
        if "end" not in line:
            return
        length = line["at"] - self._heard.get(number, 0.0)
        self._heard[number] = line["at"]
        if length < _TICK_SECONDS / 2:
            return
        second = round(line["at"] / _TICK_SECONDS)
        rates, latencies = self._seconds.setdefault(second, ({"signed": 0.0, "failed": 0.0}, Histogram()))
        for name in rates:
            rates[name] += line[name] / length
        latencies.add_pairs(line["corrected"])

    def points(self) -> list[dict[str, Any]]:
        """Return when each second ended, its rates, and percentiles of its latencies in nanoseconds."""
        return [
            {"at": second * _TICK_SECONDS, "rate": round(rates["signed"], 1), "failed": round(rates["failed"], 1)}
            | {f"p{percent:g}": latencies.percentile(percent) for percent in (50.0, 99.0)}
            for second, (rates, latencies) in sorted(self._seconds.items())
        ]


def _take(line: dict[str, Any], outcome: Outcome, fresh: dict[str, Histogram]) -> bool:
    """Take a line in; whether it is the last one with figures."""
    if "end" not in line:
        outcome.learn(line)
        outcome.counts["cached"] += line.get("cached", 0)
        return False
    for name in ("started", "signed", "cached", "failed", "lost", "twice"):
        outcome.counts[name] += line[name]
    outcome.errors.update(line["errors"])
    for name in SERIES:
        fresh[name].add_pairs(line[name])
    outcome.last_answer = max(outcome.last_answer, line["at"])
    return bool(line["end"])


def _verify(shares: Sequence[Share], keys: Sequence[tuple[str, bytes]], watch: Watcher) -> Verdict:
    total = sum(records(share.spool) for share in shares if share.spool is not None)
    verdict = Verdict()
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        watch(Tick("verifying", done, total))

    for share in shares:
        if share.spool is not None:
            messages = Messages(share.table(), largest_of(share.kinds), share.own_seed)
            verdict.add(verify(share.spool, messages, keys, advance))
    return verdict


def _conclude(plan: Plan, outcome: Outcome) -> None:
    counts = outcome.counts
    expected = math.ceil(plan.requests)
    counts["unstarted"] = max(0, expected - counts["started"]) if outcome.signal is not None else 0
    counts["planned"] = counts["started"] + counts["unstarted"]
    counts["lost"] = max(counts["lost"], counts["started"] - counts["signed"] - counts["failed"])
    if outcome.verdict is not None:
        counts["lost"] = max(counts["lost"], counts["started"] - outcome.verdict.kept)
        counts["twice"] = max(counts["twice"], outcome.verdict.twice)
        counts["wrong"] = outcome.verdict.wrong
        counts["verified"] = outcome.verdict.verified


@contextmanager
def _interruptible() -> Iterator[list[int]]:
    """The first signal that asks to end is noted in the list; the second one raises KeyboardInterrupt."""
    seen: list[int] = []

    def note(number: int, _frame: object) -> None:
        seen.append(number)
        if len(seen) > 1:
            raise KeyboardInterrupt

    with handled(note, signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        yield seen
