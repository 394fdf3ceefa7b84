"""The HTTP side: AWS JSON 1.1 on a port of the loopback, served by an event loop in a thread of its own."""

from __future__ import annotations

import asyncio
import ssl
import threading
import time
import zlib
from collections import Counter
from collections.abc import Coroutine
from email.utils import formatdate
from types import TracebackType
from typing import Any, Self

import orjson
import uvloop
from tests.support.kms import sigv4
from tests.support.kms.faults import Fault, Faults
from tests.support.kms.keys import KeyStore, KmsFailure
from tests.support.ports import bound

REGION = "eu-central-1"
ACCESS_KEY = "AKIATESTTESTTESTTEST"
SECRET_KEY = "no secret at all"
_TYPE = "application/x-amz-json-1.1"


class KmsServer:
    """`with KmsServer() as kms:` serves `kms.url` until the end of the block. Keys are in `kms.store`, what goes wrong
    in `kms.faults`; `kms.calls` counts the requests that came in by operation, `kms.most_at_once` those together."""

    def __init__(self, region: str = REGION, *, tls: ssl.SSLContext | None = None) -> None:
        self.store = KeyStore(region)
        self.faults = Faults()
        self.secrets = {ACCESS_KEY: SECRET_KEY}
        self.calls: Counter[str] = Counter()
        self.connections = 0
        self.at_once = self.most_at_once = 0
        self._place = bound()
        self.port = self._place.getsockname()[1]
        self._tls = tls
        self._wires: set[_Wire] = set()
        self._loop = uvloop.new_event_loop()
        self._listener: asyncio.AbstractServer | None = None
        self._gate = asyncio.Event()
        self._gate.set()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="kms-server")

    @property
    def url(self) -> str:
        return f"{'http' if self._tls is None else 'https'}://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._place.close()

    def hold(self) -> None:
        """From now on answer nothing until `release`. What has come in is counted in `calls`."""
        self._gate.clear()

    def release(self) -> None:
        self._loop.call_soon_threadsafe(self._gate.set)

    def stop_listening(self) -> None:
        """Close the port and every connection; returns when that is done."""
        self._in_loop(self._stop_listening())

    def start_listening(self) -> None:
        """Serve the same port again."""
        self._in_loop(self._listen())

    def _in_loop(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _listen(self) -> None:
        self._listener = await self._loop.create_server(lambda: _Wire(self), sock=bound(self.port), ssl=self._tls)

    async def _stop_listening(self) -> None:
        assert self._listener is not None
        self._listener.close()
        self._cut()
        await self._listener.wait_closed()
        self._listener = None

    def cut(self) -> None:
        """Close every connection."""
        self._loop.call_soon_threadsafe(self._cut)

    def _cut(self) -> None:
        for wire in list(self._wires):
            wire.transport.abort()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._listen())
        self._ready.set()
        try:
            self._loop.run_forever()
        finally:
            if self._listener is not None:
                self._listener.close()
            self._cut()
            tasks = asyncio.all_tasks(self._loop)
            for task in tasks:
                task.cancel()
            self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
            self._loop.run_until_complete(asyncio.sleep(0))
            self._loop.close()

    async def answer(self, wire: _Wire, headers: dict[str, str], body: bytes) -> None:
        operation = headers.get("x-amz-target", "").removeprefix("TrentService.")
        self.calls[operation] += 1
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await self._answer(wire, operation, headers, body)
        finally:
            self.at_once -= 1

    async def _answer(self, wire: _Wire, operation: str, headers: dict[str, str], body: bytes) -> None:
        arrived = self._loop.time()
        fault = self.faults.take(operation)
        if fault is not None and fault.kind == "hang":
            await asyncio.Event().wait()
        await self._gate.wait()
        status, answer = 200, b""
        lost = fault is not None and fault.kind in ("drop", "garbage")
        if not lost or operation == "Sign":  # a signature is made all the same
            try:
                answer = orjson.dumps(self._result(operation, headers, body, fault))
            except KmsFailure as failure:
                status, answer = failure.status, orjson.dumps({"__type": failure.kind, "message": failure.text})
        if lost:
            status, answer = 200, b"\xff not JSON"
        # The work is part of the latency, which is then the same for every answer.
        await asyncio.sleep(arrived + self.faults.latency - self._loop.time())
        if fault is not None and fault.kind == "drop":
            wire.transport.abort()
        else:
            wire.send(status, answer)

    @property
    def now(self) -> float:
        """The service's time."""
        return time.time() + self.faults.clock_ahead

    def _refusal(self, headers: dict[str, str], body: bytes) -> str | None:
        return sigv4.refusal(self.secrets, self.store.region, headers, body, self.now)

    def _result(self, operation: str, headers: dict[str, str], body: bytes, fault: Fault | None) -> dict[str, Any]:
        if (refused := self._refusal(headers, body)) is not None:
            raise KmsFailure(refused, "The security token included in the request is invalid.")
        if fault is not None and fault.kind == "error":
            raise KmsFailure(fault.error, status=fault.status)
        if self.faults.ceiling is not None and self.at_once > self.faults.ceiling:
            raise KmsFailure("ThrottlingException", "Rate exceeded")
        work = self.store.operations.get(operation)
        if work is None or headers.get("content-type") != _TYPE:
            raise KmsFailure("UnknownOperationException")
        answer = work(orjson.loads(body or b"{}"))
        return answer | fault.patch if fault is not None else answer


class _Wire(asyncio.Protocol):
    """One connection: HTTP/1.1 requests with a Content-Length, one after the other."""

    def __init__(self, server: KmsServer) -> None:
        self._server = server
        self._held = b""
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]  # of a stream
        self._server.connections += 1
        self._server._wires.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._server._wires.discard(self)

    def data_received(self, data: bytes) -> None:
        self._held += data
        while (end := self._held.find(b"\r\n\r\n")) >= 0:
            lines = self._held[:end].decode("latin-1").split("\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
            size = int(headers.get("content-length", "0"))
            if len(self._held) < end + 4 + size:
                return
            body, self._held = self._held[end + 4 : end + 4 + size], self._held[end + 4 + size :]
            asyncio.ensure_future(self._server.answer(self, headers, body))  # noqa: RUF006  # ended with the loop

    def send(self, status: int, body: bytes) -> None:
        head = (
            f"HTTP/1.1 {status} {'OK' if status == 200 else 'Error'}\r\nContent-Type: {_TYPE}\r\n"
            f"x-amzn-RequestId: 00000000-0000-0000-0000-000000000000\r\nx-amz-crc32: {zlib.crc32(body)}\r\n"
            f"Date: {formatdate(self._server.now, usegmt=True)}\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        if not self.transport.is_closing():  # the caller may have gone
            self.transport.write(head.encode() + body)
