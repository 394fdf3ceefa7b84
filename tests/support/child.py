"""Run a piece of a test in a forked child."""

from __future__ import annotations

import json
import os
import select
import signal
import time
from collections.abc import Callable
from typing import Any


def in_fork(work: Callable[[], Any], seconds: float = 60.0) -> Any:
    """What `work()` returns (as JSON) in a forked child; "hangs" if that takes too long, or how the child ended."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.close(reading)
            os.write(writing, json.dumps(_outcome(work)).encode())
            code = 0
        finally:
            os._exit(code)  # no exit handler of the parent's may run here
    os.close(writing)
    try:
        ready, _, _ = select.select([reading], [], [], seconds)
        answer = os.read(reading, 65536) if ready else b""
        if not ready:
            os.kill(pid, signal.SIGKILL)
    finally:
        os.close(reading)
    status = _wait(pid)
    if not ready:
        return "hangs"
    return json.loads(answer) if answer else f"ended with status {status}"


def _outcome(work: Callable[[], Any]) -> Any:
    try:
        return work()
    except BaseException as error:  # noqa: BLE001  # the child says what happened, whatever it was
        return type(error).__name__


def _wait(pid: int) -> int:
    until = time.monotonic() + 30
    while time.monotonic() < until:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return status
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    return os.waitpid(pid, 0)[1]
