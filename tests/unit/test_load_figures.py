"""Histograms, objectives and faults of a load test."""

from __future__ import annotations

import itertools
import json
import re

import pytest
from hdrh.histogram import HdrHistogram
from hdrh.log import HistogramLogReader
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.paths import CHAOS_SOURCE
from tests.support.size import share

from hsmcore_bench.load.buckets import HIGHEST_NS, PERCENTILES, SIGNIFICANT_DIGITS, Histogram
from hsmcore_bench.load.facade import _Series
from hsmcore_bench.load.faults import ACTIONS, fault_of, timeline_of
from hsmcore_bench.load.hdrlog import HdrLog
from hsmcore_bench.load.memory import Growth
from hsmcore_bench.load.objectives import METRICS, objective_of
from hsmcore_bench.load.picture import _charts
from hsmcore_bench.load.problems import UsageProblem
from hsmcore_bench.load.run import Timeline
from hsmcore_bench.load.units import positive_seconds, rate_of, seconds_of

durations = st.integers(min_value=1, max_value=HIGHEST_NS)


def counted(*values):
    """A histogram of what a generator counts."""
    series = _Series()
    for value in values:
        series.add(value)
    histogram = Histogram()
    histogram.add_pairs(itertools.chain.from_iterable(series.items()))
    return histogram


def reports(*ats, each=300):
    """What a process says of its seconds, and at the end of the rest."""
    return [{"end": at == ats[-1], "at": at, "signed": each, "failed": 0, "corrected": []} for at in ats]


def test_the_picture_shows_a_constant_rate_as_one_and_marks_the_faults():
    """Reports of two processes, which are heard late and all at once; the rest of the last second is none."""
    line = Timeline()
    for number in range(2):
        for report in reports(1.0, 2.02, 3.0, 4.01, 4.2):
            line.add(number, report)
        line.add(number, {"keys": []})
    points = line.points()
    assert [point["at"] for point in points] == [1.0, 2.0, 3.0, 4.0]
    assert all(580 < point["rate"] < 620 for point in points), points
    told = [{"at": 2.0, "fault": "C_Sign:<hang>", "modules": 1}, {"at": 3.0, "fault": "nowhere", "modules": 0}]
    [(caption, chart)] = _charts(points, told)
    assert "A mark is an injected fault" in caption
    assert chart.inside.count('class="mark"') == 1
    assert "<title>C_Sign:&lt;hang&gt;</title>" in chart.inside
    [(caption, chart)] = _charts(points, [])
    assert "mark" not in caption + chart.inside


@given(durations)
def test_a_bucket_holds_its_durations_and_no_others(ns):
    high = counted(ns).percentile(100.0)
    assert ns <= high <= ns + max(1, ns) * 10**-SIGNIFICANT_DIGITS
    assert counted(high).percentile(100.0) == high
    assert counted(high + 1).percentile(100.0) > high or high >= HIGHEST_NS


@given(st.lists(durations, min_size=1, max_size=200))
@settings(max_examples=share(12))
def test_what_generators_count_has_the_percentiles_of_hdrhistogram(values):
    ours, theirs = counted(*values), HdrHistogram(1, HIGHEST_NS, SIGNIFICANT_DIGITS)
    for value in values:
        theirs.record_value(value)
    summary = ours.summary()
    for percent in (*PERCENTILES, 100.0):
        assert ours.percentile(percent) == theirs.get_value_at_percentile(percent)
        assert summary["max" if percent == 100.0 else f"p{percent:g}"] == ours.percentile(percent)
    assert ours.mean() == pytest.approx(sum(values) / len(values), rel=1e-3)


def test_a_histogram_of_nothing_has_no_figures():
    assert set(Histogram().summary().values()) == {None, 0}
    assert Histogram().percentile(50.0) is None


