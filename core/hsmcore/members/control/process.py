"""A child process that uses a PKCS#11 module in the place of this one. Requests and answers are JSON lines on its
standard input and output; child.py is its other half.

Secrets go over its standard input only, never into its arguments or its environment. It ends when its input ends or
when this process does, even while its module hangs. It can be killed at any time.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import IO, Any, Final, Self, TypeVar

import orjson

from hsmcore.base.log import printable
from hsmcore.members.control.wire import error_of_json, unpack

T = TypeVar("T")
Popen = subprocess.Popen[bytes]

CLOSE_SECONDS: Final = 3.0
"""How long a child may take to end without a signal."""
_EXIT_SECONDS: Final = 1.0
_CHUNK: Final = 65536
MOST_BYTES: Final = 16 << 20
"""Most bytes of an answer. The list of 4096 keys takes a tenth of it."""
# The child imports from the same places as this process; no argument or variable names them.
_BOOT: Final = """\
import json, sys
parent, main, *sys.path[:] = json.loads(sys.stdin.buffer.raw.readline())
from importlib import import_module
from hsmcore.members.control.started import run
module = import_module(main)
run(parent, module.serve, confined=getattr(module, "CONFINED", False))
"""


_INHERITED: Final = frozenset(
    {
        *("PATH", "HOME", "USER", "LOGNAME", "LANG", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "PYTHONHOME"),
        "HSMCORE_CHAOS_CONFIG",
        # For sanitizers, coverage and clocks of tests and developers.
        *("LD_PRELOAD", "ASAN_OPTIONS", "LSAN_OPTIONS", "TSAN_OPTIONS", "UBSAN_OPTIONS", "LLVM_PROFILE_FILE"),
    }
)
_INHERITED_KINDS: Final = ("LC_", "FAKETIME")


def child_environment(hidden: frozenset[str], module: frozenset[str]) -> dict[str, str]:
    """Return the part of this process's environment that a child which loads a module gets: what any program needs, and
    the variables that the module reads (`module`), without those that hold secrets (`hidden`)."""
    wanted = (_INHERITED | module) - hidden
    return {
        name: value
        for name, value in os.environ.items()
        if name in wanted or (name.startswith(_INHERITED_KINDS) and name not in hidden)
    }


def lines(environment: Mapping[str, str]) -> list[bytes]:
    """Return an environment as Engine.start takes it: NAME=value."""
    return [os.fsencode(f"{name}={value}") for name, value in environment.items()]


def python(*arguments: str) -> list[str]:
    """Return the command of a Python child. It imports nothing from the current folder, which may be anybody's."""
    return [sys.executable, "-P", *arguments]


def started(
    environment: Mapping[str, str],
    main: str,
    descriptors: Sequence[int] = (),
    stdout: int = subprocess.DEVNULL,
    stderr: IO[bytes] | None = None,
) -> Popen:
    """Start a child that runs the function `serve` of the module `main`, in a session of its own: Ctrl-C is for this
    process, which closes its children. It has `descriptors` under their numbers here. Blocks. Raises OSError."""
    process = subprocess.Popen(
        python("-c", _BOOT),
        stdin=subprocess.PIPE,
        stdout=stdout,
        stderr=stderr,
        env=environment,
        bufsize=0,
        pass_fds=descriptors,
        start_new_session=True,
    )
    assert process.stdin is not None  # noqa: S101  # for the type checker
    with suppress(BrokenPipeError):  # it has ended, and whoever asks it something learns why
        process.stdin.write(json.dumps([os.getpid(), main, *map(str, sys.path)]).encode() + b"\n")
    return process


def ended(process: Popen, seconds: float) -> None:
    """Wait for the end of a child that was told to end; kill it after so long. Blocks."""
    with suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
    process.kill()
    with suppress(subprocess.TimeoutExpired):  # one that waits in the kernel for a device ends later
        process.wait(CLOSE_SECONDS)


class ChildLost(Exception):
    """The child ended, did not answer in time or answered nonsense. It is gone; its last request may have been done."""


