"""The run: every contender in a process of its own, each signing alone for a short slice, round after round.

Contenders that are compared with each other form a block: only its processes are there at the same time. The order is
shuffled again in each round, so that a slow second on a shared machine meets all of them alike, and a ratio is
formed between slices of the same round only. A slice during which other processes took a part of the machine is
repeated when they seem to have stopped; the least disturbed attempt counts, whatever its rate.
"""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from hsmcore.members.control.curves import ALGORITHMS
from hsmcore_bench.harness import environment, locate
from hsmcore_bench.harness.environment import ProcessorTimes
from hsmcore_bench.harness.process import SLACK_SECONDS, Child, ChildError
from hsmcore_bench.suite.catalogue import entries
from hsmcore_bench.suite.commands import Commands
from hsmcore_bench.suite.contenders import MEMORY, blocks, contenders, events, select
from hsmcore_bench.suite.events import measure_failover, measure_memory, measure_recovery, noting, steps, watched
from hsmcore_bench.suite.failover import FAILOVER
from hsmcore_bench.suite.model import RAW, Contender, Options, Sample
from hsmcore_bench.suite.resilience import RECOVERY
from hsmcore_bench.suite.result import Result, read_percentiles
from hsmcore_bench.suite.softtoken import temporary_token
from hsmcore_bench.suite.stats import DISTURBED
from hsmcore_bench.suite.summary import summarise
from hsmcore_bench.suite.targets import TARGETS

