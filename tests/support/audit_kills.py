"""kill -9 at any moment, repeatedly, on one log."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

from tests.support.audit_logs import keys_of

from hsmcore.audit.check.trust import Trust
from hsmcore.audit.check.verify import verify
from hsmcore.audit.layout import Layout
from hsmcore.audit.query import Query


def kill_again_and_again(path: Path, kills: int, seed: int) -> None:
    """Each time: what was acknowledged is there, and the log verifies, growing out of every checkpoint before."""
    dice = random.Random(seed)
    layout, known = Layout(path), []
    for number in range(kills):
        acknowledged = _run_and_kill(path, dice.randrange(1, 120))
        report = verify(layout, Trust(keys=keys_of(layout), against=known))
        assert report.ok, f"after kill {number}: {report.findings}"
        assert report.records + report.unsealed >= acknowledged, f"kill {number} lost acknowledged records"
        known = [*known, layout.checkpoint.read_bytes()][-5:]
        if layout.log.stat().st_size > 1 << 15 and number % 10 == 0:
            seqs = [record["seq"] for block in Query(layout, None, None, None).blocks() for record in block]
            assert seqs == list(range(1, len(seqs) + 1))


def _run_and_kill(path: Path, acknowledgements: int) -> int:
    """Kill the writer right after so many acknowledgements; returns the last one it printed."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.support.audit_victim", str(path)], stdout=subprocess.PIPE, text=True
    ) as victim:
        assert victim.stdout is not None
        last = 0
        for _, line in zip(range(acknowledgements), victim.stdout, strict=False):
            last = int(line)
        victim.kill()
        rest = victim.stdout.read().splitlines(keepends=True)
    return max([last, *(int(line) for line in rest if line.endswith("\n"))])
