"""The command line for tests that run many commands: a process that has imported everything forks one child for each.
What the commands do is the same; only the second that importing takes is spared."""

from __future__ import annotations

import gc
import os
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Self

from tests.support.zygote import load_everything

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
        self._path = folder / "terminal.sock"
        self.pid = 0

    def __enter__(self) -> Self:
        environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'core'}:{ROOT}"}
        command = [sys.executable, "-m", "tests.support.terminal", str(self._path)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
        self.pid = self._process.pid
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"ready\n"
        program = self.folder / "hsmcore"
        program.write_text(_CLIENT.format(python=sys.executable, path=str(self._path)))
        program.chmod(0o755)
        return self

    def __exit__(self, *_exc: object) -> None:
        self._process.kill()
        self._process.communicate()
        (self.folder / "hsmcore").unlink()


def _serve(path: str) -> None:
    load_everything()
    gc.collect()
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen(16)
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        while True:
            line, _ = server.accept()
            with line:
                size, fds, _, _ = socket.recv_fds(line, 4, 3)
                if os.fork() == 0:
                    server.close()
                    _command(line, int.from_bytes(size, "little"), fds)
                for fd in fds:
                    os.close(fd)


def _command(line: socket.socket, size: int, fds: list[int]) -> None:
    code = 70
    try:
        from hsmcore.cli.app import run

        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        with line.makefile("rb") as stream:
            count, folder, *words = [os.fsdecode(word) for word in stream.read(size).split(b"\0")]
        for number, fd in enumerate(fds):
            os.dup2(fd, number)
        os.environ.clear()
        os.environ.update(word.split("=", 1) for word in words[int(count) :])
        os.chdir(folder)
        code = run(words[: int(count)])
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        line.sendall(bytes([code]))
        os._exit(code)


if __name__ == "__main__":
    _serve(sys.argv[1])
