"""A child process that signs when it is told to, and is gone when its time is over."""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import orjson

import hsmcore

ROOTS = (str(Path(__file__).resolve().parents[2]), str(Path(hsmcore.__file__).resolve().parents[1]))

READY_SECONDS = 60.0  # a module may take its time to log in
SLACK_SECONDS = 30.0  # beyond the length of a slice
EXIT_SECONDS = 10.0


class ChildError(Exception):
    """A child could not start, answered with an error, or answered nothing."""


class MissingError(ChildError):
    """A child lacks a library: it says which."""


def python_child(module: str, *arguments: str) -> list[str]:
    """The command line that runs one of our own modules in this interpreter."""
    return [sys.executable, "-m", module, *arguments]


def child_environment(extra: Mapping[str, str]) -> dict[str, str]:
    """This process's environment, both packages importable, and `extra`, which holds what only the child may know."""
    path = [*ROOTS, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path), **extra}


def _cpu_seconds(pid: int) -> float:
    """To the nanosecond: the kernel's clock of another process."""
    return time.clock_gettime((~pid << 3) | 2)


def _cpu_seconds_of_children(pid: int) -> float:
    """Of those that are there, and, in ticks, of those that have ended."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    total = (int(fields[13]) + int(fields[14])) / os.sysconf("SC_CLK_TCK")
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):  # a thread or a child that has ended meanwhile
            total += sum(_cpu_seconds(int(child)) for child in (task / "children").read_text().split())
    return total


class Child:
    """One contender's process. Use it as a context manager: leaving ends the process, whatever state it is in."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the child
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                env=dict(environment),
                bufsize=0,
            )
        except BaseException:
            self._errors.close()
            raise
        self._pending = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    def ready(self) -> dict[str, Any]:
        """Wait for the line with which a child says that it can sign."""
        reply = self._read(READY_SECONDS)
        if "missing" in reply:
            raise MissingError(reply["missing"])
        return reply

    def run(self, seconds: float) -> dict[str, Any]:
        return self.ask(f"run {seconds}", seconds + SLACK_SECONDS)

    def ask(self, command: str, timeout: float) -> dict[str, Any]:
        """Send one command and wait for its answer. Raises ChildError with the child's last words."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(command.encode() + b"\n")
        except BrokenPipeError:
            raise ChildError(self._last_words("ended before it was asked")) from None
        return self._read(timeout)

    def cpu_seconds(self) -> float:
        """Processor time so far of all its threads, and of the processes that it started."""
        return _cpu_seconds(self.pid) + _cpu_seconds_of_children(self.pid)

    def close(self) -> None:
        """Ask it to quit, then kill it. Does nothing the second time."""
        if self._errors.closed:
            return
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.close()  # the end of its input is the order to quit
            process.wait(EXIT_SECONDS)
        except (subprocess.TimeoutExpired, OSError):
            process.kill()
            process.wait()
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
            process.stdout.close()
            self._errors.close()

    def _read(self, timeout: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        deadline = time.monotonic() + timeout
        while b"\n" not in self._pending:
            ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise ChildError(self._last_words(f"gave no answer within {timeout:.0f} s"))
            chunk = os.read(descriptor, 65536)
            if not chunk:
                raise ChildError(self._last_words("ended"))
            self._pending += chunk
        line, _, self._pending = self._pending.partition(b"\n")
        reply: dict[str, Any] = orjson.loads(line)
        return reply

    def _last_words(self, what: str) -> str:
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return f"{what}: {lines[-1]}" if lines else what
