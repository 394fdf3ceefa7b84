"""A disk that hangs: records that wait for it are bounded, callers are refused, and nothing is lost afterwards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.support.disk import SYNC, WRITE, compile_disk, run_on
from tests.support.paths import NOOP

from hsmcore.audit.check.verify import verify
from hsmcore.audit.layout import Layout
from hsmcore.audit.segment import segments

pytestmark = pytest.mark.integration

LINE_BYTES = 1024  # more than a record has
SLOTS = 16_384
"""More than the engine has."""


@pytest.fixture(scope="session")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """disk.c, to be preloaded."""
    return compile_disk(tmp_path_factory.mktemp("disk"))


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
    said: dict[str, Any] = json.loads(
        run_on(disk, "tests.support.disk_victim", folder / "given.json", seconds=seconds + 100)
    )
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


@pytest.mark.parametrize(
    ("durability", "calls"), [HANGS[0], *(pytest.param(*one, marks=pytest.mark.deep) for one in HANGS[1:-1]), HANGS[-1]]
)
def test_pending_bytes_are_bounded_while_the_disk_hangs(disk, tmp_path, durability, calls):
    bound = 4 << 20
    said = hang(disk, tmp_path, calls, 2, bound, durability=durability)
    check(said, tmp_path, bound)
    assert said["most"] >= bound, "the disk was not slow enough to show anything"


@pytest.mark.parametrize(("durability", "calls"), [HANGS[0], HANGS[-1]])
def test_callers_are_refused_once_a_record_has_waited_too_long(disk, tmp_path, durability, calls):
    no_bound = 1 << 40
    said = hang(disk, tmp_path, calls, 1.5, no_bound, durability=durability, waitMs=500)
    check(said, tmp_path, no_bound)
