"""What a token can do at most, for rates given as a share of it."""

from __future__ import annotations

import select
import time
from collections.abc import Sequence
from typing import Final

from hsmcore.errors import MemberDown
from hsmcore_bench.load.generator import Path_, Share, has_ring, start
from hsmcore_bench.load.mix import Kind
from hsmcore_bench.load.problems import UsageProblem
from hsmcore_bench.load.shapes import Segment
from hsmcore_bench.load.target import Target

_WARM_SECONDS: Final = 0.5
_SECONDS: Final = 2.0
_MORE_THAN_ANY: Final = 100e6
"""Requests per second."""
_LONG_SECONDS: Final = 1000.0
_TIMEOUT_SECONDS: Final = 0.5
"""Of a request where more is asked for than can be signed: short, so that the queue is soon as long as it will be."""


def measure(target: Target, kinds: Sequence[Kind], path: Path_ = "raw") -> float:
    """Signatures per second of plain PKCS#11 in C: a thread that never waits for each session of the configuration. Of
    another path: what it signs when it is asked for as many. Raises HsmError, UsageProblem."""
    if not has_ring(target):
        raise UsageProblem("a rate in % is measured with raw C, on one PKCS#11 member: give requests per second")
    most = _signed(target, kinds, "raw", _MORE_THAN_ANY, _LONG_SECONDS)
    return most if path == "raw" else _signed(target, kinds, path, most, _TIMEOUT_SECONDS)


def _signed(target: Target, kinds: Sequence[Kind], path: Path_, rate: float, timeout: float) -> float:
    segments = (Segment(_LONG_SECONDS, rate, rate),)
    share = Share(0, 1, segments, kinds, 0, False, timeout, 0.1, None)
    with start(path, target, share) as generator:
        generator.ready()
        begin = time.monotonic_ns()
        generator.send(f"go {begin}\n".encode())
        signed, counted_from, counted_to = 0, 0.0, 0.0
        while counted_to < _WARM_SECONDS + _SECONDS:
            select.select([generator], [], [], 1.0)
            for line in generator.lines():
                if "at" not in line:
                    continue
                if line["at"] <= _WARM_SECONDS:
                    counted_from = line["at"]
                else:
                    signed += line["signed"]
                counted_to = line["at"]
            if generator.at_end:
                raise generator.ended()
            if time.monotonic_ns() - begin > (_WARM_SECONDS + _SECONDS + 30) * 1e9:
                raise MemberDown("the token made no signature while its capacity was to be measured")
    if signed == 0:
        raise MemberDown("the token made no signature while its capacity was to be measured")
    return signed / (counted_to - counted_from)
