"""Persistent HTTP/1.1 connections to one host: each request is one write, and its answer is returned as bytes.

Cancelling a call closes its connection, so an endpoint that hangs holds no resources. Belongs to one event loop.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from typing import Final, NamedTuple
from urllib.parse import urlsplit

import httptools

MAX_ANSWER: Final = 1 << 20
"""Limit of an answer's body, in bytes; those of KMS have a few thousand."""


class ConnectFailed(Exception):
    """No connection could be made: refused, unreachable, timed out, or the certificate is not trusted."""


class ConnectionLost(Exception):
    """The connection ended, or its data was not HTTP, before the answer was complete. `kept`: the connection was used
    before, so the peer may have closed it before the request arrived. `sent`: the request may have arrived."""

    def __init__(self, text: str, kept: bool, sent: bool) -> None:
        super().__init__(text)
        self.kept, self.sent = kept, sent


class HttpAnswer(NamedTuple):
    """An HTTP status, a body and the header Date; b"": there was none."""

    status: int
    body: bytes
    date: bytes = b""


class _Connection(asyncio.Protocol):
    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.used = False
        self._waiter: asyncio.Future[HttpAnswer] | None = None
        self._parser: httptools.HttpResponseParser | None = None
        self._body: list[bytes] = []
        self._size = 0
        self._date = b""

    @property
    def open(self) -> bool:
        return self.transport is not None and not self.transport.is_closing()

    def send(self, data: bytes) -> asyncio.Future[HttpAnswer]:
        waiter = self._waiter = asyncio.get_running_loop().create_future()
        self._body, self._size, self._date = [], 0, b""
        self._parser = httptools.HttpResponseParser(self)
        if self.transport is None or self.transport.is_closing():
            self._fail("closed", sent=False)
        else:
            self.transport.write(data)
        return waiter

    def close(self) -> None:
        if self.transport is not None:
            self.transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]  # of a stream, so it is a Transport

    def data_received(self, data: bytes) -> None:
        if self._parser is None or self._waiter is None:
            self.close()  # an answer without a request
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.close()
            self._fail("what came is not HTTP")

    def connection_lost(self, error: Exception | None) -> None:
        self.transport = None
        self._fail("closed by the peer" if error is None else type(error).__name__)

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"date":
            self._date = value

    def on_body(self, body: bytes) -> None:
        self._size += len(body)
        if self._size > MAX_ANSWER:
            self.close()
            self._fail("the answer is too long")
        else:
            self._body.append(body)

    def on_message_complete(self) -> None:
        parser, waiter, self._parser, self._waiter = self._parser, self._waiter, None, None
        if parser is None or waiter is None:
            return
        if not parser.should_keep_alive():
            self.close()
        if not waiter.done():
            waiter.set_result(HttpAnswer(parser.get_status_code(), b"".join(self._body), self._date))

    def _fail(self, text: str, *, sent: bool = True) -> None:
        waiter, self._waiter, self._parser = self._waiter, None, None
        if waiter is not None and not waiter.done():
            waiter.set_exception(ConnectionLost(text, self.used, sent))


class HttpPool:
    """Connections to the host of `url`; each call has its own. `connect_timeout` in seconds."""

    def __init__(self, url: str, connect_timeout: float, tls: ssl.SSLContext | None) -> None:
        parts = urlsplit(url)
        self._host = parts.hostname or ""
        self._port = parts.port or (443 if parts.scheme == "https" else 80)
        self._tls = tls if parts.scheme == "https" else None
        self._connect_timeout = connect_timeout
        self._free: list[_Connection] = []  # last in, first out, so that surplus connections age and end
        self._taken: set[_Connection] = set()

    async def post(
        self, request: bytes, *, fresh: bool = False, sending: Callable[[], None] = lambda: None
    ) -> HttpAnswer:
        """Send a request and return its answer; `fresh`: on a new connection; `sending` is called once there is one.
        Raises ConnectFailed, ConnectionLost."""
        connection = await self._take(fresh)
        sending()
        self._taken.add(connection)
        try:
            answer = await connection.send(request)
        except BaseException:
            connection.close()
            raise
        finally:
            self._taken.discard(connection)
        connection.used = True
        if connection.open:
            self._free.append(connection)
        return answer

    async def _take(self, fresh: bool) -> _Connection:
        while self._free and not fresh:
            connection = self._free.pop()
            if connection.open:
                return connection
        loop = asyncio.get_running_loop()
        server_hostname = self._host if self._tls is not None else None
        try:
            async with asyncio.timeout(self._connect_timeout):
                _, connection = await loop.create_connection(
                    _Connection, self._host, self._port, ssl=self._tls, server_hostname=server_hostname
                )
        except TimeoutError:
            raise ConnectFailed(f"no connection within {self._connect_timeout:g} s") from None
        except ssl.SSLCertVerificationError as error:
            raise ConnectFailed(f"the endpoint's certificate is not trusted: {error.verify_message}") from None
        except OSError as error:
            raise ConnectFailed(error.strerror or type(error).__name__) from None
        return connection

    def drop(self) -> None:
        """Close the idle connections."""
        while self._free:
            self._free.pop().close()

    async def close(self) -> None:
        """Close every connection; calls under way fail."""
        self.drop()
        for connection in list(self._taken):
            connection.close()
        await asyncio.sleep(0)  # closing happens in the loop's next iteration
        await asyncio.sleep(0)
