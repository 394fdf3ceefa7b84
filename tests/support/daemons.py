"""Programs that go on in the background, by their file with a process id: no child of the test's process, so a test may
start one again that another has started."""

from __future__ import annotations

import os
import signal
import socket
import time
from pathlib import Path

from tests.support.chaos import ends_within, send_signal


def await_daemon(listens: Path, pid_file: Path, seconds: float = 60.0) -> None:
    """Wait until it takes connections and has written its process id: the command that starts it may end sooner."""
    end = time.monotonic() + seconds
    with socket.socket(socket.AF_UNIX) as connection:
        while not (pid_file.exists() and pid_file.read_text().strip()) or connection.connect_ex(str(listens)) != 0:
            assert time.monotonic() < end, f"nothing listens at {listens}"
            time.sleep(0.002)


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
