"""A process that writes an audit log as fast as it can until it is killed; it prints what it was told is durable."""

from __future__ import annotations

import asyncio
import sys

from tests.support.audit_logs import settings

from hsmcore.audit import AuditLog


async def main(path: str) -> None:
    log = AuditLog(path, settings(durability="fsync", checkpointEveryRecords=60, waitMs=60_000))
    await log.open()
    for n in range(1_000_000):
        log.record("sign", message=b"%d" % n, result="ok", key_id="ab" * 16, signature=bytes(64))
        if n % 7 == 0:
            seq = log.record("sign", message=b"awaited", result="ok")
            await log.durable(seq)
            sys.stdout.write(f"{seq}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
