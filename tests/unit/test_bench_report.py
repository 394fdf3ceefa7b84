"""What the benchmark prints and writes: numbers with units, tables, a JSON file that reads back, a picture."""

from __future__ import annotations

import json
from dataclasses import replace
from io import StringIO
from xml.etree import ElementTree

import pytest
from rich.console import Console

from hsmcore_bench.harness import svg
from hsmcore_bench.harness.figures import duration, figures
from hsmcore_bench.suite.catalogue import entries
from hsmcore_bench.suite.contenders import MEMORY, contenders, select
from hsmcore_bench.suite.html import page
from hsmcore_bench.suite.model import Break, Memory, Percentiles, Sample, Spread
from hsmcore_bench.suite.picture import picture
from hsmcore_bench.suite.report import (
    headline,
    markdown,
    plain,
    print_result,
    ranged,
    resolution,
    with_unit,
)
from hsmcore_bench.suite.resilience import RECOVERY
from hsmcore_bench.suite.result import Result
from hsmcore_bench.suite.results import read_json, to_json
from hsmcore_bench.suite.summary import summarise
from hsmcore_bench.suite.targets import judge


@pytest.fixture
def result() -> Result:
    return made_up()


def made_up() -> Result:
    chosen = select(contenders(2), "sign-64,pkcs11-executor,many,noop-256,cache-lookup,pykcs11,device-x2")
    rates = {"raw": 18_000, "sign-64": 17_800, "pkcs11-executor": 7_400, "many-256": 17_900, "noop-256": 612_345}
    rates |= {"device-x2-raw": 2_990, "device-x2-ours": 2_980}
    samples = [
        Sample(
            contender=name,
            round=number,
            signatures=rate // 2 + number,
            seconds=0.5,
            latency_ns=Percentiles(p50=3.4e6, p99=7.25e6, p999=9.1e6, mean=3.5e6),
            lag_ns=Percentiles(p50=1e5, p99=2.1e6, p999=3e6, mean=2e5)
            if name in ("sign-64", "device-x2-ours")
            else None,
            cpu_seconds=0.9,
            others=round(0.01 + number / 10, 4),
            ceiling=3_000.0 if name.startswith("device") else None,
        )
        for name, rate in rates.items()
        for number in range(3)
    ]
    made = Result(
        started="2026-01-02T03:04:05+00:00",
        environment={
            "processors": 2,
            "processor": "Example CPU",
            "kernel": "6.1",
            "python": "CPython 3.11.7",
            "versions": {"python-pkcs11": "0.10.1"},
            "module": "SoftHSM 2.6",
            "load_average": [0.1, 0.2, 0.3],
            "load_average_after": [1.9, 0.5, 0.4],
            "stolen_share": 0.0123,
        },
        rounds=3,
        slice_seconds=0.5,
        message_bytes=200,
        contenders=chosen,
        scenarios=[entry.scenario for entry in entries()],
        samples=samples,
        memory=Memory((1_000_000, 2_000_000), (40 << 20, 40 << 20)),
        recovery=[Break("host", again, 16_000.0, 15_200.0, 0, 0) for again in (0.011, 0.012, 0.034)],
        skipped={"pykcs11": "No module named 'PyKCS11'"},
        failed={"cache-lookup": "ended: [oops]"},
    )
    made.summaries = summarise(made)
    chosen = {c.name for c in contenders(2)} | {MEMORY, RECOVERY}
    made.targets = judge(made.by_round().values(), made.memory, chosen, made.recovery)
    return made


@pytest.mark.parametrize(
    ("ns", "text"),
    [
        (None, ""),
        (0.0, "0.00 ns"),
        (117.4, "117 ns"),
        (999.4, "999 ns"),
        (999.6, "1.00 µs"),
        (41_250.0, "41.2 µs"),
        (3_409_000.0, "3.41 ms"),
        (2.5e9, "2.50 s"),
        (12_345e9, "12,345 s"),
    ],
)
def test_duration(ns, text):
    assert duration(ns) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0.9876, "0.99"), (9.994, "9.99"), (9.996, "10.0"), (99.96, "100"), (1234567.8, "1,234,568")]
)
def test_figures_are_three_and_carry_over(value, text):
    assert figures(value) == text


def test_ranges_and_units():
    assert ranged(Spread(0.98, 0.951, 1.012)) == "0.98 (0.95–1.01)"
    assert ranged(None) == ""
    assert [plain(value) for value in (612_345.6, 511.26, 24.345, 0.97961, -0.0216, 0.0, 2)] == [
        *("612,346", "511.3", "24.34", "0.980", "-0.022", "0", "2")
    ]
    assert [with_unit("2", unit) for unit in ("/s", "× raw C", "")] == ["2/s", "2 × raw C", "2"]


def test_json_reads_back_equal(result, tmp_path):
    result.targets = result.verdicts()  # of its own contenders, as those of a file are
    path = tmp_path / "result.json"
    path.write_bytes(to_json(result))
    again = read_json(path)
    assert again == result
    assert again.targets == result.verdicts()
    assert again.samples[0].rate == result.samples[0].rate
    assert markdown(again) == markdown(result)


@pytest.mark.parametrize("content", [b"{}", b"[]", b'{"format": 0}', b'{"format": 1}', b"not json"])
def test_json_of_another_kind_is_refused(content, tmp_path):
    path = tmp_path / "other.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"other\.json is no benchmark result"):
        read_json(path)


