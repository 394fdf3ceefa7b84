"""The micro-benchmarks and the guard over the hot path: that they run, and that they would notice."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from bench.guard.guard import (
    GOALS,
    RECORD,
    SECTIONS,
    SIGNATURES,
    TOLERANCE,
    Count,
    counted,
    deviations,
    held,
)

ROOT = Path(__file__).parents[2]


def test_every_micro_benchmark_runs():
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--benchmark-disable", "bench/micro"],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=110,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout[-2000:]
    assert " passed" in ran.stdout


SAMPLE = f"""\
events: Ir
ob=/own
fn=serve
12 {SIGNATURES}
cob=/usr/lib/libc.so.6
calls=3 1
13 {SIGNATURES * 1000}
14 {SIGNATURES * 2}

ob=/usr/lib/libc.so.6
fn=memcpy
1 {SIGNATURES * 5}
"""


def test_only_our_own_instructions_count_and_each_once():
    assert counted(SAMPLE, "/own") == Count(3.0, 5.0)


@pytest.mark.parametrize("change", [TOLERANCE * 1.01, -TOLERANCE * 1.01])
def test_a_change_beyond_the_tolerance_is_reported(change):
    record = json.loads(RECORD.read_text())
    kept = {name: Count(record["sections"][name]["own"], 0.0) for name in SECTIONS}
    assert deviations(kept, record, TOLERANCE) == []
    for name in SECTIONS:
        changed = {**kept, name: Count(kept[name].own * (1 + change), 0.0)}
        [told] = deviations(changed, record, TOLERANCE)
        assert told.startswith(f"{name}: ")


def test_a_section_without_a_record_is_reported():
    [told] = deviations({"new": Count(1.0, 0.0)}, {"sections": {}}, TOLERANCE)
    assert "none on record" in told


def test_a_goal_is_shown_and_is_no_error():
    assert set(GOALS) <= set(SECTIONS)
    goal = GOALS["ring"]
    assert held("ring", Count(goal, 9e9)) == f"   goal ≤ {goal}: met"
    assert held("ring", Count(goal + 0.1, 0.0)) == f"   goal ≤ {goal}: missed"
    assert held("cache-hit", Count(9e9, 0.0)) == ""
