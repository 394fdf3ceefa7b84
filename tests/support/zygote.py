"""Start `python -m MODULE` or `python -c CODE` without importing anything: a process that has imported what such
programs need forks one child for each. What the child does is the same; only the half second of imports is spared.

`Forked` is subprocess.Popen in all else: pipes, signals, waiting. A program that needs an environment from its very
beginning (LD_PRELOAD) or descriptors of its own is started by subprocess.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import pkgutil
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from tests.support.leaks import LASTING
from tests.support.paths import ROOT

from hsmcore import cli

MOST = 1 << 17
"""Bytes of a request: arguments and environment."""
CLI = "hsmcore.cli"
"""As MODULE: the command line."""


class Forked(subprocess.Popen[Any]):
    """Such a program. `args`: the module, or "-c" and the code, then its arguments."""

    _status = -1

    def __init__(self, args: Sequence[str], **popen: Any) -> None:
        super().__init__(["python", *args], **popen)

    def _execute_child(self, args: Any, executable: Any, *more: Any) -> None:  # type: ignore[override]
        # The names of these parameters are the same in CPython 3.11 to 3.14.
        _preexec, _close, pass_fds, cwd, env, _startup, _flags, _shell, *pipes = more[:14]
        assert not pass_fds, "start it by subprocess"
        reads, _, _, writes, _, errors = pipes
        ends = [own if own != -1 else number for number, own in enumerate((reads, writes, errors))]
        self._status, status = os.pipe()
        asked = [args[1:], dict(os.environ if env is None else env), os.fspath(cwd or Path.cwd())]
        try:
            self.pid = server().start(json.dumps(asked).encode(), [*ends, status])
        finally:
            os.close(status)
        self._child_created = True
        self._close_pipe_fds(*pipes)  # type: ignore[attr-defined]

    def _ended(self, seconds: float | None) -> bool:
        if self.returncode is None and self._status != -1 and select.select([self._status], [], [], seconds)[0]:
            self.returncode = int(os.read(self._status, 16) or b"-9")  # nothing: the one that waits was killed
            os.close(self._status)
            self._status = -1
        return self.returncode is not None

    def _internal_poll(self, **_private: Any) -> int | None:
        self._ended(0)
        return self.returncode

    def _wait(self, timeout: float | None) -> int:
        if not self._ended(timeout):
            assert timeout is not None
            raise subprocess.TimeoutExpired(self.args, timeout)
        return self.returncode


class Server:
    """The process that forks. `pid`: it ends with this one; `descriptors`: what this process holds for it."""

    def __init__(self) -> None:
        self._line, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._turn = threading.Lock()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.support.zygote", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": f"{ROOT / 'core'}:{ROOT}"},
                pass_fds=[theirs.fileno()],
            )
        self.pid = self._process.pid
        self.descriptors = (self._line.fileno(),)

    def start(self, asked: bytes, fds: list[int]) -> int:
        """The process id of a child."""
        assert len(asked) < MOST, "start it by subprocess"
        with self._turn:
            socket.send_fds(self._line, [asked], fds)
            return int(self._line.recv(16))

    def serve(self, terminal: socket.socket) -> None:
        """Have it run the commands that come to this listening socket."""
        self.start(b"", [terminal.fileno()])

    def close(self) -> None:
        """End it."""
        self._line.close()
        self._process.wait()


def run(*args: object, timeout: float = 100, **popen: Any) -> subprocess.CompletedProcess[Any]:
    """As subprocess.run of such a program, with its output."""
    with Forked([str(one) for one in args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, **popen) as process:
        try:
            out, err = process.communicate(timeout=timeout)
        finally:
            process.kill()
    return subprocess.CompletedProcess(args, process.returncode, out, err)


@cache
def server() -> Server:
    """The one of this process, made when a test first needs it."""
    made = Server()
    LASTING.append(made)
    atexit.register(made.close)
    return made


def _load_everything() -> None:
    """Import all of hsmcore, and what it imports when it runs."""
    import psycopg  # noqa: F401
    import uvloop  # noqa: F401

    import hsmcore

    for module in pkgutil.walk_packages(hsmcore.__path__, "hsmcore."):
        if not module.name.endswith(".__main__"):  # that is a program
            import_module(module.name)
    assert threading.active_count() == 1, "what forks has no threads"


def _serve(line: socket.socket) -> None:
    from tests.support import scenarios, terminal, told  # noqa: F401

    _load_everything()
    gc.collect()
    gc.freeze()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nothing waits for those between
    listening = [line]
    while True:
        ready = select.select(listening, [], [])[0][0]
        if ready is not line:
            with ready.accept()[0] as connection:
                if os.fork() == 0:
                    for one in listening:
                        one.close()
                    terminal.command(connection)
            continue
        asked, fds, _, _ = socket.recv_fds(line, MOST, 4)
        if asked:
            if os.fork() == 0:
                for one in listening[1:]:
                    one.close()
                _between(line, asked, fds)
            for fd in fds:
                os.close(fd)
        elif fds:
            os.set_inheritable(fds[0], False)
            listening.append(socket.socket(fileno=fds[0]))
            line.send(b"0")
        else:
            return


def _between(line: socket.socket, asked: bytes, fds: list[int]) -> None:
    """Fork the child, wait for it, and say how it ended. Never returns."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    *ends, status = fds
    pid = os.fork()
    if pid == 0:
        line.close()
        os.close(status)
        _child(asked, ends)
    for number, fd in enumerate(ends):
        os.close(fd)
        os.dup2(os.open(os.devnull, os.O_RDWR), number)
    line.send(b"%d" % pid)
    line.close()
    found = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert found is not None
    # Said before it is waited for: until then no other process has its number.
    os.write(status, b"%d" % (found.si_status if found.si_code == os.CLD_EXITED else -found.si_status))
    os.waitpid(pid, 0)
    os._exit(0)


def enter(ends: Sequence[int], environment: dict[str, str], folder: str) -> None:
    """Take the streams, the environment and the folder of a program."""
    for number, fd in enumerate(ends):
        os.dup2(fd, number)
        os.close(fd)
    # The streams of the process that forked know other files by these numbers.
    sys.stdin = sys.__stdin__ = open(0, closefd=False)  # noqa: SIM115
    sys.stdout = sys.__stdout__ = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.__stderr__ = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(environment)
    time.tzset()
    os.chdir(folder)


def _child(asked: bytes, ends: list[int]) -> None:
    """Be the program. Never returns."""
    code = 1
    try:
        (module, *arguments), environment, folder = json.loads(asked)
        enter(ends, environment, folder)
        sys.argv = [module, *arguments]
        code = _run(module)
        threading._shutdown()  # type: ignore[attr-defined]  # as the interpreter does at its end
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:  # noqa: BLE001  # as the interpreter does
        traceback.print_exc()
    finally:
        os._exit(code)


def _run(module: str) -> int:
    try:
        if module == CLI:
            cli.main()
        if module == "-c":
            exec(sys.argv.pop(1), {"__name__": "__main__"})  # noqa: S102  # as the interpreter does
        else:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    return 0


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])))
