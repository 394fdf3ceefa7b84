"""Failures of the primary: what the load counts, what is held against the targets, what the table says."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hsmcore_bench.suite.contenders import contenders
from hsmcore_bench.suite.failover import CASES, FAILOVER, TARGETS
from hsmcore_bench.suite.model import Switch
from hsmcore_bench.suite.report import markdown, switch_rows
from hsmcore_bench.suite.result import Result
from hsmcore_bench.suite.targets import judge

WELL = Switch("token", 0.012, 0.002, 4000, 0, 0, 0, 0, 300_000.0, 0.5, 1)


def verdict(name, *switches):
    return next(v for v in judge([], None, {FAILOVER}, (), switches) if v.name == f"failover-{name}")


def test_the_slowest_pause_decides():
    assert verdict("token", WELL).met
    found = verdict("token", WELL, replace(WELL, pause_seconds=0.151), WELL)
    assert (found.reached, found.met) == (151.0, False)
    assert verdict("host", WELL).met is None


def test_the_median_pause_is_judged_of_enough_of_them():
    slow = replace(WELL, pause_seconds=0.06)
    assert verdict("token-median", *[WELL] * 4).call == "undecided"
    assert verdict("token-median", *[WELL] * 5).call == "met"
    assert verdict("token-median", *[slow] * 5).call == "missed"
    assert verdict("token-median", *[WELL, slow] * 3).call == "undecided"


def test_a_hang_may_take_the_deadline_and_a_little():
    assert verdict("hang", replace(WELL, case="hang", pause_seconds=0.64)).met
    assert not verdict("hang", replace(WELL, case="hang", pause_seconds=0.66)).met


@pytest.mark.parametrize("what", ["failed", "lost", "wrong", "twice"])
def test_no_request_may_end_badly(what):
    assert verdict("lost", WELL).met
    assert not verdict("lost", WELL, replace(WELL, **{what: 1})).met


def test_one_percent_may_be_slow_while_a_member_flaps():
    flapping = replace(WELL, case="flapping", pause_seconds=None, known_seconds=None)
    assert verdict("slow", WELL, replace(flapping, slow_percent=0.9)).met
    assert not verdict("slow", WELL, replace(flapping, slow_percent=1.1)).met
    assert verdict("slow", replace(WELL, slow_percent=40.0)).met is None


def test_the_table_has_a_row_for_each_case_that_was_measured():
    flapping = replace(WELL, case="flapping", pause_seconds=None, known_seconds=None)
    environment = {"processors": 2, "processor": "p", "kernel": "k", "python": "p", "versions": {},
                   "load_average": [0], "load_average_after": [0]}  # fmt: skip
    result = Result("now", environment, 1, 0.1, 200, [], switches=[WELL, WELL, flapping])
    _, rows = switch_rows(result)
    assert [row[0] for row in rows] == ["token removed", "1 s there, 1 s gone"]
    assert rows[0][1:6] == ["2", "12.0 (12.0–12.0) ms", "2.00 (2.00–2.00) ms", "8,000", "0, 0, 0, 0"]
    assert rows[1][2] == rows[1][3] == ""
    assert "| token removed | 2 |" in markdown(result)
    assert Result.from_dict(result.to_dict()).switches == result.switches


def test_every_target_has_its_contenders():
    names = {contender.name for contender in contenders(2)}
    assert {need for target in TARGETS for need in target.needs} <= names
    assert len({case.kind for case in CASES}) == len(CASES)


def test_answers_are_counted_one_by_one():
    load_of = pytest.importorskip("hsmcore_bench.suite.child.failover")
    load = load_of.Load(None, [])
    load.asked = 5
    load.answers.update([0, 1, 1, 2])
    load.errors["TOKEN_LOST"] = 1
    load.latencies.extend([10, 10, 21])
    found = load_of.figures(load)
    assert (found["lost"], found["twice"], found["failed"]) == (2, 1, 1)
    assert found["slow_percent"] == 20.0
