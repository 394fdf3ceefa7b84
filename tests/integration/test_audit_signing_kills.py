"""No signature gets out without its record, whenever the process is killed."""

from __future__ import annotations

import pytest
from tests.chaos.load import tell
from tests.support.signing_kills import kill_signers
from tests.support.size import share

pytestmark = pytest.mark.integration


def test_no_signature_gets_out_without_its_record(world, tmp_path, capsys):
    kills = share(8)
    out, records = kill_signers(tmp_path, world.config(maxCacheSize=1000), kills=kills, seed=1)
    assert out > 125 * kills
    tell(capsys, f"{kills} kills: {out} signatures got out, {records} records")
