"""docs/TUTORIAL.md, run from top to bottom as it stands there: each command prints what the page shows."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.doc_blocks import blocks
from tests.support.paths import ROOT

pytestmark = [pytest.mark.integration, pytest.mark.slow("runs some twenty commands"), pytest.mark.timeout(300)]
PAGE = "docs/TUTORIAL.md"
SAVED = re.compile(r"[Ss]ave (?:this|it) as `([^`]+)`")
"""Under which name the page has its next JSON or program saved."""


def commands(text: str) -> Iterator[tuple[str, str]]:
    """Each command of a block for a console, and what it prints."""
    for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        command, _, printed = part.partition("\n")
        yield command, printed


def shown(printed: str) -> re.Pattern[str]:
    """What a page shows, as a pattern: a line that is … stands for any lines, … in a line for anything in it."""
    lines = [
        r"(?:.*\n)*" if line == "…" else re.escape(line).replace("…", ".*") + "\n" for line in printed.splitlines()
    ]
    return re.compile("".join(lines))


def test_what_a_page_shows_is_compared():
    assert shown("a\n…\nb …\n").fullmatch("a\nx\ny\nb 7\n")
    assert shown("a\n…\n").fullmatch("a\n")
    assert not shown("a\n").fullmatch("a\nb\n")
    assert not shown("a …\n").fullmatch("a b\nc\n")
    assert list(commands("$ one\n1\n2\n$ two\n")) == [("one", "1\n2\n"), ("two", "")]


def test_the_tutorial_does_what_it_says(tmp_path):
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HSM", "SOFTHSM"))}
    environment |= {"PATH": f"{Path(sys.executable).parent}:{environment['PATH']}", "PYTHONUNBUFFERED": "1"}
    steps = sorted((one for one in blocks() if one.document == PAGE), key=lambda one: one.line)
    names = iter(SAVED.findall((ROOT / PAGE).read_text()))
    ran = 0
    for step in steps:
        if step.language != "console":
            (tmp_path / next(names)).write_text(step.text)
            continue
        for command, printed in commands(step.text):
            if found := re.fullmatch(r"export (\w+)=\$PWD/(\S+)", command):
                environment[found[1]] = str(tmp_path / found[2])
                continue
            ended = subprocess.run(
                ["bash", "-c", command],
                cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
            )  # fmt: skip
            assert shown(printed).fullmatch(ended.stdout), f"$ {command}\n{ended.stdout}"
            ran += 1
    assert ran > 15
    assert next(names, None) is None, "each file that the page names was written"
    assert list(tmp_path.iterdir()) == [], "the page cleans up"
