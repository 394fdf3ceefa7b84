"""A control child: runs verbs on one token for the process that started it (process.py), which never loads the vendor's
module.

It ends when its input ends or its parent does. A thread sees to that while the module hangs: a death signal of the
kernel's would be tied to the parent's thread, which may end long before the parent.
"""

from __future__ import annotations

import ctypes
import io
import os
import resource
import select
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import IO, Any, Final, NoReturn, cast

import orjson

from hsmcore.errors import EngineClosed, HsmError, InternalError
from hsmcore.members.control import attest, backup, keys, notes, provision, sealed  # noqa: F401  # they fill VERBS
from hsmcore.members.control.admin import TokenAdmin
from hsmcore.members.control.records import TokenAccess
from hsmcore.members.control.verb import VERBS
from hsmcore.members.control.wire import error_to_json, unpack

Work = Callable[[str, Any, list[bytearray]], Any]
"""Does what a request asks for, by its name, arguments and secrets. Returns what JSON can carry."""

_GRACE_SECONDS: Final = 2.0
"""How long a call may go on after the parent has ended."""
_PR_SET_DUMPABLE: Final = 4
_PR_SET_NO_NEW_PRIVS: Final = 38


def run(parent: int, serve: Callable[[io.FileIO, IO[bytes]], None]) -> NoReturn:
    """Have `serve` answer requests, without a core file or a debugger, and no longer than process `parent` lives."""
    code = 1
    try:
        _harden()
        answers = _take_output()
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
        # Unbuffered: it reads no byte ahead, so a PIN that follows a line is in no other buffer.
        serve(io.FileIO(0), answers)
        code = 0
    except BrokenPipeError:
        pass  # the parent reads no more
    except BaseException:  # noqa: BLE001  # the process ends with it
        traceback.print_exc()
    finally:
        os._exit(code)  # exit handlers of the module may hang


def serve(requests: io.FileIO, answers: IO[bytes]) -> None:
    """Run verbs on one token."""
    admin: TokenAdmin | None = None

    def work(call: str, arguments: Any, secrets: list[bytearray]) -> Any:
        nonlocal admin
        if call == "open":
            admin = _opened(arguments, secrets)
            return None
        verb = VERBS[call].of_json(arguments, secrets)
        if admin is None and verb.needs_token:
            raise EngineClosed("the token is closed")
        return verb.result_to_json(verb.perform(cast("TokenAdmin", admin)))

    try:
        respond(requests, answers, work)
    finally:
        if admin is not None:
            admin.close()


def _opened(access: Any, pins: list[bytearray]) -> TokenAdmin:
    """The token, logged in with the PIN, if there is one."""
    left = list(pins)  # given out once: what was wiped after its use is no PIN
    try:
        source = (lambda: left.pop() if left else None) if pins else None
        return TokenAdmin(unpack(TokenAccess, access), pin=source).open()
    finally:
        left.clear()


def respond(requests: io.FileIO, answers: IO[bytes], work: Work) -> None:
    """Answer each line of `requests` with one of `answers`, until the last or the request to close. The secrets of a
    request follow it on the same stream, and are wiped when it is answered."""
    while line := requests.readline():
        request = orjson.loads(line)
        call = request.pop("call")
        if call == "close":
            return
        try:
            answer: dict[str, Any] = {"result": _done(requests, work, call, **request)}
        except HsmError as error:
            answer = {"error": error_to_json(error)}
        except Exception as error:  # noqa: BLE001  # the parent gets every error
            answer = {"error": error_to_json(InternalError(f"{call}: {type(error).__name__}: {error}"))}
        send(answers, answer)


def _done(requests: io.FileIO, work: Work, call: str, arguments: Any, secrets: list[int]) -> Any:
    given = [_read_exactly(requests, size) for size in secrets]
    try:
        return work(call, arguments, given)
    finally:
        for secret in given:
            secret[:] = bytes(len(secret))


def send(answers: IO[bytes], answer: Mapping[str, Any]) -> None:
    """Write an answer, or a note."""
    answers.write(orjson.dumps(answer, option=orjson.OPT_APPEND_NEWLINE))
    answers.flush()


def _read_exactly(requests: io.FileIO, size: int) -> bytearray:
    """The next `size` bytes, straight into memory that the caller wipes."""
    data = bytearray(size)
    read = 0
    with memoryview(data) as view:
        while read < size:
            count = requests.readinto(view[read:])
            if not count:
                raise EOFError("the input ended within a secret")
            read += count
    return data


def _take_output() -> IO[bytes]:
    """The stream for answers. Output of the module to standard output goes to standard error."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return answers


def _harden() -> None:
    """No core file with a PIN in it, no debugger, no new privileges, no files for others."""
    os.umask(0o077)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def _end_with(parent: int) -> None:
    """End this process soon after its parent or its input has ended."""
    poll = select.poll()
    poll.register(0, 0)  # of an input only its end is reported
    with suppress(OSError):  # an old kernel: the input is enough, unless a fork of the parent's holds it open
        poll.register(os.pidfd_open(parent), select.POLLIN)
    if os.getppid() == parent:
        poll.poll()
    time.sleep(_GRACE_SECONDS)
    os._exit(1)
