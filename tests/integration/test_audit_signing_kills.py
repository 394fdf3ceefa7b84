"""No signature gets out without its record, whenever the process is killed."""

from __future__ import annotations

import pytest
from tests.chaos.load import tell
from tests.support.signing_kills import kill_signers

pytestmark = pytest.mark.integration


def test_no_signature_gets_out_without_its_record(world, tmp_path, capsys):
    out, records = kill_signers(tmp_path, world.config(maxCacheSize=1000), kills=8, seed=1)
    assert out > 1000
    tell(capsys, f"8 kills: {out} signatures got out, {records} records")
