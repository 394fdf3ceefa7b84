"""Where a client finds its gateway, and how it shows who it is there."""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Final, Self

from hsmcore.errors import BadArgument
from hsmcore.gateway.wire.frames import ALPN

_NEXT: Final = r",\s*(?=unix:|tls:)"
"""Between two addresses of one string."""
_HOST: Final = r"(?:\[(?P<six>[0-9A-Fa-f:.]+)\]|(?P<host>[A-Za-z0-9._-]+)):(?P<port>[0-9]{1,5})"


@dataclass(frozen=True, slots=True)
class ClientTls:
    """Files, PEM, of a client of a "tls:" address. They are read at each connection, so a renewed certificate is used
    without a restart."""

    certificate_file: str
    """The client's certificate chain."""
    key_file: str
    """Its private key, without a passphrase."""
    ca_file: str
    """The authorities that vouch for the gateway."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return that of three paths with commas between them, in the order of the fields. Raises BadArgument."""
        files = text.split(",")
        if len(files) != len(fields(cls)) or not all(files):
            raise BadArgument(f"expected CERTIFICATE,KEY,AUTHORITIES, not {text!r:.100}")
        return cls(*files)

    def context(self) -> ssl.SSLContext:
        """Read the files. Blocks. Raises OSError, also for files that are not PEM."""
        from hsmcore.base.listening.certificates import require_readable  # with pathlib

        require_readable(self.ca_file, self.certificate_file, self.key_file)
        context = ssl.create_default_context(cafile=self.ca_file)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.set_alpn_protocols([ALPN])
        context.load_cert_chain(self.certificate_file, self.key_file)
        return context


@dataclass(frozen=True, slots=True)
class GatewayAddress:
    """ "unix:/path" or "tls:host:port"."""

    text: str
    path: str = ""
    host: str = ""
    port: int = 0

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse an address. Raises BadArgument."""
        if text.startswith("unix:") and len(text) > len("unix:"):
            return cls(text, path=text.removeprefix("unix:"))
        found = re.fullmatch(_HOST, text.removeprefix("tls:"))
        if not text.startswith("tls:") or found is None or int(found["port"]) > 65535:
            raise BadArgument(f'the address of a gateway must be "unix:/path" or "tls:host:port", not {text!r:.100}')
        return cls(text, host=found["six"] or found["host"], port=int(found["port"]))

    @classmethod
    def parse_all(cls, listed: str | Sequence[str]) -> tuple[Self, ...]:
        """Parse addresses: several, or one string with commas between them. Raises BadArgument."""
        texts = re.split(_NEXT, listed) if isinstance(listed, str) else listed
        if not texts:
            raise BadArgument("the list of addresses is empty")
        return tuple(map(cls.parse, dict.fromkeys(texts)))

    def is_of(self, host: str) -> bool:
        """Whether this is, by its name, the address of a host of the fleet: the host of the address or its first label,
        or the name of a socket's folder or file."""
        if self.path:
            *_, folder, file = ("", *self.path.split("/"))
            return host in (folder, file.removesuffix(".sock"))
        return host in (self.host, self.host.partition(".")[0])

    async def dial(self, tls: ClientTls | None, protocol: Callable[[], asyncio.Protocol]) -> None:
        """Connect. Raises OSError."""
        loop = asyncio.get_running_loop()
        if self.path:
            await loop.create_unix_connection(protocol, self.path)
        else:
            context = await asyncio.to_thread(tls.context) if tls is not None else None
            await loop.create_connection(protocol, self.host, self.port, ssl=context, server_hostname=self.host)
