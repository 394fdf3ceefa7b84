"""Kills under load: what may be killed, what the times of the signatures say, and the verdicts on the targets."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest

from hsmcore import MemberSnapshot
from hsmcore_bench.harness import host
from hsmcore_bench.suite.contenders import MEMORY, contenders
from hsmcore_bench.suite.model import Break
from hsmcore_bench.suite.resilience import RECOVERY, RECOVERY_CASES, RECOVERY_TARGETS
from hsmcore_bench.suite.stats import usable_breaks
from hsmcore_bench.suite.targets import judge

EVERYONE = {contender.name for contender in contenders(2)} | {MEMORY, RECOVERY}


def killed(case: str, again: float = 0.02, kept: float = 1.0, failed: int = 0, others: float = 0.0) -> Break:
    return Break(case, again, 1000.0, 1000.0 * kept, failed, 0, others)


class TestRecovery:
    @pytest.mark.parametrize("pid", [None, -1, 0, 1, True, "own", "7"])
    def test_kills_no_process_but_a_host(self, pid, monkeypatch):
        killed = []
        pid = os.getpid() if pid == "own" else pid
        monkeypatch.setattr(host.os, "kill", lambda *args: killed.append(args))
        running = SimpleNamespace(engine=SimpleNamespace(host_pid=pid))
        for member in (None, running):
            with pytest.raises(RuntimeError, match="no host process"):
                host.kill_host(MemberSnapshot("a", "primary", "ready", "", True, None, None, 0, member=member))
        assert killed == []

    def test_service_is_back_at_the_end_of_the_pause_that_follows_the_kill(self):
        recovery = pytest.importorskip("hsmcore_bench.suite.child.recovery")
        ms = 1_000_000
        steady = [at * ms for at in range(0, 1000, 10)]  # 100/s, killed at 1 s
        again = [
            1002 * ms,
            1003 * ms,
            *(at * ms for at in range(1050, 1500, 10)),
            *(at * ms for at in range(1800, 2000, 10)),
        ]
        figures = recovery.figures(again + steady, 1000 * ms, 1.0)
        assert figures == {"again_seconds": 0.05, "rate_before": 100.0, "rate_after": 67.0}

    def test_service_that_never_comes_back_took_all_of_the_time(self):
        recovery = pytest.importorskip("hsmcore_bench.suite.child.recovery")
        assert recovery.figures([5, 6], 10, 2.0) == {"again_seconds": 2.0, "rate_before": 1.0, "rate_after": 0.0}


class TestTargets:
    def test_disturbed_kills_are_set_aside_in_the_same_way(self):
        breaks = [killed("host", others=share) for share in (0.0, 0.06, 0.05, 0.02)] + [killed("sessions")]
        assert usable_breaks(breaks, "host") == [breaks[0], breaks[2], breaks[3]]
        assert usable_breaks(breaks[:3], "host") == breaks[:3]
        assert usable_breaks(breaks, "sessions-5ms") == []

    def test_the_slowest_restart_decides(self):
        breaks = [killed("host", again) for again in (0.012, 0.013, 0.151)]
        found = next(v for v in judge([], None, EVERYONE, breaks) if v.name == "recovery-host-slowest")
        assert found.value is not None
        assert (found.value.median, found.reached, found.met) == (13.0, 151.0, False)

    @pytest.mark.parametrize(("slow", "call"), [(0, "met"), (3, "undecided"), (5, "missed")])
    def test_the_median_restart_decides_where_that_is_no_chance(self, slow, call):
        breaks = [killed("host", 0.06 if number < slow else 0.02) for number in range(5)]
        assert next(v for v in judge([], None, EVERYONE, breaks) if v.name == "recovery-host").call == call

    def test_the_lowest_rate_decides(self):
        breaks = [killed("sessions-5ms", kept=kept) for kept in (0.9, 1.1, 1.0)]
        found = next(v for v in judge([], None, EVERYONE, breaks) if v.name == "recovery-sessions-5ms")
        assert (found.reached, found.met) == (pytest.approx(0.9), True)

    @pytest.mark.parametrize(("failed", "met"), [(0, True), (1, False)])
    def test_no_request_may_be_lost(self, failed, met):
        breaks = [killed("host"), killed("sessions", failed=failed)]
        assert next(v for v in judge([], None, {RECOVERY}, breaks) if v.name == "recovery-lost").met is met

    def test_every_recovery_target_has_its_case(self):
        assert {target.case for target in RECOVERY_TARGETS} == {case.name for case in RECOVERY_CASES}
