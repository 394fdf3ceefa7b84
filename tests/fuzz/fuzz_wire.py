"""Frames of hsmcore-wire/1; `python -m tests.fuzz.wire` says what is looked at."""

from __future__ import annotations

import zlib
from random import Random

from tests.fuzz.engine import main
from tests.fuzz.wire import problem_of, seeds


def one(data: bytes) -> str:
    """Read them whole and in pieces."""
    problem, did = problem_of(data, Random(zlib.crc32(data)))
    assert problem is None, problem
    return did


if __name__ == "__main__":
    main(seeds, one)
