"""What a gateway's front cannot do, tried in a process that is confined as one is."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

CONFINED = True


def _outcome(work: Callable[[], Any]) -> str:
    try:
        work()
    except OSError as error:
        return type(error).__name__
    return "done"


def serve(requests: io.FileIO, answers: IO[bytes]) -> None:
    """Try it against the process whose number is told, and say what came of it."""
    parent = int(requests.readline())
    tries: dict[str, Callable[[], Any]] = {
        "its memory": lambda: Path(f"/proc/{parent}/mem").read_bytes(),
        "its environment": lambda: Path(f"/proc/{parent}/environ").read_bytes(),
        "a signal": lambda: os.kill(parent, signal.SIGCONT),
        "a program": lambda: subprocess.run(["/bin/true"], check=True),
        "a copy": os.fork,
    }
    found = {name: _outcome(work) for name, work in tries.items()}
    there: list[str] = []  # a thread that was started before is as confined
    thread = threading.Thread(target=lambda: there.append(_outcome(os.fork)))
    thread.start()
    thread.join()
    answers.write(json.dumps({**found, "a copy by a thread": there[0]}).encode() + b"\n")
    answers.flush()
