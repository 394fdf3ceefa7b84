"""The fault loops through an audit log for every n: once, and from the n-th call on. `make check-deep` runs it."""

from __future__ import annotations

import pytest
from tests.support.disk import CALLS, compile_disk, run_on

pytestmark = pytest.mark.integration


@pytest.mark.parametrize("call", CALLS)
def test_any_one_call_may_fail(tmp_path, call):
    said = run_on(compile_disk(tmp_path), "tests.support.audit_faults", tmp_path, CALLS[call], 1, 1, 1, seconds=1000)
    assert int(said) > 32


def test_every_call_may_fail_from_any_one_on(tmp_path):
    calls = sum(CALLS.values())
    said = run_on(compile_disk(tmp_path), "tests.support.audit_faults", tmp_path, calls, 0, 1, 1, seconds=1100)
    assert int(said) > 200