def test_markdown_has_a_row_for_each_that_was_measured(result):
    lines = markdown(result).splitlines()
    assert "| raw C loop | 18,002 |  | 3.40 ms | 7.25 ms | 9.10 ms |" in lines
    assert any(line.startswith("| hsmcore sign, 64 in flight | 17,802 | 0.99 |") for line in lines)
    assert any("(latency: batch of 256)" in line for line in lines)
    assert not any(line.startswith(("| PyKCS11", "| **signature cache**")) for line in lines)
    assert "| `await km.sign`, 64 in flight |  | 0.989 × raw C |  |  |" in lines
    assert "| event-loop lag while saturated, 64 in flight, p99 | ≤ 3 ms |  |  | not measured |" in lines
    assert "| the same, p99 latency over 64 ÷ raw rate | ≤ 2.2 × | 2.039 × |  | undecided |" in lines, "of 3 rounds"
    assert lines[-1].endswith(".")
    rows = [line for line in lines if line.startswith("|")]
    assert {line.count("|") for line in rows} == {7, 9, 6}


def test_markdown_has_a_table_of_its_own_for_resilience(result):
    main, resilience, recovery, *_ = markdown(result).split("\n\n")
    assert "hsmcore sign, 76 in flight" not in main
    assert "| hsmcore sign, 76 in flight | 2,982 | 0.994 (0.993–0.995) | 0.997 (0.997–0.997) |" in resilience
    assert resilience.splitlines()[-1].endswith("| 9.10 ms | 2.10 ms |")
    assert "| host process killed, SoftHSM | 3 | 12.0 (11.0–34.0) ms | 16,000/s | 0.95 (0.95–0.95) | 0 |" in recovery
    again = "signing again after SIGKILL for the host process"
    assert f"| {again}, slowest | ≤ 150 ms | 34 ms |  | met |" in markdown(result)
    assert f"| {again}, median | ≤ 50 ms | 12 ms |  | undecided |" in markdown(result)


def test_a_file_from_before_resilience_was_measured_still_reads(result, tmp_path):
    data = result.to_dict()
    del data["recovery"]
    for summary in data["summaries"]:
        del summary["of_ceiling"]
    path = tmp_path / "old.json"
    path.write_text(json.dumps(data))
    assert read_json(path).recovery == []


def test_terminal_names_everything_that_could_not_be_measured(result):
    out = StringIO()
    print_result(result, Console(file=out, width=200, color_system=None))
    text = out.getvalue()
    assert "17,802 (17,800–17,804)" in text
    assert "skipped pykcs11: No module named 'PyKCS11'" in text
    assert "failed cache-lookup: ended: [oops]" in text
    assert "not idle: others used 11% of the machine in the median slice and more than 5% in 14 of 21" in " ".join(
        text.split()
    )
    assert text.count("not measured") >= 2


def test_verdicts_of_a_file_are_made_of_its_rounds(result, tmp_path):
    """Of any version: a target that is gone, a bound that was another, an interval that it had not."""
    data = result.to_dict()
    gone = {"name": "gone", "what": "gone", "formula": "", "unit": "", "bound": 1.0, "at_least": True, "met": True}
    data["targets"] = [{**gone, "value": None, "worst_decides": False}]
    path = tmp_path / "old.json"
    path.write_text(json.dumps(data))
    assert read_json(path).targets == result.verdicts()
    path.write_text(json.dumps({**data, "targets": []}))
    assert read_json(path).targets == [], "an excerpt that is shipped is held against nothing"


def test_the_same_case_twice_says_what_the_run_can_resolve(result):
    assert resolution(result) == ""
    raw = [sample for sample in result.samples if sample.contender == "raw"]
    again = [replace(one, contender="raw-again", signatures=int(one.signatures * by)) for one, by in
             zip(raw, (0.99, 1.0, 1.01), strict=True)]  # fmt: skip
    both = [*raw, *again]
    result.samples = [replace(one, round=one.round + 3 * i, others=0.0) for i in range(2) for one in both]
    result.contenders += [c for c in contenders(2) if c.name == "raw-again"]
    said = "The same case twice, rate ÷ rate: raw 1 (0.990–1.010). Smaller differences cannot be seen here."
    assert resolution(result) == said
    out = StringIO()
    print_result(result, Console(file=out, width=200, color_system=None))
    assert said in markdown(result)
    assert said in page(result)
    assert said in " ".join(out.getvalue().split())
    assert "of more for 2 contenders of targets that were undecided" in headline(result)


def test_terminal_of_eighty_columns_keeps_names_and_medians(result):
    out = StringIO()
    print_result(result, Console(file=out, width=80, color_system=None))
    rows = [line for line in out.getvalue().splitlines() if line.startswith("│ sign-64 ")]
    assert [cell.strip() for cell in rows[0].strip("│").split("│")] == [
        "sign-64",
        "17,802",
        "0.99",
        "3.40 ms",
        "7.25 ms",
        "9.10 ms",
    ]


def test_picture_is_an_svg_of_a_sensible_size_with_every_contender_in_it(result):
    root = ElementTree.fromstring(picture(result, svg.STYLE.read_text()))  # noqa: S314 - our own
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    assert (width, 300 < height < 2000) == (svg.WIDTH, True)
    texts = [element.text or "" for element in root.iter("{http://www.w3.org/2000/svg}text")]
    main = {scenario.title for scenario in result.scenarios if scenario.table == "main"}
    measured = {summary.contender for summary in result.summaries}
    shown = [c for c in result.contenders if c.name in measured and c.group in main]
    assert len(shown) > 3
    for contender in shown:
        assert texts.count(contender.title) == 2, contender.name  # its rate and its latency
    assert "0.99 × · 17,802/s" in texts
    assert "3.40 ms to 9.10 ms" in texts
    places = [float(element.attrib["x"]) for element in root.iter() if "x" in element.attrib]
    assert all(0 <= place <= svg.WIDTH for place in places)


def test_picture_of_nothing_is_refused(result):
    result.summaries = []
    with pytest.raises(ValueError, match="nothing was measured"):
        picture(result, "")
