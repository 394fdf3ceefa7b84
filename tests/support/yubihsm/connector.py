"""The connector: HTTP/1.1 on the loopback interface in front of one device."""

from __future__ import annotations

import os
import socket
import threading
from contextlib import suppress
from typing import Self

from tests.support.ports import bound

from .codes import MAX_FRAME
from .device import Device, TransportFault

_MAX_LINE = 8192
_STATUSES = {200: "OK", 400: "Bad Request", 404: "Not Found", 500: "Internal Server Error"}


class _Hangup(Exception):
    """This connection ends without a reply."""


class Connector:
    """Serves one device until `stop`; may be started again on the same port. Several may serve one device."""

    def __init__(self, device: Device, port: int = 0) -> None:
        self.device = device
        self._place = bound(port)
        self.port = self._place.getsockname()[1]
        self._listener: socket.socket | None = None
        self._lock = threading.Lock()
        self._connections: dict[socket.socket, threading.Thread] = {}
        self._acceptor: threading.Thread | None = None

    @property
    def url(self) -> str:
        """As clients want it."""
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self.stop()
        self._place.close()

    def start(self) -> None:
        """Listen. Idempotent."""
        if self._listener is not None:
            return
        self._listener = bound(self.port)
        self._listener.listen(64)
        self._acceptor = threading.Thread(
            target=self._accept, args=(self._listener,), name=f"yubihsm-connector-{self.port}"
        )
        self._acceptor.start()

    def stop(self) -> None:
        """Drop every connection and listen no longer. What hangs is let go."""
        listener, self._listener = self._listener, None
        if listener is None or self._acceptor is None:
            return
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        self._acceptor.join()
        listener.close()
        with self._lock:
            left = dict(self._connections)
        for connection in left:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self.device.faults.release()
        for thread in left.values():
            thread.join()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            thread = threading.Thread(target=self._serve, args=(connection,), name="yubihsm-connection")
            with self._lock:
                self._connections[connection] = thread
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            with connection, connection.makefile("rwb") as stream:
                while self._exchange(connection, stream):  # type: ignore[arg-type]
                    pass
        except (OSError, _Hangup, ValueError):
            pass
        finally:
            with self._lock:
                self._connections.pop(connection, None)

    def _exchange(self, connection: socket.socket, stream: socket.SocketIO) -> bool:
        """One request and its answer; False when the client has gone."""
        line = stream.readline(_MAX_LINE)
        if not line:
            return False
        method, path, _ = line.decode("latin-1").split(" ", 2)
        headers: dict[str, str] = {}
        while (line := stream.readline(_MAX_LINE)) not in (b"\r\n", b"\n", b""):
            name, _, value = line.decode("latin-1").partition(":")
            headers[name.strip().lower()] = value.strip()
        if headers.get("expect", "").lower() == "100-continue":
            connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        size = int(headers.get("content-length", "0"))
        if not 0 <= size <= MAX_FRAME + 1024:
            raise _Hangup
        body = stream.read(size)
        status, answer, kind = self._answer(method, path, body)
        head = f"HTTP/1.1 {status} {_STATUSES[status]}\r\nContent-Type: {kind}\r\nContent-Length: {len(answer)}\r\n\r\n"
        connection.sendall(head.encode() + answer)
        return headers.get("connection", "").lower() != "close"

    def _answer(self, method: str, path: str, body: bytes) -> tuple[int, bytes, str]:
        if (method, path) == ("GET", "/connector/status"):
            return 200, self._status(), "text/plain"
        if (method, path) != ("POST", "/connector/api"):
            return 404, b"", "text/plain"
        try:
            reply = self.device.process(body)
        except TransportFault as fault:
            reply = self._misbehave(fault)
            if fault.fault.kind == "http-error":
                return 500, b"", "text/plain"
        return 200, reply, "application/octet-stream"

    def _misbehave(self, strike: TransportFault) -> bytes:
        kind = strike.fault.kind
        if kind == "hang":
            self.device.faults.wait()
        if kind in ("drop", "lose-reply", "hang"):
            raise _Hangup
        return os.urandom(24) if strike.reply is None else strike.reply[: len(strike.reply) // 2]

    def _status(self) -> bytes:
        values = {
            "status": "OK",
            "serial": self.device.serial,
            "version": "3.0.5",
            "pid": os.getpid(),
            "address": "127.0.0.1",
            "port": self.port,
        }
        return "".join(f"{name}={value}\n" for name, value in values.items()).encode()
