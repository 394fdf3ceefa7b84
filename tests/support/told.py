"""A module of the tests as a program that is told what to do: a line on its standard input is a command, a line on its
standard output an answer, as JSON."""

from __future__ import annotations

import json
import signal
import subprocess
from typing import Any, Self

from tests.support.chaos import send_signal
from tests.support.paths import ROOT
from tests.support.zygote import Forked


class Told:
    """Such a process. Use as a context manager; at the end it is killed if it still runs."""

    def __init__(self, module: str, *arguments: str) -> None:
        self._command = [module, *arguments]

    def __enter__(self) -> Self:
        self.process = Forked(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        return self

    def __exit__(self, *_exc: object) -> None:
        self.kill()
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            stream.close()

    def kill(self) -> None:
        """kill -9."""
        if self.process.poll() is None:
            send_signal(self.process.pid, signal.SIGKILL)
        self.process.wait(10)

    def write(self, line: str) -> None:
        """Give a command."""
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def answer(self) -> Any:
        """The next answer."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"it ended with {self.process.wait(10)}"
        return json.loads(line)
