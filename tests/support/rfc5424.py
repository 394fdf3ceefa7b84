"""Syslog receivers on this machine, and a parser that accepts what the grammar of RFC 5424 (section 6) allows, and
nothing else."""

from __future__ import annotations

import re
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

_HEADER = re.compile(
    rb"<(0|[1-9][0-9]{0,2})>([1-9][0-9]{0,2}) "
    rb"(-|[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]{1,6})?(?:Z|[+-][0-9]{2}:[0-9]{2})) "
    rb"([!-~]{1,255}) ([!-~]{1,48}) ([!-~]{1,128}) ([!-~]{1,32}) "
)
_SD_NAME = rb"[!#-<>-\\^-~]{1,32}"  # PRINTUSASCII without = ] " and blank
_ELEMENT = re.compile(rb"\[(" + _SD_NAME + rb")((?: " + _SD_NAME + rb'="(?:[^"\\\]]|\\.)*")*)\]', re.DOTALL)
_PARAM = re.compile(rb" (" + _SD_NAME + rb')="((?:[^"\\\]]|\\.)*)"', re.DOTALL)


@dataclass(frozen=True)
class Message:
    facility: int
    severity: int
    timestamp: datetime | None
    hostname: str
    app_name: str
    procid: str
    msgid: str
    data: dict[str, dict[str, str]]
    text: bytes


def parse(raw: bytes) -> Message:
    """Raises ValueError for whatever the grammar does not allow."""
    head = _HEADER.match(raw)
    if head is None:
        raise ValueError(f"no header: {raw[:100]!r}")
    priority, version, stamp, *names = head.groups()
    if int(priority) > 191 or version != b"1":
        raise ValueError("priority or version")
    data: dict[str, dict[str, str]] = {}
    place = head.end()
    if raw[place : place + 1] == b"-":
        place += 1
    else:
        while element := _ELEMENT.match(raw, place):
            name = element[1].decode()
            if name in data or ("@" in name and re.fullmatch(r"[^@]+@[1-9][0-9]*(\.[0-9]+)*", name) is None):
                raise ValueError(f"SD-ID {name}")
            pairs = [(n.decode(), re.sub(r'\\(["\\\]])', r"\1", v.decode())) for n, v in _PARAM.findall(element[2])]
            data[name] = dict(pairs)
            place = element.end()
        if not data:
            raise ValueError("no structured data")
    if raw[place : place + 1] not in (b"", b" "):
        raise ValueError("something behind the structured data")
    moment = None if stamp == b"-" else datetime.fromisoformat(stamp.decode())
    host, app, pid, kind = (name.decode() for name in names)
    return Message(int(priority) // 8, int(priority) % 8, moment, host, app, pid, kind, data, raw[place + 1 :])


def unframed(stream: bytes) -> tuple[list[bytes], bytes]:
    """The messages of an octet-counted stream (RFC 6587, 3.4.1), and the beginning of one that is not whole."""
    found = []
    while match := re.match(rb"([1-9][0-9]{0,5}) ", stream):
        end = match.end() + int(match[1])
        if len(stream) < end:
            break
        found.append(stream[match.end() : end])
        stream = stream[end:]
    if len(stream) > 7 and re.match(rb"[1-9][0-9]{0,5} ", stream) is None:
        raise ValueError(f"no octet count: {stream[:40]!r}")
    return found, stream


class Receiver:
    """Takes messages in a thread. `drop_next`: so many connections are closed when half of what first came is read."""

    def __init__(self, listener: socket.socket, context: ssl.SSLContext | None = None) -> None:
        self.messages: list[bytes] = []
        self.connections = 0
        self.drop_next = 0
        self.faults: list[str] = []
        self._listener, self._context = listener, context
        self._ending = False
        self._thread = threading.Thread(target=self._serve, name="syslog-receiver")
        listener.settimeout(0.05)
        self._thread.start()

    def _serve(self) -> None:
        while not self._ending:
            try:
                if self._listener.type == socket.SOCK_DGRAM:
                    self.messages.append(self._listener.recv(1 << 17))
                else:
                    self._converse(self._listener.accept()[0])
            except TimeoutError:
                continue

    def _converse(self, peer: socket.socket) -> None:
        self.connections += 1
        stream = b""
        peer.settimeout(5)
        with suppress(ssl.SSLError, ConnectionError), peer:
            if self._context is not None:
                peer = self._context.wrap_socket(peer, server_side=True)
            with peer:
                peer.settimeout(0.05)
                while not self._ending:
                    try:
                        piece = peer.recv(1 << 16)
                    except TimeoutError:
                        continue
                    if not piece:
                        break
                    if self.drop_next:
                        self.drop_next -= 1
                        piece = piece[: len(piece) // 2]
                        stream = self._took(stream + piece)
                        return
                    stream = self._took(stream + piece)

    def _took(self, stream: bytes) -> bytes:
        try:
            found, left = unframed(stream)
        except ValueError as error:
            self.faults.append(str(error))
            return b""
        self.messages += found
        return left

    def close(self) -> None:
        self._ending = True
        self._thread.join()
        self._listener.close()


@contextmanager
def receiver(
    kind: str, folder: Path, *, port: int = 0, context: ssl.SSLContext | None = None
) -> Iterator[tuple[str, Receiver]]:
    """The address (as `audit.syslog.address` has it) of a receiver, and the receiver."""
    if kind == "unix":
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        path = folder / "log.socket"
        path.unlink(missing_ok=True)
        listener.bind(str(path))
        address = f"unix://{path}"
    elif kind == "udp":
        listener = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        listener.bind(("127.0.0.1", port))
        address = f"udp://127.0.0.1:{listener.getsockname()[1]}"
    else:
        listener = socket.create_server(("127.0.0.1", port))
        address = f"{kind}://127.0.0.1:{listener.getsockname()[1]}"
    taking = Receiver(listener, context)
    try:
        yield address, taking
    finally:
        taking.close()
