"""A client for tests of the console: http.client with all the ways there are to listen."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Reply:
    """A whole answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        """The body."""
        return json.loads(self.body)


class _UnixConnection(http.client.HTTPConnection):
    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.host)


def connection(address: str, tls: ssl.SSLContext | None = None) -> http.client.HTTPConnection:
    """A connection to what Site.address says."""
    if address.startswith("unix:"):
        return _UnixConnection(address.removeprefix("unix:"), timeout=20)
    where = urlsplit(address)
    if tls is not None:
        return http.client.HTTPSConnection(where.hostname or "", where.port, timeout=20, context=tls)
    return http.client.HTTPConnection(where.hostname or "", where.port, timeout=20)


def ask(
    address: str,
    path: str,
    method: str = "GET",
    *,
    token: str | None = None,
    body: bytes | None = None,
    headers: dict[str, str] | None = None,
    tls: ssl.SSLContext | None = None,
) -> Reply:
    """One request on a connection of its own. Blocks."""
    link = connection(address, tls)
    try:
        all_headers = {**({"Authorization": f"Bearer {token}"} if token else {}), **(headers or {})}
        link.request(method, path, body=body, headers=all_headers)
        answer = link.getresponse()
        return Reply(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
    finally:
        link.close()


async def asked(address: str, path: str, method: str = "GET", **options: Any) -> Reply:
    """The same from a coroutine."""
    return await asyncio.to_thread(ask, address, path, method, **options)


def raw(address: str, data: bytes, *, end: bool = True) -> bytes:
    """What comes back for bytes that need not be HTTP."""
    where = urlsplit(address)
    with socket.create_connection((where.hostname or "", where.port or 0), timeout=20) as link:
        link.sendall(data)
        if end:
            link.shutdown(socket.SHUT_WR)
        found = b""
        try:
            while part := link.recv(65536):
                found += part
        except ConnectionResetError:
            pass
        return found


def happenings(address: str) -> Iterator[tuple[str, Any]]:
    """The messages of the stream, without end. Blocks."""
    link = connection(address)
    try:
        link.request("GET", "/api/events")
        answer = link.getresponse()
        assert answer.status == 200
        kind = ""
        while line := answer.readline().decode().rstrip("\n") + "\n":
            if line.startswith("event: "):
                kind = line[7:-1]
            elif line.startswith("data: "):
                yield kind, json.loads(line[6:])
    finally:
        link.close()
