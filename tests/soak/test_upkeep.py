"""The upkeep of a small store under a caller, in a process of its own: it ends, and what is too much is gone."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from tests.support.paths import ROOT
from tests.support.softhsm import find_module

pytestmark = pytest.mark.integration


@pytest.mark.slow("two lives with a store that has to be filled first")
@pytest.mark.skipif(find_module() is None, reason="SoftHSM is not installed")
def test_a_caller_signs_while_a_store_is_backed_up_and_made_smaller():
    options = ["--positions=20000", "--events=15000", "--steps=200", "--quiet=0.1", "--sealed", "--json"]
    command = [sys.executable, "-m", "tests.soak.upkeep", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert {"backup", "quiet"} <= found["first"].keys()
    assert {"retention", "quiet"} <= found["then"].keys()
    assert min(found["first"]["signed"], found["then"]["signed"]) > 0
