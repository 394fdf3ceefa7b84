"""docs/SECURITY.md names the test that keeps each claim: they exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
TEXT = (TESTS.parent / "docs" / "SECURITY.md").read_text()
NAMED = sorted(set(re.findall(r"`((?:unit|integration|chaos|browser|contract)/test_\w+\.py)(?:::(test_\w+))?`", TEXT)))


def test_there_are_claims():
    assert len([name for _, name in NAMED if name]) > 30


@pytest.mark.parametrize(("path", "name"), NAMED)
def test_the_test_exists(path, name):
    text = (TESTS / path).read_text()
    assert not name or re.search(rf"^(?:async )?def {name}\(", text, re.MULTILINE)


def test_each_threat_names_a_test():
    section = TEXT[TEXT.index("## Threats") : TEXT.index("## Roles")]
    rows = [line for line in section.splitlines() if line.startswith("| ") and not line.startswith("| Threat")]
    assert len(rows) > 20
    assert [row for row in rows if "test_" not in row.rpartition(" | ")[2]] == []
