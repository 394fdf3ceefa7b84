"""A process that ends as `kill -9` ends it: its last checkpoint covers a segment to its end, and the next one is begun.

The sealer has not seen that the segment is full, so its index lacks the last block.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys

from tests.support.audit_logs import settings

from hsmcore.audit import AuditLog
from hsmcore.audit.layout import Layout


async def main(path: str) -> None:
    # Only checkpoint() seals, so the kill comes before the checkpoint that would see the new segment.
    log = AuditLog(path, settings(checkpointEveryRecords=10**8, checkpointEverySeconds=3600))
    await log.open()
    segments = Layout(path).segments
    while True:
        await log.durable(log.record("sign", result="ok", signature=bytes(4000)))
        if any(segments.glob("*.jsonl")):
            break
        await log.checkpoint()
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
