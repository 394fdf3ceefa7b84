"""Programs that press on a machine until they are killed: `python -m tests.support.pressure burn`, or `flood ADDRESS`.
They say a line when they have begun. Nothing of hsmcore is imported: they begin at once."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from urllib.parse import urlsplit

REQUEST = b"GET /%s HTTP/1.1\r\nHost: localhost\r\n\r\n" % (b"n" * 3000)


def burn() -> None:
    """Take a processor."""
    while True:
        sum(range(100_000))


def flood(address: str) -> None:
    """Ask a console for a page that does not exist, without a token."""
    where = urlsplit(address)
    while True:
        with suppress(OSError), socket.create_connection((where.hostname or "", where.port or 0), timeout=5) as client:
            client.sendall(REQUEST)
            while client.recv(65536):
                client.sendall(REQUEST)


@contextmanager
def pressed(*programs: tuple[str, ...]) -> Iterator[None]:
    """Have these programs run while the block runs. Blocks until they do."""
    with ExitStack() as stack:
        for program in programs:
            command = [sys.executable, "-m", "tests.support.pressure", *program]
            child = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE))
            stack.callback(child.kill)
            assert child.stdout is not None
            assert child.stdout.readline() == b"begun\n"
        yield


if __name__ == "__main__":
    sys.stdout.write("begun\n")
    sys.stdout.flush()
    {"burn": burn, "flood": flood}[sys.argv[1]](*sys.argv[2:])
