"""What README and docs/RESULTS.md say of the newest kept result is what `hsmcore bench table` makes of it."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from hsmcore_bench.suite.contenders import contenders
from hsmcore_bench.suite.excerpts import SAFETIES
from hsmcore_bench.suite.model import Spread, Summary
from hsmcore_bench.suite.picture import rates
from hsmcore_bench.suite.readme import (
    BEGIN,
    END,
    ROWS,
    ROWS_BEGIN,
    ROWS_END,
    chart,
    placed,
    rows,
    table,
    updated,
    write,
)
from hsmcore_bench.suite.report import bound, counted, reached, sure
from hsmcore_bench.suite.results import KEPT, newest, to_json
from hsmcore_bench.suite.targets import judge

ROOT = Path(__file__).parents[2]
DOCUMENTS = ("README.md", "docs/RESULTS.md", "docs/results.svg")


@pytest.mark.parametrize("name", DOCUMENTS)
def test_the_documents_and_the_results_agree(name):
    """As soon as a result from an idle machine is kept; figures from a busy one never stand there."""
    text = (ROOT / name).read_text(encoding="utf-8")
    try:
        path, result = newest(ROOT / KEPT, idle=True)
    except ValueError:
        assert "Not made on an idle machine" not in text
        assert f"From `{KEPT}" not in text
        return
    command = "run: hsmcore bench table " + " ".join(f"--write {document}" for document in DOCUMENTS)
    assert updated(ROOT / name, result, path.relative_to(ROOT).as_posix()) == text, command
    assert set(re.findall(r"--results (\S+\.json)", text)) <= {path.relative_to(ROOT).as_posix()}


def test_the_readme_has_its_rows_and_the_worst_of_the_missed_targets():
    _, result = newest(ROOT / KEPT)
    made = rows(result, "r.json")
    assert [line.split("|")[1].strip() for line in made.splitlines()[3:] if line.startswith("| ")] == list(
        ROWS.values()
    )
    lines = {title: line for title in ROWS.values() for line in made.splitlines() if line.startswith(f"| {title} |")}
    assert re.search(r" \d\.\d\d × raw C \|  \| ", lines[ROWS["stack-256"]])
    assert re.search(r" \d\.\d\d × without \| \d+\.\d µs \| ", lines[ROWS["stack-64"]])
    said = counted(result.targets)
    assert re.fullmatch(r"Of \d+ targets \d+ are met, \d+ missed, \d+ undecided(, \d+ not measured)?", said)
    assert f"{said} ([each with its reason](docs/RESULTS.md)); furthest" in made
    missed = sum(verdict.call == "missed" for verdict in result.targets)
    assert len(worst(made)) == min(missed, 3)
    assert not re.search(r"[:;] the same\b", made)
    result.targets = [replace(verdict, met=True) for verdict in result.targets]
    assert re.search(
        r"\d+ are met, 0 missed(, \d+ not measured)? \(\[each .*?\]\(.*?\)\)\.\n\nFrom", rows(result, "r.json")
    )


def worst(made):
    """The targets that the README names."""
    [said] = re.findall(r"furthest from their bounds: (.*)\.$", made, re.MULTILINE)
    return said.split("; ")


def test_the_worst_is_furthest_from_its_bound_whatever_the_unit():
    _, result = newest(ROOT / KEPT)
    first = replace(result.targets[0], unit="×", worst_decides=False)

    def target(what, value, bound, *, at_least, met=False):
        spread = None if value is None else Spread(value, value, value)
        return replace(first, what=what, value=spread, bound=bound, at_least=at_least, met=met)

    result.targets = [
        target("half", 0.5, 1.0, at_least=True),
        target("the same, thrice", 9.0, 3.0, at_least=False),
        target("one of none", 1.0, 0.0, at_least=False),
        target("nearly", 0.99, 1.0, at_least=True),
        target("met", 9.0, 1.0, at_least=True, met=True),
        target("open", None, 1.0, at_least=True, met=None),
        target("chance", 0.1, 1.0, at_least=True, met=None),
        target("shown", 0.1, None, at_least=True, met=None),
    ]
    made = rows(result, "r.json")
    assert "Of 7 targets 1 are met, 4 missed, 1 undecided, 1 not measured (" in made
    assert [name.partition(" (")[0] for name in worst(made)] == ["one of none", "half: thrice", "half"]


def test_every_missed_target_stands_in_the_results():
    _, result = newest(ROOT / KEPT, idle=True)
    text = (ROOT / "docs" / "RESULTS.md").read_text(encoding="utf-8")
    missed = [v for v in result.targets if v.call == "missed"]
    assert missed
    assert [
        v.name for v in missed if f"| {v.what} | {bound(v)} | {reached(v)} | {sure(v)} | missed |" not in text
    ] == []


def test_what_safety_costs_and_other_libraries_stand_beside_the_rows():
    """Once they were measured; until then nothing of them."""
    _, result = newest(ROOT / KEPT)
    result.contenders = [c for c in result.contenders if c.scenario != "stack" and c.name != "device-5ms-executor"]
    assert "| with |" not in table(result, "r")
    assert "what safety leaves" not in chart(result)
    with_them(result)
    made = table(result, "r")
    assert re.search(
        r"\| the whole stack, SoftHSM, 64 in flight \| 900 \| 0.900 \|  \| [\d.]+ µs \| 1.00 ms \| 2.00 ms \|", made
    )
    assert "| the whole stack, network-5ms, 256 in flight, beside raw C | 900 | 0.900 | ≥ 0.98 | " in made
    assert "| failover enabled, no-op module, 256 in flight | 900 | 0.900 |  |" in made
    assert "raw C itself is only 1.1 to 1.1 × as fast as other libraries" in made
    assert "| network-5ms: PyKCS11, one thread | 900 | 0.900 |" in made
    assert "| no-op module: PyKCS11, one thread | 900 |  |" in made
    assert "| with |" not in rows(result, "r"), "the README is short, and its picture shows them"
    picture = chart(result)
    assert all(f">{c.title}</text>" in picture for c in result.contenders if c.name in SAFETIES)
    assert picture.count('stroke-width="3"') == 4, "what a rate decides: not beside SoftHSM, where it is chance"
    assert "PyKCS11, one thread" in picture


def with_them(result):
    """A result of today's contenders, each at 0.9 of its reference."""
    flat = Spread(900.0, 890.0, 910.0)
    result.contenders = contenders(2)
    result.summaries = [
        Summary(c.name, flat, c.reference and Spread(0.9, 0.8, 1.0), 1e6, 2e6, 3e6, None, None)
        for c in result.contenders
    ]
    names = {c.name for c in result.contenders}
    result.targets = judge([], None, names)


