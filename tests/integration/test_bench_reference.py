"""The raw C loop against a second loop that shares no line with it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tests.reference.check import Figures, judge, measure

from hsmcore.bench.locate import RAW_SIGN, SOFTHSM_MODULE, native

pytestmark = pytest.mark.integration


@pytest.mark.skipif(not Path(SOFTHSM_MODULE).exists(), reason="SoftHSM is not installed")
@pytest.mark.skipif(native(RAW_SIGN) is None, reason=f"{RAW_SIGN} was not built")
@pytest.mark.skipif(shutil.which("cc") is None or shutil.which("pkg-config") is None, reason="no C compiler")
def test_both_loops_spend_the_same_on_a_signature(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    found = measure(rounds=8, seconds=0.1, threads=1)
    assert min(found.rates) > 0
    # `make reference` holds it against 2 % on an idle machine; caches that others share move processor time, too.
    assert 0.8 < found.cpu.median < 1.25
    assert list(tmp_path.iterdir()) == []


def test_a_loop_that_does_more_is_not_fair():
    fair = [(Figures(1000 + n, 1e-4), Figures(1003 + n, 1e-4)) for n in range(9)]
    assert judge(fair).fair
    slow = [(Figures(960 + n, 1.04e-4), Figures(1003 + n, 1e-4)) for n in range(9)]
    assert not judge(slow).fair
    assert judge(slow).cpu.low > 1.02
