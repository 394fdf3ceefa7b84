"""The locks of a log's folder: one process writes the log, and one ships it to each destination."""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from pathlib import Path

from hsmcore.base.ownership import open_or_make
from hsmcore.errors import AuditUnavailable


class FolderInUse(AuditUnavailable):
    """Another process, or another log of this one, has the lock."""


class FolderLock:
    """A lock that is held until it is released or the process ends. Readers need none."""

    def __init__(
        self, path: Path, doing: str = "writing it", hint: str = "Give each process an auditLogFile of its own."
    ) -> None:
        """Take the lock; `doing`: what its holder does, for the error. Raises FolderInUse if it is taken, OSError."""
        self._file = open_or_make(path)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(self._file, 20, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(self._file)
            if not isinstance(error, BlockingIOError):
                raise
            who = "this process" if holder == str(os.getpid()) else f"process {holder}"
            raise FolderInUse(f"audit log {path.parent}: {who} is {doing}", hint=hint) from None
        with suppress(OSError):  # the number is only for the error of another process
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, b"%d\n" % os.getpid(), 0)

    def release(self) -> None:
        """Release the lock."""
        os.close(self._file)
