"""The n-th call on an audit log's files fails: some n here, all of them in audit_at_length.py."""

from __future__ import annotations

import pytest
from tests.support.disk import CALLS, compile_disk, run_on

pytestmark = pytest.mark.integration


@pytest.mark.parametrize("call", CALLS)
def test_a_log_goes_on_after_a_call_has_failed(tmp_path, call):
    disk = compile_disk(tmp_path)
    said = run_on(disk, "tests.support.audit_faults", tmp_path, CALLS[call], 1, 5, 16, seconds=200)
    assert int(said) > 32, "fewer calls than a life has"
