"""A Python process that another one of hsmcore has started (process.py): its beginning and its end, whatever it does.

It ends when its input ends or its parent does. A thread sees to that while a call hangs: a death signal of the
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
from collections.abc import Callable
from contextlib import suppress
from typing import IO, Final, NoReturn

_GRACE_SECONDS: Final = 2.0
"""How long a call may go on after the parent has ended."""
_PR_SET_DUMPABLE: Final = 4
_PR_SET_NO_NEW_PRIVS: Final = 38


def run(parent: int, serve: Callable[[io.FileIO, IO[bytes]], None], *, confined: bool) -> NoReturn:
    """Have `serve` answer requests, without a core file or a debugger, and no longer than process `parent` lives.
    `confined`: it gives up all that a host process of a module does (SECURITY.md)."""
    code = 1
    try:
        lives = _descriptor_of(parent)
        _harden()
        if confined:
            from hsmcore._native import harden

            harden()
        answers = _take_output()
        threading.Thread(target=_end_with, args=(parent, lives), daemon=True).start()
        # Unbuffered: it reads no byte ahead, so a PIN that follows a line is in no other buffer.
        serve(io.FileIO(0), answers)
        code = 0
    except BrokenPipeError:
        pass  # the parent reads no more
    except BaseException:  # noqa: BLE001  # the process ends with it
        traceback.print_exc()
    finally:
        os._exit(code)  # exit handlers of the module may hang


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


def _descriptor_of(parent: int) -> int | None:
    """One that tells of its end; None: the kernel is too old, and the end of the input is enough, unless a fork of the
    parent's holds it open."""
    with suppress(OSError):
        return os.pidfd_open(parent)
    return None


def _end_with(parent: int, lives: int | None) -> None:
    """End this process soon after its parent or its input has ended."""
    poll = select.poll()
    poll.register(0, 0)  # of an input only its end is reported
    if lives is not None:
        poll.register(lives, select.POLLIN)
    if os.getppid() == parent:
        poll.poll()
    time.sleep(_GRACE_SECONDS)
    os._exit(1)
