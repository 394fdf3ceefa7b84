"""Programs that go on in the background, by their file with a process id: no child of the test's process, so a test may
start one again that another has started."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from tests.support.chaos import ends_within, send_signal


def end_daemon(pid_file: Path, number: int = signal.SIGKILL) -> None:
    """End it and wait for that. Idempotent."""
    if not pid_file.exists():
        return
    pid = int(pid_file.read_text())
    pid_file.unlink()
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        send_signal(pid, number)
        assert ends_within(fd, 10.0)
    finally:
        os.close(fd)
