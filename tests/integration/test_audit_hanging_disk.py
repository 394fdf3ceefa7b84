"""A disk that hangs: records that wait for it are bounded, callers are refused, and nothing is lost afterwards."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.support.paths import NOOP, ROOT

from hsmcore.audit.check.verify import verify
from hsmcore.audit.layout import Layout
from hsmcore.audit.segment import segments

pytestmark = pytest.mark.integration

WRITE, SYNC = 1, 2  # as in disk.c
LINE_BYTES = 1024  # more than a record has
SLOTS = 16_384
"""More than the engine has."""


@pytest.fixture(scope="session")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """disk.c, to be preloaded."""
    out = tmp_path_factory.mktemp("disk") / "disk.so"
    source = ROOT / "tests/support/disk.c"
    command = ["gcc", "-std=gnu11", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-pthread", str(source)]
    subprocess.run([*command, "-o", str(out), "-ldl"], check=True)
    return out


def hang(disk: Path, folder: Path, calls: int, seconds: float, most_pending: int, **audit: Any) -> dict[str, Any]:
    """What disk_victim said."""
    pkcs11 = {"modulePath": str(NOOP), "tokenLabel": "noop", "keyLabel": "noop-key", "pin": "1234", "sessions": 2}
    rules = {"auditLogFile": str(folder / "audit.log"), "audit": audit, "maxCacheSize": 0, "requestTimeoutMs": 300}
    manager = {"type": "softhsm", "config": {**pkcs11, "quirks": "softhsm"}, **rules}
    given = {
        "config": {"sequencer": {"keyManager": manager}},
        "calls": calls,
        "seconds": seconds,
        "most_pending": most_pending,
    }
    (folder / "given.json").write_text(json.dumps(given))
    ended = subprocess.run(
        [sys.executable, "-m", "tests.support.disk_victim", str(folder / "given.json")],
        env={**os.environ, "LD_PRELOAD": str(disk)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=seconds + 100,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    said: dict[str, Any] = json.loads(ended.stdout)
    print(said)
    return said


def check(said: dict[str, Any], folder: Path, most_pending: int) -> None:
    """The records are bounded, callers were refused, and each signature that was handed out has its record."""
    assert said["most"] <= most_pending + SLOTS * LINE_BYTES
    assert said["hung"]["refused"] > 0
    assert said["late"] == 0
    assert all("the disk does not answer" in text for text in said["refusals"])
    layout = Layout(folder / "audit.log")
    report = verify(layout)
    assert report.ok, report.findings
    good = b'"operation":"sign","result":"ok"'
    assert sum(text.count(good) for segment in segments(layout) for text in segment.chunks()) >= said["signed"]


HANGS = [("fsync", SYNC), ("write", WRITE), ("interval", SYNC), ("interval", WRITE)]


@pytest.mark.parametrize(("durability", "calls"), HANGS)
def test_pending_bytes_are_bounded_while_the_disk_hangs(disk, tmp_path, durability, calls):
    bound = 4 << 20
    said = hang(disk, tmp_path, calls, 2, bound, durability=durability)
    check(said, tmp_path, bound)
    assert said["most"] >= bound, "the disk was not slow enough to show anything"


@pytest.mark.parametrize(("durability", "calls"), HANGS)
def test_callers_are_refused_once_a_record_has_waited_too_long(disk, tmp_path, durability, calls):
    no_bound = 1 << 40
    said = hang(disk, tmp_path, calls, 1.5, no_bound, durability=durability, waitMs=500)
    check(said, tmp_path, no_bound)
