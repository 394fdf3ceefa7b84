"""What a policy costs each message: to tell what it is, and to hold a transaction against the rules."""

from __future__ import annotations

import pytest
from bench.micro.kit import PerCall

from hsmcore._native import Gate
from hsmcore_bench.suite.child.payloads import transactions

CALLS = 1000


@pytest.mark.benchmark(group="policy")
@pytest.mark.parametrize("rules", [0, 20])
def test_gate(per_call: PerCall, rules: int) -> None:
    """A transaction of 200 bytes; `rules`: programs that may be called, of which it calls one."""
    [message] = transactions(1, 200)
    listed = [bytes([2]) * 32, *(bytes([100 + n]) * 32 for n in range(rules - 1))]
    gate = Gate(kinds=["tx-v0"], domain="default", programs=listed if rules else None)

    def judge() -> None:
        for _ in range(CALLS):
            assert gate.passes(message, None)

    per_call(judge, CALLS)