def test_what_signs_nothing_has_no_bar_beside_rates():
    _, result = newest(ROOT / KEPT)
    with_them(result)
    drawn = [row for row in zip(result.contenders, result.summaries, strict=True) if row[0].scenario == "audit"]
    made = rates(drawn)
    assert "fdatasync" not in made.inside
    assert "audit log, fsync, SoftHSM, 1 in flight" in made.inside


def test_the_picture_is_a_whole_document():
    root = ElementTree.fromstring(chart(newest(ROOT / KEPT)[1]))  # noqa: S314 - our own
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert root.findtext("{http://www.w3.org/2000/svg}title")
    assert len(list(root.iter("{http://www.w3.org/2000/svg}rect"))) > len(ROWS)


def test_kept_results_are_small():
    for path in (ROOT / KEPT).glob("*.json"):
        assert path.stat().st_size < 400_000, f"{path.name}: keep full runs only, and few of them"


@pytest.mark.parametrize(("others", "warned"), [(0.01, False), (0.5, True)])
def test_a_table_from_a_busy_machine_says_so(others, warned):
    _, result = newest(ROOT / KEPT)
    result.samples = [replace(sample, others=others) for sample in result.samples]
    for made in (table(result, "r.json"), rows(result, "r.json")):
        assert ("Not made on an idle machine: others used 50%" in made) == warned


def test_writing_changes_what_is_between_the_markers_only(tmp_path):
    document = tmp_path / "d.md"
    text = f"before\n{BEGIN}\nold\n{END}\nafter\n"
    assert placed(text, "new \\1\n") == f"before\n{BEGIN}\nnew \\1\n{END}\nafter\n"
    _, result = newest(ROOT / KEPT)
    for begin, end, made in ((BEGIN, END, table(result, "r")), (ROWS_BEGIN, ROWS_END, rows(result, "r"))):
        document.write_text(f"before\n{begin}\nold\n{end}\nafter\n")
        assert write(document, result, "r")
        assert document.read_text() == f"before\n{begin}\n{made}{end}\nafter\n"
        assert not write(document, result, "r")


@pytest.mark.parametrize("text", ["", f"{BEGIN}\n", f"{END}\n{BEGIN}\n", f"{BEGIN}\n{END}\n{BEGIN}\n{END}\n"])
def test_a_document_without_both_markers_is_refused(text, tmp_path):
    document = tmp_path / "d.md"
    document.write_text(text)
    with pytest.raises(ValueError, match=r"d\.md: needs a line"):
        write(document, newest(ROOT / KEPT)[1], "r")
    assert document.read_text() == text


def test_no_results_say_what_to_do(tmp_path):
    with pytest.raises(ValueError, match="hsmcore bench"):
        newest(tmp_path)
    _, busy = newest(ROOT / KEPT)
    busy.samples = [replace(sample, others=0.5) for sample in busy.samples]
    (tmp_path / "busy.json").write_bytes(to_json(busy))
    assert newest(tmp_path)[1].started == busy.started
    with pytest.raises(ValueError, match="from an idle machine"):
        newest(tmp_path, idle=True)
