"""kill -9 at any moment, repeatedly, on one log."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
from pathlib import Path

from tests.support.audit_logs import keys_of, write_log
from tests.support.zygote import Forked

from hsmcore.audit.check.trust import Trust
from hsmcore.audit.check.verify import verify
from hsmcore.audit.layout import Layout
from hsmcore.audit.query import Query
from hsmcore.audit.segment import segments


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


def kill_at_segment_ends(folder: Path, kills: int, seed: int) -> int:
    """Logs whose last checkpoint ends with a full file, or whose writer was killed while it made the next one. Each
    verifies as the kill left it, goes on, and verifies again. Returns how many."""
    program = [sys.executable, "-m", "tests.support.audit_segment_end", str(folder), str(kills), str(seed)]
    subprocess.run(program, check=True, timeout=1500)
    verified = 0
    for place in sorted(folder.iterdir()):
        layout = Layout(place / "audit.log")
        for records in (0, 3):
            if records:
                asyncio.run(write_log(layout.log, records))
            report = verify(layout, Trust(keys=keys_of(layout)))
            assert report.ok, f"{place}, {records} records later: {report.findings}"
        assert report.unsealed == 0
        assert segments(layout)[0].compressed
        verified += 1
    return verified


def _run_and_kill(path: Path, acknowledgements: int) -> int:
    """Kill the writer right after so many acknowledgements; returns the last one it printed."""
    with Forked(["tests.support.audit_victim", str(path)], stdout=subprocess.PIPE, text=True) as victim:
        assert victim.stdout is not None
        last = 0
        for _, line in zip(range(acknowledgements), victim.stdout, strict=False):
            last = int(line)
        victim.kill()
        rest = victim.stdout.read().splitlines(keepends=True)
    return max([last, *(int(line) for line in rest if line.endswith("\n"))])
