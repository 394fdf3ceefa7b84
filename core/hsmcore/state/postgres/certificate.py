"""When the certificates of the connection to a fleet's database end. libpq says of one that has ended that its
verification failed, and not which or when."""

from __future__ import annotations

import socket
import ssl
import struct
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NamedTuple, Self

import psycopg

from hsmcore.state.postgres.url import ENCRYPTED, ServerUrl, ports

CLIENT: Final = "client"
_SSL_REQUEST: Final = struct.pack("!ii", 8, 80877103)
_SECONDS: Final = 5.0
"""The longest wait for a server."""


class Certified(NamedTuple):
    """Where the certificates are. `servers`: name, address and port of each that is asked over TLS; `client`: the file
    of this host's own certificate, or "". No secret is among them."""

    servers: tuple[tuple[str, str, str], ...] = ()
    client: str = ""

    @classmethod
    def of(cls, url: ServerUrl) -> Self:
        """Return those of a URL."""
        names = str(url.given["host"]).split(",")
        addresses = str(url.given.get("hostaddr") or url.given["host"]).split(",")
        servers = tuple(zip(names, addresses, ports(url.given), strict=False)) if url.sslmode in ENCRYPTED else ()
        return cls(servers, str(url.given.get("sslcert", "")) if servers else "")

    def ends(self) -> Mapping[str, datetime]:
        """Return when each certificate ends, by "host:port" or CLIENT. One that cannot be had is left out. Blocks."""
        return dict(self._ends())

    def _ends(self) -> Iterator[tuple[str, datetime]]:
        from cryptography import x509

        for name, address, port in self.servers:
            with suppress(OSError, ValueError):
                yield f"{name}:{port}", x509.load_der_x509_certificate(_shown(name, address, port)).not_valid_after_utc
        if self.client:
            with suppress(OSError, ValueError):
                yield CLIENT, x509.load_pem_x509_certificate(Path(self.client).read_bytes()).not_valid_after_utc

    def ended(self) -> str:
        """Return which certificates have ended, and where to change them; "": none. Blocks."""
        now = datetime.now(UTC)
        return "; ".join(self.told(name, at) for name, at in self._ends() if at <= now)

    def told(self, name: str, at: datetime) -> str:
        """Return what is to be said of a certificate that `ends` has found."""
        verb = "expired" if at <= datetime.now(UTC) else "expires"
        place, where = f"the certificate of {name}", "ssl_cert_file of the server, which reads it again at a reload"
        if name == CLIENT:
            place, where = f"this host's certificate {self.client}", "sslcert of the URL"
        return f"{place} {verb} on {at:%Y-%m-%d %H:%M} UTC ({where})"


def explained(error: psycopg.Error, certified: Certified) -> psycopg.Error:
    """Return the error of a connection, with the certificates that have ended if it may be for one. Blocks."""
    ended = certified.ended() if "certificate" in str(error) else ""
    return psycopg.OperationalError(f"{error}: {ended}") if ended else error


def _shown(name: str, address: str, port: str) -> bytes:
    """Return the certificate that a server shows, in DER. Only its date is read, so that one that has ended is, too."""
    with socket.create_connection((address, int(port)), _SECONDS) as raw:
        raw.sendall(_SSL_REQUEST)
        if raw.recv(1) != b"S":
            return b""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with context.wrap_socket(raw, server_hostname=name) as over:
            return over.getpeercert(binary_form=True) or b""
