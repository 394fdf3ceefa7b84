"""kill -9 before each file operation of a log's first start: a log for each, as the kill left it."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

from tests.support.audit_logs import settings
from tests.support.audit_pruning_kills import Fuse

from hsmcore.audit import AuditLog


async def begin(path: Path, fuse: Fuse) -> None:
    log = AuditLog(str(path), settings())
    fuse.armed = True
    await log.open()
    await log.durable(log.record("sign", result="ok"))
    await log.close()


def main(folder: str) -> None:
    at = 0
    while True:
        at += 1
        path = Path(folder) / f"{at:03d}" / "audit.log"
        pid = os.fork()
        if pid == 0:
            asyncio.run(begin(path, Fuse(at)))
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        if os.WIFEXITED(status):
            sys.exit(os.WEXITSTATUS(status))
        assert os.WTERMSIG(status) == signal.SIGKILL


if __name__ == "__main__":
    main(*sys.argv[1:])
