"""A stranger at a gateway, until its standard input ends: python -m tests.support.strangers KIND ADDRESS. It has
neither certificate nor token, and does one thing as fast as it can."""

from __future__ import annotations

import selectors
import socket
import ssl
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress

Turn = Callable[[str, int], Iterator[None]]


def _context() -> ssl.SSLContext:
    made = ssl.create_default_context()
    made.check_hostname, made.verify_mode = False, ssl.CERT_NONE
    return made


def handshakes(host: str, port: int) -> Iterator[None]:
    """Handshakes of TLS."""
    context = _context()
    while True:
        with suppress(OSError), socket.create_connection((host, port), 5) as plain, context.wrap_socket(plain) as tls:
            tls.recv(1)
        yield


def _requests(head: str) -> Turn:
    def turns(host: str, port: int) -> Iterator[None]:
        context = _context()
        while True:
            with (
                suppress(OSError),
                socket.create_connection((host, port), 5) as plain,
                context.wrap_socket(plain) as tls,
            ):
                tls.sendall(f"{head}\r\n\r\n".encode())
                while tls.recv(1 << 16):
                    yield
                    tls.sendall(f"{head}\r\n\r\n".encode())
            yield

    return turns


KINDS: dict[str, Turn] = {
    "handshakes": handshakes,
    "health": _requests("GET /v1/sys/health HTTP/1.1\r\nHost: x"),
    "tokens": _requests(f"GET /v1/transit/keys/default HTTP/1.1\r\nHost: x\r\nX-Vault-Token: {'w' * 32}"),
}


def main(kind: str, address: str) -> None:
    """Go on."""
    host, _, port = address.rpartition(":")
    with selectors.DefaultSelector() as ended:
        ended.register(sys.stdin, selectors.EVENT_READ)
        for _ in KINDS[kind](host, int(port)):
            if ended.select(0):
                return


if __name__ == "__main__":
    main(*sys.argv[1:])
