"""What a run of the benchmarks or of a load test shows first, and what is there without a checkout."""

from __future__ import annotations

import json
import re
from collections import Counter
from contextlib import ExitStack
from dataclasses import replace
from io import StringIO
from types import SimpleNamespace

import pytest
from rich.console import Console
from tests.support.paths import ROOT

from hsmcore.cli.app import run as cli
from hsmcore_bench.load import picture
from hsmcore_bench.load.report import text_of
from hsmcore_bench.suite import cli as suite_cli
from hsmcore_bench.suite import sizing
from hsmcore_bench.suite.cli import PIPE_COLUMNS, _console
from hsmcore_bench.suite.html import page
from hsmcore_bench.suite.model import Options
from hsmcore_bench.suite.report import print_result, verdict_of
from hsmcore_bench.suite.results import KEPT, SHIPPED, newest, read_json, shipped, to_json
from hsmcore_bench.suite.runner import Progress, _Run


@pytest.fixture
def result():
    return newest(ROOT / KEPT)[1]


# ---- bench size without a checkout ----


def test_the_simulated_curves_are_shipped(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli(["bench", "size", "--rate", "3000", "--p99", "20ms", "--device", "network-5ms", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["possible"] is True


def test_own_results_come_before_what_is_shipped(tmp_path, monkeypatch, capsys, result):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bench-results").mkdir()
    (tmp_path / "bench-results" / "hsmcore-bench.json").write_bytes(to_json(shipped(result)))
    assert cli(["bench", "size", "--rate", "3000", "--p99", "20ms", "--device", "network-5ms", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["results"] == "bench-results/hsmcore-bench.json"


def test_a_run_without_curves_hides_none(tmp_path, monkeypatch, capsys, result):
    """What `hsmcore bench --quick` leaves is newer than all others, and measures no pool."""
    monkeypatch.chdir(tmp_path)
    own, ask = tmp_path / "bench-results", ["bench", "size", "--rate", "3000", "--p99", "20ms", "--json", "--device"]
    own.mkdir()
    bare = replace(result, started="2999-01-01T00:00:00", contenders=[], scenarios=[], samples=[])
    (own / "hsmcore-bench.json").write_bytes(to_json(bare))
    assert cli([*ask, "network-5ms"]) == 0
    assert json.loads(capsys.readouterr().out)["results"] == str(SHIPPED)
    (own / "before.json").write_bytes(to_json(shipped(result)))
    assert cli([*ask, "network-5ms"]) == 0
    assert json.loads(capsys.readouterr().out)["results"] == "bench-results/before.json"
    assert cli([*ask, "elsewhere"]) == 2
    assert "no result here has such a curve (there are: cloudhsm-hsm2m-x2, network-5ms" in capsys.readouterr().err
    assert cli([*ask, "network-5ms", "--results", "bench-results/hsmcore-bench.json"]) == 2


def test_what_is_shipped_is_of_a_kept_result_and_of_no_machine():
    found = read_json(SHIPPED)
    [kept] = [r for path in (ROOT / KEPT).glob("*.json") if (r := read_json(path)).started == found.started]
    assert to_json(found) == to_json(shipped(kept))
    assert set(sizing.curves(found)) == {"network-5ms", "cloudhsm-hsm2m-x2", "yubihsm2"}
    assert sizing.loop_rate(found) is not None


# ---- the first line ----


def test_one_line_says_what_was_found(result):
    bound = [verdict for verdict in result.targets if verdict.bound is not None]
    calls = Counter(verdict.call for verdict in bound)
    said = verdict_of(result)
    assert said.startswith(f"Of {len(bound)} targets {calls['met']} are met, {calls['missed']} missed, ")
    assert "× raw C" in said
    body = page(result).partition("<body>")[2]
    assert re.match(r'<h1>[^<]*</h1><p class="lead">Of [^<]*targets [^<]*are met', body)
    assert body.index("<h2>Targets") < body.index("<nav>")
    shown = body.partition("<details")[0]
    assert (shown.count('class="no"'), shown.count('class="yes"')) == (calls["missed"], 0)
    assert shown.count(">undecided</td>") == calls["undecided"]


def test_a_scenario_of_one_s_own_has_its_own_title(result):
    one = next(s for s in result.scenarios if s.table != "main")
    own = [c for c in result.contenders if c.scenario == one.name]
    names = {c.name for c in own}
    alone = replace(
        result, contenders=own, scenarios=[one], recovery=[], switches=[], skipped={}, failed={},
        summaries=[s for s in result.summaries if s.contender in names],
    )  # fmt: skip
    out = StringIO()
    print_result(alone, Console(file=out, width=200, color_system=None))
    assert out.getvalue().splitlines()[0].strip() == own[0].group
    assert "Isolation, devices" not in out.getvalue()


def test_a_pipe_is_wide_enough_for_every_figure(result, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    console = _console()
    assert console.width == PIPE_COLUMNS
    print_result(result, console)
    assert "…" not in capsys.readouterr().out


# ---- interrupted ----


def test_an_interrupted_run_keeps_its_rounds(result, monkeypatch):
    def measure(run):
        run.result.samples += [s for s in result.samples if s.contender in ("raw", "sign-64")]
        raise KeyboardInterrupt

    monkeypatch.setattr(_Run, "_measure_all", measure)
    with ExitStack() as stack:
        made = _Run(Options(rounds=3, seconds=0.1, only="raw,sign-64"), lambda _: None, stack).measure()
    assert made.interrupted
    assert {s.contender for s in made.summaries} == {"raw", "sign-64"}
    assert "interrupted" in verdict_of(made)

    monkeypatch.setattr(_Run, "_measure_all", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
    with ExitStack() as stack, pytest.raises(KeyboardInterrupt):  # nothing was measured yet
        _Run(Options(rounds=3, seconds=0.1, only="raw"), lambda _: None, stack).measure()


# ---- load ----


def summary(count: int, value: float) -> dict:
    names = ("p50", "p75", "p90", "p95", "p99", "p99.9", "p99.99", "p99.999", "mean", "max")
    return dict.fromkeys(names, value) | {"count": count}


@pytest.fixture
def loaded():
    second = {"rate": 990.0, "failed": 10.0, "p50": 3e6, "p99": 9e6}
    return {
        "target": {"name": "<a token>"}, "settings": {"path": "facade"}, "errors": {}, "warnings": [],
        "counts": {"signed": 98_850, "lost": 0}, "rates": {"rate": 1.0, "offered": 1.0, "planned": 1.0},
        "faults": {"told": [], "struck": {}}, "interrupted": False,
        "memory": {"growth_bytes": None, "most_bytes": None, "hosts": {"growth_bytes": None, "most_bytes": None}},
        "latency_ns": {
            "corrected": summary(250, 10_015.998e6), "uncorrected": summary(250, 1e6), "start": summary(0, 0),
        },
        "objectives": [{"objective": "failed = 0", "met": False, "value": 98_850, "unit": ""}],
        "timeline": [{**second, "at": float(at)} for at in range(1, 1501)],
    }  # fmt: skip


def test_figures_of_a_load_are_written_for_people(loaded):
    text = text_of(loaded)
    assert "MISSED  failed = 0   (is 98,850)" in text
    assert re.search(r"^max +10,015\.998", text, re.MULTILINE)
    assert re.search(r"^p99 +10,015\.998", text, re.MULTILINE)
    for few in (r"^p99\.9 +- +-", r"^p99\.999 +- +-"):  # 1 of 250 is beyond p99, none beyond p99.9
        assert re.search(few, text, re.MULTILINE)


def test_a_load_is_drawn_over_time(loaded):
    made = picture.page(loaded)
    assert made.count("<svg") == 2
    assert "&lt;a token&gt;" in made
    assert "<a token>" not in made
    assert "MISSED  failed = 0" in made
    assert all(len(path.split("L")) <= picture.MOST_POINTS for path in re.findall(r' d="(M[^"]+)"', made))
    assert "first second" in picture.page(loaded | {"timeline": []})


def test_a_pipe_is_told_how_far_a_run_is(monkeypatch, capsys):
    """Twice a minute, not for each step."""
    now = iter([0.0, 1.0, 29.0, 30.0])
    monkeypatch.setattr(suite_cli, "time", SimpleNamespace(monotonic=lambda: next(now)))

    def run(_options, report):
        for done in range(4):
            report(Progress(done, 4, f"step {done}"))
        return "the result"

    monkeypatch.setattr(suite_cli, "run", run)
    assert suite_cli._run(Options()) == "the result"
    said = capsys.readouterr()
    assert said.out == ""
    assert re.findall(r"hsmcore: (\d of 4: step \d)", said.err) == ["0 of 4: step 0", "3 of 4: step 3"]
