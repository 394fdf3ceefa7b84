"""How much a test tries: `make check-deep` sets HSMCORE_TESTS=full, and everything else tries a quarter."""

from __future__ import annotations

import os

VARIABLE = "HSMCORE_TESTS"
FULL = os.environ.get(VARIABLE) == "full"
assert FULL or VARIABLE not in os.environ, f"{VARIABLE} is full or not set"


def share(count: int, least: int = 1) -> int:
    """How many of `count` examples, seeds or rounds to try now, at least `least`."""
    return count if FULL else max(least, -(-count // 4))
