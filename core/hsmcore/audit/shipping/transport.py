"""Transports of syslog messages: datagrams (Unix, UDP), or a stream with octet counting (TCP: RFC 6587, TLS: RFC 5425).

Syslog has no acknowledgement. A batch counts as sent once the receiver's queue has it (Unix), this host has sent it
(UDP), or the receiver's kernel has acknowledged it (TCP, TLS: the send queue is empty). A receiver that ends before it
reads loses that; so over TCP and TLS the batches of the last seconds before a connection broke are sent again.
"""

from __future__ import annotations

import fcntl
import re
import socket
import ssl
import struct
import termios
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final

from hsmcore.base.listening.certificates import require_readable
from hsmcore.config.audit import Syslog, SyslogTls

TIMEOUT_SECONDS: Final = 10.0
"""Timeout of a connection, and of a batch until it counts as sent."""
SETTLE_SECONDS: Final = 3.0
"""Seconds after a batch in which the end of the connection may still mean its loss."""
_FINISH_SECONDS: Final = 1.0
_PORTS: Final = {"udp": 514, "tcp": 601, "tls": 6514}
_ADDRESS: Final = re.compile(r"(udp|tcp|tls)://(?:\[([^\]]+)\]|([^:]+))(?::([0-9]+))?")
_SIOCOUTQ: Final = termios.TIOCOUTQ  # the same number on Linux
_POLL_SECONDS: Final = 0.002


class Transport:
    """A socket that another thread may shut down. `send` connects it."""

    batch: tuple[int, int, float]
    """Most bytes and messages of a batch, and least seconds between two batches."""
    settle_seconds = 0.0

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._socket: socket.socket | None = None

    def send(self, messages: Sequence[bytes]) -> None:
        """Send messages. Raises OSError; then the connection must be closed."""
        raise NotImplementedError

    def check(self) -> None:
        """Raise OSError if the receiver ended the connection, as far as the transport can tell."""

    def finish(self) -> bool:
        """End the connection in order. Return whether the receiver is known to have taken everything."""
        return True

    def interrupt(self) -> None:
        """Abort a `send` that waits. From any thread."""
        with self._guard:
            if self._socket is not None:
                with suppress(OSError):
                    self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the connection; `send` opens another."""
        with self._guard:
            ended, self._socket = self._socket, None
        if ended is not None:
            ended.close()

    def _take(self, made: socket.socket) -> socket.socket:
        with self._guard:
            self._socket = made
        return made


class _Datagrams(Transport):
    def __init__(self, address: str | tuple[str, int]) -> None:
        super().__init__()
        self._address = address
        # UDP loses what arrives faster than the receiver reads: at most 10,000 messages a second.
        self.batch = (1 << 16, 100, 0.01 if isinstance(address, tuple) else 0.0)

    def send(self, messages: Sequence[bytes]) -> None:
        connected = self._socket or self._connect()
        for message in messages:
            connected.send(message)
        failure = connected.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if failure:
            raise OSError(failure, "nobody receives there")

    def _connect(self) -> socket.socket:
        family = socket.AF_UNIX
        address: str | tuple[Any, ...] = self._address
        if not isinstance(self._address, str):
            family, _, _, _, address = socket.getaddrinfo(*self._address, type=socket.SOCK_DGRAM)[0]
        made = self._take(socket.socket(family, socket.SOCK_DGRAM))
        made.settimeout(TIMEOUT_SECONDS)
        made.connect(address)
        return made


class _Stream(Transport):
    batch = (1 << 18, 1000, 0.0)
    settle_seconds = SETTLE_SECONDS

    def __init__(self, host: str, port: int, tls: SyslogTls | None) -> None:
        super().__init__()
        self._host, self._port, self._tls = host, port, tls

    def send(self, messages: Sequence[bytes]) -> None:
        self.check()
        connected = self._socket or self._connect()
        connected.sendall(b"".join(b"%d %s" % (len(message), message) for message in messages))
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while _unacknowledged(connected):
            if time.monotonic() > deadline:
                raise TimeoutError(0, "the receiver does not take what is sent")
            self.check()
            time.sleep(_POLL_SECONDS)
        self.check()

    def check(self) -> None:
        if self._socket is not None and _has_ended(self._socket):
            raise ConnectionResetError(0, "the receiver has closed the connection")

    def finish(self) -> bool:
        # A receiver that closes after it read our end has read everything; one that failed before makes this fail too.
        connected = self._socket
        if connected is None:
            return False
        try:
            connected.settimeout(_FINISH_SECONDS)
            if isinstance(connected, ssl.SSLSocket):
                connected.unwrap()
            else:
                connected.shutdown(socket.SHUT_WR)
                while connected.recv(4096):
                    pass
        except (OSError, ValueError):
            return False
        return True

    def _connect(self) -> socket.socket:
        made = socket.create_connection((self._host, self._port), TIMEOUT_SECONDS)
        self._take(made)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if self._tls is None:
            return made
        require_readable(self._tls.ca_file, self._tls.certificate_file, self._tls.key_file)
        context = ssl.create_default_context(cafile=self._tls.ca_file)
        if self._tls.certificate_file is not None:
            context.load_cert_chain(self._tls.certificate_file, self._tls.key_file, _no_passphrase)
        wrapped = context.wrap_socket(made, server_hostname=self._tls.server_name or self._host)
        return self._take(wrapped)


def transport(settings: Syslog) -> Transport:
    """Return the transport for the address of the settings."""
    found = _ADDRESS.fullmatch(settings.address)
    if found is None:
        return _Datagrams(settings.address.removeprefix("unix://"))
    scheme, host = found[1], found[2] or found[3]
    port = int(found[4] or _PORTS[scheme])
    if scheme == "udp":
        return _Datagrams((host, port))
    return _Stream(host, port, (settings.tls or SyslogTls()) if scheme == "tls" else None)


def _no_passphrase() -> str:
    raise PermissionError(0, "the key file has a passphrase, which nobody can give here")


def _unacknowledged(connected: socket.socket) -> int:
    answer = fcntl.ioctl(connected.fileno(), _SIOCOUTQ, bytes(4))
    return int(struct.unpack("i", answer)[0])


def _has_ended(connected: socket.socket) -> bool:
    """Return whether the receiver closed the connection. Anything that it sends is discarded. Raises OSError."""
    connected.setblocking(False)
    try:
        while True:
            if not connected.recv(4096):
                return True
    except (BlockingIOError, ssl.SSLWantReadError):
        return False
    finally:
        connected.settimeout(TIMEOUT_SECONDS)
