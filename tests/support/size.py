"""How much a test tries: `make check-deep` sets HSMCORE_TESTS=full, and everything else tries a quarter."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

VARIABLE = "HSMCORE_TESTS"
FULL = os.environ.get(VARIABLE) == "full"
assert FULL or VARIABLE not in os.environ, f"{VARIABLE} is full or not set"


def share(count: int, least: int = 1) -> int:
    """How many of `count` examples, seeds or rounds to try now, at least `least`."""
    return count if FULL else max(least, -(-count // 4))


def each(every: int, cases: Iterable[Any]) -> list[Any]:
    """Cases for parametrize: of `every` of them `make test` tries the first one, and `make check-deep` the others, too.
    For cases without a code path of their own."""
    return [_case(case if isinstance(case, tuple) else (case,), number % every) for number, case in enumerate(cases)]


def crossed(rows: Iterable[Any], columns: Iterable[Any]) -> list[Any]:
    """Pairs for parametrize: in `make test` enough to have each row and each column, in `make check-deep` all."""
    above, beside = list(rows), list(columns)
    least = min(len(above), len(beside))
    return [_case((row, column), (i - j) % least) for i, row in enumerate(above) for j, column in enumerate(beside)]


def _case(values: tuple[Any, ...], deep: object) -> Any:
    import pytest

    return pytest.param(*values, marks=[pytest.mark.deep] if deep else [])