WARM_UP_SECONDS = 0.15
QUIET_PROBE_SECONDS = 0.1
QUIET_WAIT_SECONDS = 2.0  # at once
QUIET_BUDGET_SECONDS = 60.0  # in a whole run
BUDGET_SHARE = 0.25  # of the time of all slices, for more rounds of what is undecided


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run stands: `done` of `total` steps, and what it does now."""

    done: int
    total: int
    doing: str


Report = Callable[[Progress], None]


def run(options: Options, report: Report = lambda _: None) -> Result:
    """Measure. Blocks for about rounds x seconds x contenders; ends every process and file that it made.

    A contender that can't run here is in `skipped` with the reason, one that broke is in `failed`; the others go on.
    Raises ChildError when there is no token to sign on, ValueError when `only` fits no contender.
    """
    with ExitStack() as stack:
        return _Run(options, report, stack).measure()


class _Run:
    def __init__(self, options: Options, report: Report, stack: ExitStack) -> None:
        self._options = options
        self._report = report
        self._stack = stack
        quick = options.quick and options.only is None
        everyone = contenders(environment.cores(), options.files, quick=quick)
        self._chosen = select(everyone, options.only, options.files)
        self._events = events(options.only, options.files)
        present = {contender.scenario for contender in self._chosen}
        self._scenarios = {e.name: e.scenario for e in entries(options.files) if e.name in present}
        if not self._chosen and not self._events:
            raise ValueError(f"{options.only!r} fits no contender")
        self._children: dict[str, Child] = {}
        self._ceilings: dict[str, float | None] = {}
        self._done = 0
        self._quiet_budget = QUIET_BUDGET_SECONDS
        rounds = sum(self._rounds(contender) for contender in self._chosen)
        self._total = 2 * len(self._chosen) + rounds + steps(self._events, options)
        self._signatures: dict[tuple[str, int], str] = {}
        self._commands = Commands(options, stack)
        self.result = Result(
            started=datetime.now(UTC).isoformat(timespec="seconds"),
            environment=environment.describe(),
            rounds=options.rounds,
            slice_seconds=options.seconds,
            message_bytes=options.message_bytes,
            contenders=self._chosen,
            scenarios=list(self._scenarios.values()),
        )

    def measure(self) -> Result:
        try:
            self._measure_all()
        except KeyboardInterrupt:
            if not self.result.samples:
                raise
            self.result.interrupted = True
        return self._judged()

    def _measure_all(self) -> None:
        if RECOVERY in self._events or any(contender.token == "hsm" for contender in self._chosen):
            self._open_token()
        before = ProcessorTimes.read()
        for block in blocks(self._chosen):
            self._measure_block(block)
        if self._budget() > 0.0:
            self._decide()
        result = self.result
        result.environment["stolen_share"] = round(before.stolen_share(ProcessorTimes.read()), 4)
        if MEMORY in self._events:
            measure_memory(self._commands, self._options, result, self._step)
        if RECOVERY in self._events:
            measure_recovery(self._commands, self._options, result, self._step)
        if FAILOVER in self._events:
            measure_failover(self._commands, self._options, result, self._step)

    def _judged(self) -> Result:
        result = self.result
        result.environment["load_average_after"] = environment.describe()["load_average"]
        places = {contender.name: place for place, contender in enumerate(self._chosen)}
        result.samples.sort(key=lambda sample: (places[sample.contender], sample.round))
        result.summaries = summarise(result)
        self._report(Progress(self._total, self._total, "done"))
        return result

    def _measure_block(self, block: Sequence[Contender]) -> None:
        order = random.Random(self._options.seed)
        most = max(self._rounds(contender) for contender in block)
        with self._ready(block):
            for number in range(most):
                self._round(
                    [c for c in block if number < self._rounds(c)], number, order, f"round {number + 1} of {most}"
                )

    @contextmanager
    def _ready(self, block: Sequence[Contender]) -> Iterator[None]:
        """With the processes of a block."""
        with ExitStack() as children:
            self._start_all(block, children)
            for contender in block:
                self._step(f"warming up {contender.name}")
                self._attempt(contender, -1, WARM_UP_SECONDS)
            yield
        self._children.clear()

    def _round(self, block: Sequence[Contender], number: int, order: random.Random, name: str) -> None:
        for contender in order.sample(block, len(block)):
            self._step(f"{name}: {contender.name}")
            self._slice(contender, number)

    def _decide(self) -> None:
        """More rounds of what undecided targets need, in new processes. Each block has its share of the budget."""
        wanted = self._undecided()
        parts = [part for block in blocks(self._chosen) if (part := [c for c in block if c.name in wanted])]
        ends = time.monotonic() + self._budget()
        for place, part in enumerate(parts):
            now = time.monotonic()
            if now < ends:
                self._decide_block(part, now + (ends - now) / (len(parts) - place))

    def _decide_block(self, block: Sequence[Contender], until: float) -> None:
        """Looks at the verdicts each time that there are half as many rounds more: to look after each round, and to end
        when a target is decided, would be to wait for a lucky one."""
        order = random.Random(self._options.seed + 1)
        names = {contender.name for contender in block}
        number = looked = 1 + max(sample.round for sample in self.result.samples if sample.contender in names)
        with self._ready(block):
            while block and time.monotonic() < until:
                self._round(block, number, order, "to decide")
                number += 1
                if number >= looked + max(1, looked // 2):
                    looked = number
                    wanted = self._undecided()
                    block = [contender for contender in block if contender.name in wanted]

    def _undecided(self) -> set[str]:
        """The contenders that undecided targets need."""
        calls = {verdict.name: verdict.call for verdict in self.result.verdicts()}
        return {need for target in TARGETS if calls.get(target.name) == "undecided" for need in target.needs}

    def _budget(self) -> float:
        planned = sum(self._rounds(c) * c.slices for c in self._chosen) * self._options.seconds
        return BUDGET_SHARE * planned if self._options.budget is None else self._options.budget

    def _rounds(self, contender: Contender) -> int:
        most = self._scenarios[contender.scenario].rounds
        return self._options.rounds if most is None else min(most, self._options.rounds)

    def _open_token(self) -> None:
        self._report(Progress(0, self._total, "making a token"))
        commands = self._commands
        commands.hsm = self._options.token
        if commands.hsm is None:
            wanted = {"ed25519", *(contender.algorithm for contender in self._chosen)}
            algorithms = [algorithm for algorithm in ALGORITHMS if algorithm in wanted]
            commands.hsm, commands.access = self._stack.enter_context(
                temporary_token(locate.SOFTHSM_MODULE, algorithms)
            )

    def _start_all(self, block: Sequence[Contender], children: ExitStack) -> None:
        """As many at once as there are processors: most of it is importing. Opening the token they take turns; the raw
        C loop knows nothing of that and starts alone."""
        waiting: deque[tuple[Contender, Child]] = deque()
        for contender in block:
            alone = contender.kind in RAW or (bool(waiting) and waiting[-1][0].kind in RAW)
            while waiting and (alone or len(waiting) >= environment.cores()):
                self._await_ready(*waiting.popleft())
            self._step(f"starting {contender.name}")
            with noting(self.result, contender.name):
                self._ceilings[contender.name] = self._commands.ceiling(contender)
                waiting.append((contender, children.enter_context(self._commands.start(contender))))
        for contender, child in waiting:
            self._await_ready(contender, child)

    def _await_ready(self, contender: Contender, child: Child) -> None:
        with noting(self.result, contender.name):
            ready = child.ready()
            self._children[contender.name] = child
            self._take_down(contender, ready)

    def _take_down(self, contender: Contender, ready: Mapping[str, Any]) -> None:
        """Keep what a child tells of itself. All Ed25519 signatures of one token over one message must be the same."""
        if "timing_ns" in ready:
            self.result.timing_ns[contender.name] = round(ready["timing_ns"], 1)
        for key in ("module", "loop"):
            if key in ready and contender.token != "noop" and contender.device is None:
                self.result.environment.setdefault(key, ready[key])
        signature = ready.get("signature")
        if signature is not None and contender.algorithm == "ed25519":
            size = contender.message_bytes or self._options.message_bytes
            expected = self._signatures.setdefault((contender.token, size), signature)
            if signature != expected:
                self._give_up(contender, "its signature differs from the others'")

    def _slice(self, contender: Contender, number: int) -> None:
        """The least disturbed of a few attempts."""
        best: Sample | None = None
        for again in reversed(range(1 + self._options.patience)):
            sample = self._attempt(contender, number, self._options.seconds * contender.slices)
            if sample is None:
                return
            best = sample if best is None or sample.others < best.others else best
            if best.others <= DISTURBED or not again:
                break
            self._wait_for_quiet()
        assert best is not None
        self.result.samples.append(best)

    def _attempt(self, contender: Contender, number: int, seconds: float) -> Sample | None:
        """Let it sign for so long; None when it broke, now or before."""
        child = self._children.get(contender.name)
        if child is None:
            return None
        try:
            reply, cpu, others = watched(child, seconds, seconds + SLACK_SECONDS)
        except (ChildError, OSError) as error:
            self._give_up(contender, str(error))
            return None
        return Sample(
            contender=contender.name,
            round=number,
            signatures=reply["signatures"],
            seconds=reply["seconds"],
            latency_ns=read_percentiles(reply["latency_ns"]),
            lag_ns=read_percentiles(reply.get("lag_ns")),
            cpu_seconds=cpu,
            others=others,
            ceiling=self._ceilings[contender.name],
            switches=reply.get("switches"),
            calls=reply.get("calls"),
            parts_ns=reply.get("parts_ns"),
        )

    def _wait_for_quiet(self) -> None:
        """Return when the others leave the machine alone, after QUIET_WAIT_SECONDS, or when the budget is spent."""
        begun = time.monotonic()
        limit = min(QUIET_WAIT_SECONDS, self._quiet_budget)
        while (waited := time.monotonic() - begun) < limit:
            before = ProcessorTimes.read()
            time.sleep(QUIET_PROBE_SECONDS)
            if before.others_share(ProcessorTimes.read(), 0.0) <= DISTURBED:
                break
        self._quiet_budget -= waited

    def _give_up(self, contender: Contender, why: str) -> None:
        self.result.failed[contender.name] = why
        self._children.pop(contender.name).close()

    def _step(self, doing: str) -> None:
        self._report(Progress(min(self._done, self._total), self._total, doing))
        self._done += 1
