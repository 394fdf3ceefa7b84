"""The Python side of disk.c: compile it, and run a module of ours with it preloaded."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

from tests.support.paths import ROOT

WRITE, SYNC, OPEN, NAME = 1, 2, 4, 8
CALLS: Final = {"write": WRITE, "sync": SYNC, "open": OPEN, "name": NAME}


def compile_disk(folder: Path) -> Path:
    """Build it. Returns the shared object."""
    out = folder / "disk.so"
    command = ["gcc", "-std=gnu11", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-pthread"]
    subprocess.run([*command, str(ROOT / "tests/support/disk.c"), "-o", str(out), "-ldl"], check=True)
    return out


def run_on(disk: Path, module: str, *arguments: object, seconds: float) -> str:
    """Run a module of the tests with it. Returns its output; fails with its errors."""
    ended = subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)],
        env={**os.environ, "LD_PRELOAD": str(disk)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-4000:]
    return ended.stdout
