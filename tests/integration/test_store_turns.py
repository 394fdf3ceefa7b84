"""SoftHSM's tokens are files that every process with the same configuration has: logging in disturbs none of them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support.chaos import copy_of
from tests.support.paths import ROOT

pytestmark = pytest.mark.integration

ROUNDS = 150


@pytest.mark.parametrize(("children", "copies"), [(1, 3), (3, 1)], ids=["one process", "three processes"])
def test_a_token_is_there_while_others_log_in(fresh_token, tmp_path, children, copies):
    """Without turns, a C_Initialize misses the token now and then; SoftHSM may also end the process by an assertion."""
    token = fresh_token()
    modules = []
    for number in range(copies):
        (tmp_path / str(number)).mkdir()
        modules.append(str(copy_of(Path(token.module), tmp_path / str(number))))
    asked = {"modules": modules, "token": token.label, "pin_file": str(token.pin_file), "rounds": ROUNDS}
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.support.store_turns", json.dumps(asked)],
            cwd=ROOT,
            env=token.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(children)
    ]
    ends = [(*child.communicate(timeout=60), child.returncode) for child in running]
    assert ends == [("0\n", "", 0)] * children
