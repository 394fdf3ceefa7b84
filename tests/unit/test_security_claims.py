"""docs/SECURITY.md and docs/FLEET.md name the test that keeps each claim: they exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
DOCS = TESTS.parent / "docs"
TEXT, FLEET = (DOCS / "SECURITY.md").read_text(), (DOCS / "FLEET.md").read_text()
CLAIM = re.compile(r"`((?:unit|integration|chaos|browser|contract)/test_\w+\.py)(?:::(test_\w+))?`")
NAMED = sorted(set(CLAIM.findall(TEXT + FLEET)))


def exists(path: str, name: str) -> bool:
    file = TESTS / path
    return file.is_file() and bool(not name or re.search(rf"^(?:async )?def {name}\(", file.read_text(), re.MULTILINE))


def test_the_tests_exist():
    assert len([name for _, name in NAMED if name]) > 30
    assert [claim for claim in NAMED if not exists(*claim)] == []


def test_each_threat_names_a_test():
    section = TEXT[TEXT.index("## Threats") : TEXT.index("## Roles")]
    rows = [line for line in section.splitlines() if line.startswith("| ") and not line.startswith("| Threat")]
    assert len(rows) > 20
    assert [row for row in rows if "test_" not in row.rpartition(" | ")[2]] == []


@pytest.mark.parametrize("heading", ["## What happens when what breaks", "## Guarantees, and what shows them"])
def test_each_claim_about_a_fleet_names_a_test(heading):
    section = FLEET[FLEET.index(heading) :].partition("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 10
    assert [row for row in rows if "test_" not in row.rpartition(" | ")[2]] == []