@given(st.lists(st.lists(durations, max_size=50), min_size=1, max_size=5))
@settings(max_examples=share(25))
def test_a_log_is_read_back_by_hdrhistograms_own_reader(tmp_path_factory, intervals):
    path = tmp_path_factory.mktemp("hdr") / "a.hlog"
    log = HdrLog(path)
    log.begin(1_700_000_000.0)
    for number, values in enumerate(intervals):
        histograms = {tag: Histogram() for tag in ("corrected", "start")}
        for value in values:
            histograms["corrected"].add(value)
            histograms["start"].add(1 + value // 2)
        log.write(float(number), number + 1.0, histograms)
    log.close()
    reader = HistogramLogReader(str(path), HdrHistogram(1, HIGHEST_NS, SIGNIFICANT_DIGITS))
    for number, values in enumerate(intervals):
        for tag, expected in (("corrected", values), ("start", [1 + value // 2 for value in values])):
            found = reader.get_next_interval_histogram()
            assert (found.get_tag(), found.get_total_count()) == (tag, len(expected))
            assert found.get_start_time_stamp() == pytest.approx((1_700_000_000 + number) * 1000)
            if expected:
                assert found.get_max_value() == counted(max(expected)).percentile(100.0)
    assert reader.get_next_interval_histogram() is None
    reader.close()


def result(**counts):
    return {
        "counts": {"planned": 1000, "lost": 0, "twice": 0, "failed": 5, **counts},
        "rates": {"rate": 950.0, "offered": 1000.0},
        "memory": {"growth_bytes": 3 << 20},
        "latency_ns": {
            "corrected": {"p99": 9_000_000, "max": 20_000_000},
            "uncorrected": {"p99": 2_000_000},
            "start": {"p99": 400_000},
        },
    }


@pytest.mark.parametrize(
    ("text", "met"),
    [
        ("p99 < 10ms", True),
        ("p99<9ms", False),
        ("p99 <= 9 ms", True),
        ("uncorrected p99 < 2.5ms", True),
        ("start p99 < 300us", False),
        ("max < 0.02s", False),
        ("lost = 0", True),
        ("failed == 0", False),
        ("failed < 1%", True),
        ("failed < 0.5%", False),
        ("rate >= 950/s", True),
        ("offered > 1000/s", False),
        ("memory-growth < 4MiB", True),
        ("wrong = 0", False),  # nothing was verified
        ("p50 < 1s", False),  # there is none
    ],
)
def test_objectives(text, met):
    assert objective_of(text).judge(result())["met"] is met


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("p99 < 10", "needs a unit"),
        ("p99 < 10 parsecs", "no unit 'parsecs'"),
        ("p98 < 10ms", "no figure"),
        ("latency < 10ms", "no figure"),
        ("start lost = 0", "no figure"),
        ("lost < 1ms", "number of requests"),
        ("rate > 100", "needs a unit"),
        ("memory-growth < 4", "needs a unit"),
        ("p99", "expected"),
        ("p99 < -1ms", "expected"),
        ("", "expected"),
    ],
)
def test_objectives_that_cannot_be_meant(text, part):
    with pytest.raises(UsageProblem, match=part):
        objective_of(text)


@given(st.sampled_from(sorted(METRICS)), st.sampled_from(["<", "<=", ">", ">="]), st.integers(0, 10**6))
def test_every_figure_can_be_judged_with_every_unit_it_has(metric, comparison, number):
    for unit in METRICS[metric][1] or [""]:
        objective = objective_of(f"{metric} {comparison} {number}{unit}")
        assert objective.judge({}) == {
            "objective": objective.text, "met": False, "value": None, "unit": objective.unit,
        }  # fmt: skip


def test_the_actions_are_those_of_the_chaos_module():
    listed = re.findall(r'^CHAOS_ACTION\(\w+, "(.+)"\)$', (CHAOS_SOURCE / "actions.def").read_text(), re.MULTILINE)
    assert tuple(listed) == ACTIONS


@pytest.mark.parametrize(
    ("text", "at", "every", "fault"),
    [
        ("5s:C_Sign:hang", 5.0, None, {"nth": 1, "milliseconds": 1000}),
        ("5s:C_Sign:hang:200ms", 5.0, None, {"nth": 1, "milliseconds": 200}),
        ("5s:C_Sign:hang:forever", 5.0, None, {"nth": 1, "forever": True}),
        ("every 2s:C_Sign:kill-session", 2.0, 2.0, {"nth": 1}),
        ("500ms every 1m:C_Sign:return:CKR_DEVICE_ERROR:x4", 0.5, 60.0, {"every": 1, "count": 4}),
        ("0s:C_SignInit:return:0x30", 0.0, None, {"nth": 1, "ckr": 0x30}),
        ("1s:C_Sign:exit:3", 1.0, None, {"nth": 1, "code": 3}),
    ],
)
def test_faults(text, at, every, fault):
    parsed = fault_of(text)
    assert (parsed.at, parsed.every) == (at, every)
    assert parsed.command.items() >= {"cmd": "fault", **fault}.items()
    assert parsed.rehearsal is not None
    assert parsed.rehearsal["nth"] > 1 << 60
    assert "count" not in parsed.rehearsal
    moments = list(parsed.moments(125.0))
    assert moments[0] == at
    assert all(b - a == every for a, b in itertools.pairwise(moments))


@pytest.mark.parametrize(
    "text",
    [
        "", "5s", "5s:C_Sign", "C_Sign:hang", "-5s:C_Sign:hang", "5:C_Sign:hang", "5s:C_Sign:explode",
        "5s:C_Sign:return", "5s:C_Sign:crash:now", "5s:C_Sign:hang:soon", "5s:C_Sign:hang:1s:2s", "every:C_Sign:hang",
        "every 0s:C_Sign:hang",
    ],
)  # fmt: skip
def test_faults_that_cannot_be_meant(text):
    with pytest.raises(UsageProblem):
        fault_of(text)


def test_a_timeline_is_read(tmp_path):
    path = tmp_path / "t.json"
    path.write_text(
        json.dumps(
            [
                {"at": "5s", "fault": {"function": "C_Sign", "action": "hang", "milliseconds": 5}},
                {"every": "2s", "command": {"cmd": "release"}},
            ]
        )
    )
    hang, release = timeline_of(path)
    assert (hang.at, hang.every, hang.command["nth"]) == (5.0, None, 1)
    assert (release.at, release.every, release.command, release.rehearsal) == (2.0, 2.0, {"cmd": "release"}, None)


@pytest.mark.parametrize(
    "text", ["", "{}", "[1]", '[{"at": "5s"}]', '[{"at": "5", "fault": {}}]', '[{"at": "5s", "fault": {}, "x": 1}]']
)
def test_timelines_that_cannot_be_meant(tmp_path, text):
    path = tmp_path / "t.json"
    path.write_text(text)
    with pytest.raises(UsageProblem, match="--timeline"):
        timeline_of(path)


@pytest.mark.parametrize("text", ["-5", "0", "1e9", "fast", "", "10%%", "200000000", "2000%", "5/m"])
def test_rates_that_cannot_be_meant(text):
    with pytest.raises(UsageProblem):
        rate_of(text, "--rate")


def test_rates_and_durations():
    assert rate_of("2,000", "--rate") == (2000.0, False)
    assert rate_of("12.5/s", "--rate") == (12.5, False)
    assert rate_of("80%", "--rate") == (pytest.approx(0.8), True)
    assert seconds_of("1.5m", "x") == 90.0
    for text in ("5", "-1s", "1 fortnight", "8000h", ""):
        with pytest.raises(UsageProblem):
            seconds_of(text, "x")
    with pytest.raises(UsageProblem, match="more than zero"):
        positive_seconds("0s", "x")


def test_memory_that_grows_is_seen_and_warming_up_is_not(monkeypatch):
    sizes = iter([*range(0, 20_000, 1000), *[20_000] * 80])
    monkeypatch.setattr("hsmcore_bench.load.memory.private_bytes", lambda _pids: (next(sizes), 7))
    flat = Growth()
    for _ in range(100):
        flat.sample([])
    assert flat.summary()["growth_bytes"] == flat.summary()["hosts"]["growth_bytes"] == 0
    assert flat.summary()["hosts"]["most_bytes"] == 7
    sizes = iter(range(0, 100_000, 1000))
    growing = Growth()
    for _ in range(100):
        growing.sample([])
    assert growing.summary()["growth_bytes"] > 60_000
    assert Growth().summary()["growth_bytes"] is None
