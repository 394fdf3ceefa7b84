"""The ceilings of tests/size.json only fall, and each of them can fail a build."""

from __future__ import annotations

import json
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader

import pytest
from tests.support.paths import ROOT

CEILINGS = json.loads((ROOT / "tests" / "size.json").read_text())
LOADER = SourceFileLoader("size", str(ROOT / "scripts" / "size"))
SIZE = module_from_spec(spec_from_loader("size", LOADER))
LOADER.exec_module(SIZE)


@pytest.mark.parametrize("part", CEILINGS)
def test_a_ceiling_holds(part):
    ceiling = CEILINGS[part]
    assert SIZE.faults(CEILINGS, CEILINGS) == []
    assert part in str(SIZE.faults(CEILINGS | {part: ceiling + 1}, CEILINGS))
    assert "--lower" in str(SIZE.faults(CEILINGS | {part: int(0.98 * ceiling) - 1}, CEILINGS))
    assert SIZE.lowered(CEILINGS | {part: ceiling + 1}, CEILINGS) == CEILINGS
    assert SIZE.lowered(CEILINGS | {part: ceiling - 1}, CEILINGS) == CEILINGS | {part: ceiling - 1}


def test_a_part_without_a_ceiling_holds_nothing():
    assert SIZE.faults(CEILINGS | {"core/hsmcore/new": 1}, CEILINGS) != []
    without = {part: size for part, size in CEILINGS.items() if part != "native"}
    assert SIZE.faults(without, CEILINGS) != []
    assert SIZE.lowered(without, CEILINGS) == without


@pytest.mark.parametrize(
    ("suffix", "text", "expected"),
    [
        (".py", '"""Prose."""\nx = f"{a}" + "b"  # why\n', 5),
        (".pyx", 'cdef int f(int a):\n    """Prose."""\n    return a + 1  # why\n', 12),
        (".c", 'int f(void) { /* why */ return "a b" == 0; } // no\n', 12),
        (".rs", "let a = b::c;\n", 7),
        (".sql", "select 1; -- why\n", 3),
    ],
)
def test_tokens_are_what_is_left_without_comments_and_layout(suffix, text, expected):
    assert SIZE.tokens(text, suffix) == expected
