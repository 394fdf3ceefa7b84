"""A fault loop through the life of an audit log: the n-th call on its files fails, for every n.

LD_PRELOAD=disk.so python -m tests.support.audit_faults FOLDER CALLS ONCE FIRST STEP; see disk.c. The calls are those
in the bit mask CALLS. ONCE 1: only the n-th fails; 0: all from the n-th on, until a while later. It begins with n =
FIRST and ends when a life has fewer than n such calls. The last line of its output is how many lives there were.

Whatever fails, an operation raises AuditUnavailable or its record is in the log; once nothing fails any more, the same
log goes on without being opened again, and a checkpoint covers all of it.
"""

from __future__ import annotations

import asyncio
import ctypes
import shutil
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

from tests.support.audit_logs import settings

from hsmcore.audit import AuditLog
from hsmcore.audit.check.verify import verify
from hsmcore.audit.layout import Layout
from hsmcore.audit.sealer import Damaged
from hsmcore.audit.segment import SegmentError
from hsmcore.audit.tiles import TileError
from hsmcore.base.ownership import make_folder
from hsmcore.errors import AuditUnavailable

disk = ctypes.CDLL(None)
disk.disk_count.restype = ctypes.c_long
RECORDS = 1_100  # more than a row of the index has
BYTES = 560_000  # more than so many records, and less than twice as many
FAULTS = (AuditUnavailable, OSError, Damaged, TileError, SegmentError)


async def tried(work: Callable[[], Awaitable[object]]) -> bool:
    """Whether it was done."""
    try:
        await work()
    except FAULTS:
        return False
    return True


async def write(log: AuditLog, records: int) -> int:
    """Record so many operations. Returns the last one that is durable, by what the log says."""
    kept = 0
    for n in range(records):
        try:
            seq = log.record("sign", message=b"%d" % n, result="ok", key_id=f"{n % 7:032x}", signature=bytes(64))
            if n % 200 == 0:
                await log.durable(seq)
                kept = seq or kept
        except AuditUnavailable:
            pass
    return kept


async def becomes(log: AuditLog, work: Callable[[], Awaitable[object]]) -> None:
    """Do it as soon as it can be done: the journal tries again by itself."""
    async with asyncio.timeout(20):
        while not await tried(work):  # noqa: ASYNC110  # in a native thread
            await asyncio.sleep(0.02)


def check(path: Path, kept: int) -> None:
    """Whether all of the log is sealed and good, and has the records up to `kept`."""
    report = verify(Layout(path))
    assert report.ok, report.findings
    assert report.records >= kept
    assert report.unsealed == 0


async def life(path: Path, calls: int, n: int, once: int) -> int:
    """One life, with a fault. Returns how many calls were counted."""
    never = {"checkpointEveryRecords": 10**8, "checkpointEverySeconds": 86_400}
    rules = settings(durability="fsync", rotateBytes=BYTES, waitMs=60_000, **never)
    log = AuditLog(str(path), rules)
    disk.disk_fail(calls, n, once)
    kept = 0
    if await tried(log.open):
        for _ in range(3):
            kept = max(kept, await write(log, RECORDS))
            await tried(log.checkpoint)
        count = disk.disk_count()
        disk.disk_fail(0, 0, 0)
        await becomes(log, log.flush)
        before = log.describe()
        assert before is not None
        await becomes(log, log.checkpoint)
        after = log.describe()
        assert after is not None
        assert after["sealed"] >= before["lastSeq"] >= kept
        await write(log, 10)
        await log.close()
        check(path, kept)
    else:
        count = disk.disk_count()
        disk.disk_fail(0, 0, 0)
    log = AuditLog(str(path), rules)
    await log.open()
    await write(log, 10)
    await log.close()
    check(path, kept)
    return int(count)


async def main(folder: Path, calls: int, once: int, first: int, step: int) -> int:
    """All lives."""
    n = first
    while True:
        path = folder / str(n) / "audit.log"
        make_folder(path.parent)
        try:
            count = await life(path, calls, n, once)
        except BaseException as error:
            error.add_note(f"the fault was in call {n}")
            raise
        shutil.rmtree(path.parent)
        if count < n:
            return n
        n += step


if __name__ == "__main__":
    numbers = [int(each) for each in sys.argv[2:]]
    sys.stdout.write(f"{asyncio.run(main(Path(sys.argv[1]), *numbers))}\n")
