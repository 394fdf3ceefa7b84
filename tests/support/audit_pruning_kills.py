"""kill -9 before each file operation of a pruning: a copy of the log for each, as the kill left it.

One process forks a writer for each point, as starting an interpreter for each would take minutes. The writer sees its
own file operations by an audit hook (`sys.addaudithook`), and none of its code is replaced but the clock.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

from tests.support.audit_logs import copy_of, settings, turn_clock

from hsmcore.audit import AuditLog
from hsmcore.audit.layout import Layout
from hsmcore.audit.segment import segments

OPERATIONS = ("open", "os.rename", "os.remove", "os.truncate", "os.mkdir", "os.rmdir")


class Fuse:
    """Kills this process before file operation number `at` of the thread that seals."""

    def __init__(self, at: int) -> None:
        self.left, self.armed = at, False
        sys.addaudithook(self._see)

    def _see(self, event: str, _args: object) -> None:
        if self.armed and event in OPERATIONS and threading.current_thread().name.startswith("hsmcore-audit-seal"):
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)


async def prune(path: Path, fuse: Fuse) -> None:
    turn_clock(time.time_ns() + 40 * 86_400 * 10**9)
    log = AuditLog(str(path), settings(retainDays=30, checkpointEveryRecords=1))
    await log.open()
    fuse.armed = True
    await log.durable(log.record("sign", result="ok"))
    while segments(Layout(path))[0].first == 1:  # noqa: ASYNC110  # a thread deletes it
        await asyncio.sleep(0.002)
    await log.close()


def main(log: str, folder: str) -> None:
    layout, at = Layout(log), 0
    while True:
        at += 1
        copy = copy_of(layout, Path(folder) / f"{at:03d}")
        shutil.copy(layout.default_key, copy.log.parent)
        pid = os.fork()
        if pid == 0:
            try:
                asyncio.run(prune(copy.log, Fuse(at)))
            except BaseException as error:  # noqa: BLE001  # nothing of the parent's may run in its child
                sys.stderr.write(f"{error!r}\n")
                os._exit(1)
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if code != -signal.SIGKILL:
            sys.exit(code)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
