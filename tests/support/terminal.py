"""The command line for tests that run many commands: the process of `zygote` forks one child for each.
What the commands do is the same; only the second that importing takes is spared."""

from __future__ import annotations

import os
import signal
import socket
import sys
import tempfile
from pathlib import Path
from typing import Self

from tests.support import zygote

ROOT = Path(__file__).resolve().parents[2]
SHARED = Path(tempfile.gettempdir()) / f"hsmcore-terminal-{os.getpid()}"
PROGRAM = [str(SHARED / "hsmcore")]
"""What runs a command by the terminal of the fixture `terminal`, which its module must use. A signal to it reaches no
command: where one is sent, the command is a process of its own."""
OWN_PROCESS = [sys.executable, "-c", "from hsmcore.cli import main; main()"]
"""What runs a command as a process of its own."""
# It only passes on its arguments, environment and streams, by modules that need no import: it runs thousands of times.
_CLIENT = """#!{python} -SE
import posix, sys
from _socket import AF_UNIX, SCM_RIGHTS, SOL_SOCKET, socket
words = [one.encode(errors="surrogateescape") for one in sys.argv[1:]]
told = [b"%d" % len(words), posix.getcwdb(), *words, *(name + b"=" + value for name, value in posix.environ.items())]
told = b"\\0".join(told)
line = socket(AF_UNIX)
line.connect({path!r})
size = len(told).to_bytes(4, "little")
line.sendmsg([size], [(SOL_SOCKET, SCM_RIGHTS, b"".join(fd.to_bytes(4, "little") for fd in (0, 1, 2)))])
line.sendall(told)
sys.exit(line.recv(1)[0])
"""


class Terminal:
    """Use as a context manager. `folder` goes to the front of PATH: it holds the command `hsmcore`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __enter__(self) -> Self:
        path = self.folder / "terminal.sock"
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(path))
            listening.listen(16)
            zygote.server().serve(listening)
        program = self.folder / "hsmcore"
        program.write_text(_CLIENT.format(python=sys.executable, path=str(path)))
        program.chmod(0o755)
        return self

    def __exit__(self, *_exc: object) -> None:
        (self.folder / "hsmcore").unlink()


def command(connection: socket.socket) -> None:
    """Be one command. Never returns."""
    code = 70
    try:
        from hsmcore.cli.app import run

        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        size, fds, _, _ = socket.recv_fds(connection, 4, 3)
        with connection.makefile("rb") as stream:
            told = stream.read(int.from_bytes(size, "little"))
        count, folder, *words = [os.fsdecode(word) for word in told.split(b"\0")]
        zygote.enter(fds, dict(word.split("=", 1) for word in words[int(count) :]), folder)
        code = run(words[: int(count)])
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        connection.sendall(bytes([code]))
        os._exit(code)
