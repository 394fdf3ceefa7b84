"""The README's table is what `hsmcore bench table` makes of the newest kept result."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from hsmcore_bench.suite.readme import BEGIN, END, placed, table, write
from hsmcore_bench.suite.results import KEPT, newest, to_json

ROOT = Path(__file__).parents[2]


def test_the_readme_and_the_results_agree():
    """As soon as a result from an idle machine is kept; figures from a busy one never stand there."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    try:
        path, result = newest(ROOT / KEPT, idle=True)
    except ValueError:
        assert "Not made on an idle machine" not in text
        assert f"From `{KEPT}" not in text
        return
    made = table(result, path.relative_to(ROOT).as_posix())
    assert placed(text, made) == text, "run: hsmcore bench table --write README.md"


def test_kept_results_are_small():
    for path in (ROOT / KEPT).glob("*.json"):
        assert path.stat().st_size < 400_000, f"{path.name}: keep full runs only, and few of them"


@pytest.mark.parametrize(("others", "warned"), [(0.01, False), (0.5, True)])
def test_a_table_from_a_busy_machine_says_so(others, warned):
    _, result = newest(ROOT / KEPT)
    result.samples = [replace(sample, others=others) for sample in result.samples]
    assert ("Not made on an idle machine: others used 50%" in table(result, "r.json")) == warned


def test_writing_changes_what_is_between_the_markers_only(tmp_path):
    document = tmp_path / "d.md"
    document.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    assert write(document, "new \\1\n")
    assert document.read_text() == f"before\n{BEGIN}\nnew \\1\n{END}\nafter\n"
    assert not write(document, "new \\1\n")


@pytest.mark.parametrize("text", ["", f"{BEGIN}\n", f"{END}\n{BEGIN}\n", f"{BEGIN}\n{END}\n{BEGIN}\n{END}\n"])
def test_a_document_without_both_markers_is_refused(text, tmp_path):
    document = tmp_path / "d.md"
    document.write_text(text)
    with pytest.raises(ValueError, match=r"d\.md: needs a line"):
        write(document, "new")
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