class Child:
    """One child. For one thread at a time, but for `kill`. Use it as a context manager, or call `close`.

    `stderr` takes the messages of the child and its module; None: this process's own. The child runs the function
    `serve` of the module `main`, and has `descriptors` under their numbers here.
    """

    def __init__(
        self,
        environment: Mapping[str, str],
        stderr: IO[bytes] | None = None,
        *,
        main: str = "hsmcore.members.control.child",
        descriptors: Sequence[int] = (),
    ) -> None:
        self._process = started(environment, main, descriptors, subprocess.PIPE, stderr)
        for stream in (self._requests, self._answers):
            os.set_blocking(stream.fileno(), False)
        self._pending = bytearray()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    @property
    def _requests(self) -> IO[bytes]:
        assert self._process.stdin is not None  # noqa: S101  # for the type checker
        return self._process.stdin

    @property
    def _answers(self) -> IO[bytes]:
        assert self._process.stdout is not None  # noqa: S101  # for the type checker
        return self._process.stdout

    def call(
        self,
        name: str,
        arguments: Any,
        read: Callable[[Any], T],
        seconds: float,
        secrets: Sequence[bytearray] = (),
        on_note: Callable[[str], None] = lambda _note: None,
    ) -> T:
        """Send one request, then the bytes of `secrets`, and wait for the result, which `read` checks: it raises
        TypeError, ValueError or LookupError for nonsense. The child's notes go to `on_note`. Raises the HsmError in the
        child's answer, and ChildLost."""
        until = time.monotonic() + max(0.0, seconds)
        request = {"call": name, "arguments": arguments, "secrets": [len(secret) for secret in secrets]}
        line = orjson.dumps(request, option=orjson.OPT_APPEND_NEWLINE)
        try:
            pieces: list[bytes | bytearray] = [line, *secrets]
            for piece in pieces:
                self._write(piece, until)
            while (answer := _parsed(self._read(until), read))[0] == "note":
                on_note(answer[1])
        except TimeoutError:
            self._end()
            raise ChildLost(f"it did not answer within {seconds:.3g} s and was killed") from None
        except BaseException:
            self._end()
            raise
        kind, said = answer
        if kind == "error":
            raise said
        result: T = said
        return result

    def close(self) -> None:
        """Let it close its module and end; kill it if it does not. Idempotent."""
        if not self._requests.closed:
            with suppress(OSError):  # it has ended, or its input is full: see below
                os.write(self._requests.fileno(), b'{"call":"close"}\n')
            self._requests.close()
            ended(self._process, CLOSE_SECONDS)
        self._end()

    def kill(self) -> None:
        """Kill the child at once. Any thread; a call under way raises ChildLost."""
        self._process.kill()

    def _end(self) -> None:
        ended(self._process, 0)
        self._requests.close()
        self._answers.close()

    def _write(self, data: bytes | bytearray, until: float) -> None:
        with memoryview(data) as rest:
            sent = 0
            while sent < len(rest):
                _wait(self._requests, select.POLLOUT, until)
                try:
                    sent += os.write(self._requests.fileno(), rest[sent:])
                except BrokenPipeError:
                    raise ChildLost(self._how_it_ended()) from None

    def _read(self, until: float) -> bytes:
        while (end := self._pending.find(b"\n")) < 0:
            _wait(self._answers, select.POLLIN, until)
            chunk = os.read(self._answers.fileno(), _CHUNK)
            if not chunk:
                raise ChildLost(self._how_it_ended())
            self._pending += chunk
            if len(self._pending) > MOST_BYTES:
                raise ChildLost(f"it answered more than {MOST_BYTES} bytes and was killed")
        line = bytes(self._pending[:end])
        del self._pending[: end + 1]
        return line

    def _how_it_ended(self) -> str:
        try:
            code = self._process.wait(_EXIT_SECONDS)
        except subprocess.TimeoutExpired:
            return "it closed its output"
        if code >= 0:
            return f"it ended with exit code {code}"
        name = next((known.name for known in signal.Signals if known == -code), f"signal {-code}")
        return f"it was ended by {name}"


def _wait(stream: IO[bytes], event: int, until: float) -> None:
    poll = select.poll()
    poll.register(stream.fileno(), event)
    if not poll.poll(max(0.0, until - time.monotonic()) * 1000):
        raise TimeoutError


def _parsed(line: bytes, read: Callable[[Any], Any]) -> tuple[str, Any]:
    """What kind of answer a line is, and what it says."""
    forms: dict[str, Callable[[Any], Any]] = {"note": partial(unpack, str), "error": error_of_json, "result": read}
    try:
        [(kind, said)] = orjson.loads(line).items()
        return kind, forms[kind](said)
    except (TypeError, ValueError, LookupError, AttributeError):  # their texts are the child's
        raise ChildLost("it answered nonsense and was killed") from None


def last_line(errors: IO[bytes]) -> str:
    """The last line that a child wrote to `errors`; "": none."""
    errors.seek(max(0, errors.seek(0, os.SEEK_END) - _CHUNK))
    return printable(errors.read(_CHUNK).decode(errors="replace").strip().rpartition("\n")[2], 200)
