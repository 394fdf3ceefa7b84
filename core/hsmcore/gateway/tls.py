"""TLS of the gateway: its certificate, the names in those of its clients, and files that are read again when they
change."""

from __future__ import annotations

import re
import ssl
import time
from collections.abc import Collection, Mapping
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from weakref import WeakKeyDictionary, WeakSet

from hsmcore.base.listening.certificates import require_readable
from hsmcore.base.log import get_logger, said
from hsmcore.errors import ConfigFault, ConfigurationError
from hsmcore.gateway.wire.frames import ALPN

if TYPE_CHECKING:
    from hsmcore.config import GatewayTls

LOOK_SECONDS: Final = 1.0
_BLOCKS: Final = re.compile(rb"-----BEGIN [A-Z0-9 ]*CERTIFICATE-----(.+?)-----END", re.DOTALL)
_KINDS: Final = {"DNS": "dns:", "URI": ""}


class TlsFiles(NamedTuple):
    """GatewayTls, as a front needs it. `where`: its JSON path."""

    certificate_file: str
    key_file: str
    client_ca_file: str | None
    where: str

    @classmethod
    def of(cls, settings: GatewayTls) -> TlsFiles:
        """Return those of a configuration."""
        return cls(settings.certificate_file, settings.key_file, settings.client_ca_file, settings.where)


class Tls:
    """The context for the next connection. Connections that are open keep theirs."""

    def __init__(self, settings: GatewayTls | TlsFiles, *, wire: bool) -> None:
        """`wire`: for hsmcore-wire, whose clients must have a certificate and speak TLS 1.3; else for HTTP. Raises
        ConfigurationError."""
        self._settings, self._wire = settings, wire
        paths = (settings.certificate_file, settings.key_file, settings.client_ca_file)
        self._files = [Path(path) for path in paths if path is not None]
        self._authorities = WeakKeyDictionary[ssl.SSLContext, frozenset[bytes]]()
        """Of each context that is in use."""
        self._withdrawn = WeakSet[ssl.SSLContext]()
        self._seen = self._stamps()
        self._looked = time.monotonic()
        try:
            self._context = self._made()
        except (OSError, ssl.SSLError) as error:
            problem = f"certificates and key cannot be used: {said(error)}"
            raise ConfigurationError.of([ConfigFault(settings.where, problem)]) from None

    @property
    def context(self) -> ssl.SSLContext:
        """The context, made again if the files have changed. Files that cannot be used are logged, and change nothing:
        those of a certificate and its key do not change at once."""
        now, changed = time.monotonic(), False
        if now - self._looked >= LOOK_SECONDS:
            self._looked = now
            stamps = self._stamps()
            changed, self._seen = stamps != self._seen, stamps
        # A context keeps TLS 1.2 sessions by their ids, and Python cannot forbid it: the next one knows none of them.
        if changed or self._context.session_stats()["number"]:
            self._renew(changed)
        return self._context

    def reread(self) -> None:
        """Look at the files now. What was shown under an authority that has been taken away vouches for no client any
        more. Which authority vouched for which certificate is not known, so all that were shown beside it count."""
        self._looked = -inf
        present = self._authorities[self.context]
        for context, had in self._authorities.items():
            if not had <= present:
                self._withdrawn.add(context)

    def ends(self, shown: ssl.SSLObject | None) -> float:
        """Return until when a client's certificate vouches for it, in seconds since 1970; infinity: it has none."""
        certificate = None if shown is None else shown.getpeercert()
        if shown is None or not certificate:
            return inf
        return 0.0 if shown.context in self._withdrawn else ssl.cert_time_to_seconds(str(certificate["notAfter"]))

    def _renew(self, changed: bool) -> None:
        try:
            self._context = self._made()
        except (OSError, ssl.SSLError) as error:
            get_logger().warning("changed TLS files cannot be used", where=self._settings.where, error=said(error))
        else:
            if changed:
                get_logger().info("changed TLS files are in use", where=self._settings.where)

    def _stamps(self) -> list[tuple[int, int, int] | None]:
        return [_stamp(path) for path in self._files]

    def _made(self) -> ssl.SSLContext:
        settings = self._settings
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3 if self._wire else ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols([ALPN if self._wire else "http/1.1"])
        # A ticket would let a client come back whose authority was removed since.
        context.options |= ssl.OP_NO_TICKET
        context.num_tickets = 0
        # A passphrase would be asked for at the terminal; there is none to ask.
        require_readable(*self._files)
        file = settings.client_ca_file
        found = () if file is None else _BLOCKS.findall(Path(file).read_bytes())
        self._authorities[context] = frozenset(b"".join(one.split()) for one in found)
        context.load_cert_chain(settings.certificate_file, settings.key_file, password=lambda: "")
        if settings.client_ca_file is not None:
            context.load_verify_locations(settings.client_ca_file)
            context.verify_mode = ssl.CERT_REQUIRED if self._wire else ssl.CERT_OPTIONAL
        return context


def require_tls(settings: GatewayTls, faces: Collection[str]) -> None:
    """Raise ConfigurationError for certificates and keys that cannot be used for these faces."""
    for face in {"tls", "https"}.intersection(faces):
        Tls(settings, wire=face == "tls")


def names_in(certificate: Mapping[str, Any] | None) -> tuple[str, ...]:
    """Return the names of a client in its certificate, as SSLObject.getpeercert() gives it and as `gateway.clients`
    lists them: "dns:name" and "spiffe://domain/path". The subject's common name is none."""
    found = (certificate or {}).get("subjectAltName", ())
    names = [_KINDS[kind] + (value.lower() if kind == "DNS" else value) for kind, value in found if kind in _KINDS]
    return tuple(name for name in names if name.startswith(("dns:", "spiffe://")))


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size
