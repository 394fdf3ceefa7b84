"""Child processes that sign when they are told to, and are gone when their time is over: those of the suite as they are
here, those of the load generator and the demonstration with errors of their own."""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import tempfile
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import orjson

import hsmcore

ROOTS = (str(Path(__file__).resolve().parents[2]), str(Path(hsmcore.__file__).resolve().parents[1]))

READY_SECONDS = 60.0  # a module may take its time to log in
SLACK_SECONDS = 30.0  # beyond the length of a slice
EXIT_SECONDS = 10.0
_CHUNK = 1 << 18


class ChildError(Exception):
    """A child could not start, answered with an error, or answered nothing."""


class MissingError(ChildError):
    """A child lacks a library: it says which."""


def child_environment(extra: Mapping[str, str]) -> dict[str, str]:
    """This process's environment, both packages importable, and `extra`, which holds what only the child may know."""
    path = [*ROOTS, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path), **extra}


def cpu_seconds_of(pid: int) -> float:
    """To the nanosecond: the kernel's clock of another process."""
    return time.clock_gettime((~pid << 3) | 2)


def _cpu_seconds_of_children(pid: int) -> float:
    """Of those that are there, and, in ticks, of those that have ended."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    total = (int(fields[13]) + int(fields[14])) / os.sysconf("SC_CLK_TCK")
    for child in children_of(pid):
        with contextlib.suppress(OSError):  # it has ended
            total += cpu_seconds_of(child)
    return total


def children_of(pid: int) -> list[int]:
    """The processes that a process has started and that are there; none once it has ended itself."""
    found = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):  # a thread that has ended
                found += [int(child) for child in (task / "children").read_text().split()]
    return found


def switches_and_calls(pid: int) -> dict[str, int]:
    """`switches`: voluntary ones so far of a process's threads that are there. `calls`: of read and write, of all its
    threads; missing where the kernel does not count them or tells nobody."""
    found = {"switches": 0}
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):  # a thread that has ended
            found["switches"] += _field(task / "status", "voluntary_ctxt_switches:")
    with contextlib.suppress(OSError):
        io = Path(f"/proc/{pid}/io")
        found["calls"] = _field(io, "syscr:") + _field(io, "syscw:")
    return found


def _field(path: Path, name: str) -> int:
    return next(int(line.split()[1]) for line in path.read_text().splitlines() if line.startswith(name))


class Child:
    """A process that says JSON lines. Use it as a context manager: leaving ends it, whatever state it is in.

    What a failure is, `ended` and `silent` decide: here it is a ChildError.
    """

    exit_seconds = EXIT_SECONDS
    interruptible = True
    """Whether Ctrl-C ends it, too; if not, it is for the parent to end it in good order."""

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
                start_new_session=not self.interruptible,
            )
        except BaseException:
            self._errors.close()
            raise
        os.set_blocking(self.fileno(), False)
        self._pending = b""
        self._said: deque[dict[str, Any]] = deque()
        self.at_end = False
        """Whether its output has ended."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def _in(self) -> IO[bytes]:
        assert self._process.stdin is not None
        return self._process.stdin

    @property
    def _out(self) -> IO[bytes]:
        assert self._process.stdout is not None
        return self._process.stdout

    def fileno(self) -> int:
        """Readable when it says something."""
        return self._out.fileno()

    def send(self, text: bytes | bytearray) -> None:
        """Write to its standard input. Raises what `ended` says if it has ended."""
        rest = memoryview(text)
        try:
            while rest:
                rest = rest[self._in.write(rest) or 0 :]
        except BrokenPipeError:
            raise self.ended() from None

    def lines(self) -> list[dict[str, Any]]:
        """What it has said since the last time."""
        self._hear()
        said = list(self._said)
        self._said.clear()
        return said

    def answer(self, timeout: float) -> dict[str, Any]:
        """Wait for its next line. Raises what `ended` and `silent` say."""
        deadline = time.monotonic() + timeout
        while not self._said:
            if self.at_end:
                raise self.ended()
            if not select.select([self], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise self.silent(timeout)
            self._hear()
        return self._said.popleft()

    def ask(self, command: str, timeout: float) -> dict[str, Any]:
        """Send one command and wait for its answer."""
        self.send(command.encode() + b"\n")
        return self.answer(timeout)

    def ready(self) -> dict[str, Any]:
        """Wait for the line with which a child says that it can sign."""
        reply = self.answer(READY_SECONDS)
        if "missing" in reply:
            raise MissingError(reply["missing"])
        return reply

    def run(self, seconds: float) -> dict[str, Any]:
        return self.ask(f"run {seconds}", seconds + SLACK_SECONDS)

    def cpu_seconds(self) -> float:
        """Processor time so far of all its threads, and of the processes that it started."""
        return cpu_seconds_of(self.pid) + _cpu_seconds_of_children(self.pid)

    def ended(self) -> Exception:
        """The error for an end before its time."""
        return ChildError(f"ended: {self.how_it_ended()}")

    def silent(self, seconds: float) -> Exception:
        """The error for no answer in so many seconds."""
        words = self.last_words()
        return ChildError(f"gave no answer within {seconds:.0f} s" + (f": {words}" if words else ""))

    def last_words(self) -> str:
        """The last line on its standard error, if there is one."""
        self._errors.seek(0)
        return self._errors.read().decode(errors="replace").strip().rpartition("\n")[2]

    def how_it_ended(self) -> str:
        """Its last words, or else its exit code."""
        with contextlib.suppress(subprocess.TimeoutExpired):  # its output may end a little before it does
            self._process.wait(1.0)
        return self.last_words() or f"exit code {self._process.returncode}"

    def stop(self) -> None:
        """Close its input, which is the order to quit: it answers what it has begun, and ends."""
        if not self._in.closed:
            self._in.close()

    def close(self) -> None:
        """Stop it, then kill it. Does nothing the second time."""
        if self._errors.closed:
            return
        try:
            self.stop()
            self._process.wait(self.exit_seconds)
        except (subprocess.TimeoutExpired, OSError):
            pass
        finally:
            if self._process.poll() is None:
                self._process.kill()
                self._process.wait()
            self._out.close()
            self._errors.close()

    def _hear(self) -> None:
        while not self.at_end:
            try:
                chunk = os.read(self.fileno(), _CHUNK)
            except BlockingIOError:
                break
            self.at_end = not chunk
            self._pending += chunk
        *whole, self._pending = self._pending.split(b"\n")
        self._said += [orjson.loads(line) for line in whole if line]
