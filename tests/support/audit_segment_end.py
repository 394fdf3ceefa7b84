"""A process that ends as `kill -9` ends it: its last checkpoint covers a segment to its end, and the next one is begun.

The sealer has not seen that the segment is full, so its index lacks the last block.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
from pathlib import Path

from tests.support.audit_logs import SMALLEST_SEGMENT, settings
from tests.support.audit_pruning_kills import Fuse

from hsmcore.audit import AuditLog
from hsmcore.audit.layout import Layout


async def main(path: str, record_bytes: int = 4000, fuse: Fuse | None = None) -> None:
    """`fuse`: the kill comes at an operation of the seal that follows."""
    # Only checkpoint() seals, so the kill comes before the checkpoint that would see the new segment.
    log = AuditLog(path, settings(checkpointEveryRecords=10**8, checkpointEverySeconds=3600))
    await log.open()
    layout = Layout(path)
    while True:
        await log.durable(log.record("sign", result="ok", signature=bytes(record_bytes)))
        if any(layout.segments.glob("*.jsonl")):
            break
        if layout.log.stat().st_size > SMALLEST_SEGMENT - 5 * record_bytes:  # the next line may begin a file
            await log.checkpoint()
    if fuse is not None:
        fuse.armed = True
        await log.checkpoint()
    os.kill(os.getpid(), signal.SIGKILL)


def kill_often(folder: str, kills: int, seed: int) -> None:
    """One log for each kill, `folder`/<number>/audit.log: half of them at the end of a segment, half at an operation of
    the next seal. The process forks, because an interpreter for each would take long."""
    dice = random.Random(seed)
    for number in range(kills):
        path, size = str(Path(folder) / f"{number:04d}" / "audit.log"), dice.randrange(2000, 9000)
        at = dice.choice([0, dice.randrange(1, 25)])
        pid = os.fork()
        if pid == 0:
            asyncio.run(main(path, size, Fuse(at) if at else None))
        _, status = os.waitpid(pid, 0)
        assert os.WIFSIGNALED(status)
        assert os.WTERMSIG(status) == signal.SIGKILL


if __name__ == "__main__":
    if len(sys.argv) == 2:
        asyncio.run(main(sys.argv[1]))
    else:
        kill_often(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
