"""The events, which are measured beside the rounds: memory over a million signatures, kills under load, failures."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from hsmcore_bench.harness import environment
from hsmcore_bench.harness.environment import ProcessorTimes
from hsmcore_bench.harness.process import Child, ChildError, MissingError
from hsmcore_bench.suite.commands import Commands
from hsmcore_bench.suite.contenders import MEMORY
from hsmcore_bench.suite.failover import CASES, FAILOVER, SERVERS
from hsmcore_bench.suite.model import Break, Contender, FailoverCase, Memory, Options, RecoveryCase, Switch
from hsmcore_bench.suite.resilience import RECOVERY, RECOVERY_CASES
from hsmcore_bench.suite.result import Result
from hsmcore_bench.suite.stats import DISTURBED

MEMORY_TIMEOUT_SECONDS = 300.0
RESTART_SLACK_SECONDS = 30.0
HEAL_SLACK_SECONDS = 60.0

Step = Callable[[str], None]


def steps(wanted: set[str], options: Options) -> int:
    """How many steps the events report."""
    kills = sum(_times(case, options) for case in RECOVERY_CASES)
    switches = sum(_times(case, options) for case in CASES)
    return 2 * (MEMORY in wanted) + kills * (RECOVERY in wanted) + switches * (FAILOVER in wanted)


def _times(case: RecoveryCase | FailoverCase, options: Options) -> int:
    return min(options.breaks or case.times, case.times)


@contextmanager
def noting(result: Result, name: str) -> Iterator[None]:
    """Note under this name what could not run here, or what broke, and go on."""
    try:
        yield
    except MissingError as error:
        result.skipped[name] = str(error)
    except (ChildError, OSError) as error:
        result.failed[name] = str(error)


def measure_memory(commands: Commands, options: Options, result: Result, step: Step) -> None:
    """Sign on the no-op module with many in flight; read the resident memory after each half."""
    scenario = Contender(MEMORY, "resident memory", "sign", MEMORY, None, token="noop", in_flight=256)
    count = options.memory_signatures
    readings = []
    with noting(result, MEMORY):
        with commands.start(scenario) as child:
            child.ready()
            for half in (1, 2):
                step(f"memory: signatures {(half - 1) * count:,} to {half * count:,}")
                readings.append(child.ask(f"memory {count}", MEMORY_TIMEOUT_SECONDS)["rss_bytes"])
        result.memory = Memory((count, 2 * count), (readings[0], readings[1]))


def measure_recovery(commands: Commands, options: Options, result: Result, step: Step) -> None:
    """Each case in a process of its own. Nothing is killed on a token that isn't ours."""
    if options.token is not None:
        result.skipped[RECOVERY] = "it would kill sessions on the token that was named"
        return
    for case in RECOVERY_CASES:
        sessions, times = case.sessions or environment.cores(), _times(case, options)
        with noting(result, f"{RECOVERY}-{case.name}"), commands.start_recovery(case, sessions) as child:
            child.ready()
            for number in range(times):
                step(f"{case.title}: {number + 1} of {times}")
                result.recovery.append(_break(child, case, options))


def _break(child: Child, case: RecoveryCase, options: Options) -> Break:
    """The least disturbed of a few kills, whatever came of them."""
    best = _attempt(child, case, options.watch_seconds)
    for _ in range(options.patience):
        if best.others <= DISTURBED:
            break
        another = _attempt(child, case, options.watch_seconds)
        best = another if another.others < best.others else best
    return best


def _attempt(child: Child, case: RecoveryCase, seconds: float) -> Break:
    return Break(case=case.name, **_run(child, seconds, RESTART_SLACK_SECONDS))


def watched(child: Child, seconds: float, timeout: float) -> tuple[dict[str, Any], float, float]:
    """Have the child run; gives its answer, its processor time, and the machine's share that others used."""
    before, own_before, cpu_before = ProcessorTimes.read(), time.process_time(), child.cpu_seconds()
    reply = child.ask(f"run {seconds}", timeout)
    cpu = child.cpu_seconds() - cpu_before
    others = before.others_share(ProcessorTimes.read(), cpu + time.process_time() - own_before)
    return reply, cpu, round(others, 4)


def _run(child: Child, seconds: float, slack: float) -> dict[str, Any]:
    """What the child found in two stretches of `seconds`, and `others`."""
    reply, _, others = watched(child, seconds, 2 * seconds + slack)
    return {**reply, "others": others}


def measure_failover(commands: Commands, options: Options, result: Result, step: Step) -> None:
    """Each case in a process of its own, on two tokens of our own."""
    for case in CASES:
        sessions = environment.cores() if case.device == "transparent" else SERVERS + SERVERS // 2
        seconds = options.switch_seconds or (case.quick_seconds if options.breaks else case.seconds)
        times = _times(case, options)
        with noting(result, case.kind), commands.start_failover(case, sessions) as child:
            child.ready()
            for number in range(times):
                step(f"primary: {case.title}: {number + 1} of {times}")
                result.switches.append(_switch(child, case, seconds))


def _switch(child: Child, case: FailoverCase, seconds: float) -> Switch:
    return Switch(case=case.name, **_run(child, seconds, HEAL_SLACK_SECONDS))
