"""Prometheus' part: /metrics of the server that an application attaches to its key manager, read once a second."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from contextlib import AbstractAsyncContextManager

import hsmcore
from hsmcore.config import Monitoring
from hsmcore.serve import Site, attached

INTERVAL_SECONDS = 1.0
TIMEOUT_SECONDS = 10.0


def server(manager: hsmcore.KeyManager) -> AbstractAsyncContextManager[Site]:
    """The server, with a thread and an event loop of its own, on a free port of the loopback."""
    return attached(manager, settings=Monitoring(listen="127.0.0.1:0"))


class Scraping:
    """Reads /metrics in the middle of each second while the block runs, and of a shorter slice once. Leaving it waits
    for the first answer, and raises what a scrape raised."""

    def __init__(self, site: Site, seconds: float) -> None:
        self._site = site
        self._wait = min(INTERVAL_SECONDS, seconds) / 2
        self._answered = asyncio.Event()

    async def __aenter__(self) -> None:
        self._task = asyncio.create_task(self._scrape())

    async def __aexit__(self, *_: object) -> None:
        answered = asyncio.create_task(self._answered.wait())
        await asyncio.wait((answered, self._task), return_when=asyncio.FIRST_COMPLETED)
        answered.cancel()
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    async def _scrape(self) -> None:
        while True:
            await asyncio.sleep(self._wait)
            await asyncio.to_thread(read, self._site.address)
            self._answered.set()
            self._wait = INTERVAL_SECONDS


def read(address: str) -> bytes:
    """Fetch /metrics through a plain socket, which holds the interpreter's lock for microseconds only: a real scraper
    is another process. Raises AssertionError when the answer isn't the metrics."""
    host, _, port = address.removeprefix("http://").partition("/")[0].rpartition(":")
    request = f"GET /metrics HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n"
    answer = bytearray()
    with socket.create_connection((host, int(port)), TIMEOUT_SECONDS) as peer:
        peer.sendall(request.encode())
        while part := peer.recv(1 << 16):
            answer += part
    head, _, body = bytes(answer).partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200 ") or b"hsmcore_" not in body:
        raise AssertionError(f"/metrics answered {head[:80]!r}")
    return body
