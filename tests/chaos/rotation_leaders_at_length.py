"""A thousand schedules of rotation_model.py: interrupted at each step, then led by each other kind of process. Run it
by its path; `make check-deep` does."""

from __future__ import annotations

import pytest

pytest.importorskip("solders")
from tests.support.seeds import run_command


@pytest.mark.timeout(3600)
def test_a_thousand_schedules():
    code, found = run_command("tests.chaos.rotation_model", "0-999", 3500)
    assert (code, found["schedules"], found["faults"]) == (0, 1000, {}), found["notes"]
