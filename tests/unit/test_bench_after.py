"""`hsmcore bench compare`, `size`, `table`, `report`: on the kept result, and on what is none."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
from tests.unit.test_bench_readme import ROOT

from hsmcore.cli import app as cli
from hsmcore_bench.suite.results import KEPT, newest, read_json, to_json

RESULTS = newest(ROOT / KEPT)[0]


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """Some contenders of it."""
    result = read_json(RESULTS)
    names = {c.name for c in result.contenders if c.scenario in ("signing", "noop")}
    result.samples = [replace(sample, others=0.0) for sample in result.samples if sample.contender in names]
    path = tmp_path_factory.mktemp("results") / "few.json"
    path.write_bytes(to_json(result))
    return path


@pytest.fixture
def invoke(capsys):
    def invoke(*arguments):
        code = cli.run(["bench", *map(str, arguments)])
        output = capsys.readouterr()
        return SimpleNamespace(code=code, out=output.out, err=output.err)

    return invoke


def test_size_answers_with_its_model(invoke):
    done = invoke("size", "--rate", 1000, "--p99", "1s", "--device", "network-5ms", "--results", RESULTS, "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["possible"] is True
    assert found["members"] == found["spare"] + 1 == 2
    assert 5 <= found["sessions"] <= 16
    assert found["without_spare"]["utilisation"] <= 0.8
    assert "Poisson" in found["model"]
    said = invoke("size", "--rate", 1000, "--p99", "1s", "--device", "network-5ms", "--results", RESULTS).out
    assert f"sessions per member  {found['sessions']}" in said


def test_size_says_what_is_not_possible(invoke):
    asked = ("size", "--rate", 1000, "--p99", "100us", "--device", "network-5ms", "--results", RESULTS)
    done = invoke(*asked, "--json")
    assert (done.code, json.loads(done.out)["possible"]) == (1, False)
    assert "alone takes" in done.err


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--p99", "20"], "expected a time with its unit"),
        (["--p99", "0ms"], "expected a time with its unit"),
        (["--p99", "20ms", "--device", "toaster"], "has no such curve (there are: cloudhsm-hsm2m-x2, network-5ms"),
        (["--p99", "20ms", "--spare", "-1"], "spare"),
        (["--p99", "20ms", "--results", "none.json"], "none.json: No such file"),
    ],
)
def test_size_refuses_what_it_cannot_read(arguments, reason, invoke):
    done = invoke("size", "--rate", 100, "--results", RESULTS, *arguments)
    assert (done.code, reason in " ".join(done.err.split())) == (2, True)


def test_a_run_is_no_better_than_itself(invoke, few):
    done = invoke("compare", few, few, "--json", "--check")
    assert done.code == 0
    found = json.loads(done.out)
    assert {line["call"] for line in found["lines"]} <= {"none", "too few rounds"}
    assert found["only_before"] == found["only_after"] == []


def test_what_became_slower_is_exit_code_1(invoke, few, tmp_path):
    result = read_json(few)
    slower = tmp_path / "slower.json"
    for sample in result.samples:
        if sample.contender == "noop-256":
            object.__setattr__(sample, "signatures", sample.signatures // 50)
    slower.write_bytes(to_json(result))
    done = invoke("compare", few, slower, "--check")
    assert (done.code, "slower" in done.out, "noop-256" in done.out) == (1, True, True)


def test_table_and_report_write_their_files(invoke, tmp_path):
    document, report = tmp_path / "README.md", tmp_path / "r.html"
    document.write_text("# x\n\n<!-- bench:begin -->\n<!-- bench:end -->\n")
    assert "written" in invoke("table", "--results", RESULTS, "--write", document).out
    assert "up to date" in invoke("table", "--results", RESULTS, "--write", document).out
    assert "| raw C loop |" in document.read_text()
    assert "| raw C loop |" in invoke("table", "--results", RESULTS).out
    assert invoke("report", "--results", RESULTS, "--out", report).code == 0
    assert report.read_text().startswith("<!doctype html>")
    document.write_text("no markers")
    assert invoke("table", "--results", RESULTS, "--write", document).code == 2
    assert invoke("report", "--results", RESULTS, "--out", tmp_path / "none" / "r.html").code == 2


@pytest.mark.parametrize("command", [["table"], ["report"], ["compare", RESULTS]])
def test_a_file_of_another_kind_is_bad_usage(command, invoke, tmp_path):
    other = tmp_path / "other.json"
    other.write_text("{}")
    where = [other] if command[0] == "compare" else ["--results", other]
    done = invoke(*command, *where)
    assert (done.code, "is no benchmark result" in done.err) == (2, True)
