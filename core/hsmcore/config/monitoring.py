"""Monitoring of a running key manager: `keyManager.monitoring`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Final, Self

from pydantic import BeforeValidator, field_validator, model_validator

from hsmcore.base.listening.sockets import is_loopback
from hsmcore.config.base import Model, Text, as_tuple, clash, each_once, fault
from hsmcore.config.placed import Variables
from hsmcore.config.secret import Secret

DEFAULT_LISTEN: Final = "127.0.0.1:9464"
_FORM = re.compile(r"(?:\[(?P<six>[0-9A-Fa-f:.]+)\]|(?P<host>[A-Za-z0-9._-]+)):(?P<port>[0-9]{1,5})")
_SAYS: Final = 'must be "host:port", "[address]:port" or "unix:/path/of/a/socket"'


@dataclass(frozen=True, slots=True)
class Address:
    """An address to listen at: a host and a port (0: any free one), or the path of a Unix socket."""

    host: str = ""
    port: int = 0
    path: str = ""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse an address. Raises ValueError with the allowed forms as its text."""
        if text.startswith("unix:"):
            path = text.removeprefix("unix:").removeprefix("//")
            if not path or len(path.encode()) > 100:  # sun_path has 108 bytes
                raise ValueError("the path of a Unix socket must have 1 to 100 bytes")
            return cls(path=path)
        found = _FORM.fullmatch(text)
        if found is None or int(found["port"]) > 65535:
            raise ValueError(_SAYS)
        return cls(found["six"] or found["host"], int(found["port"]))

    @property
    def local(self) -> bool:
        """Whether no other machine can reach it."""
        return bool(self.path) or is_loopback(self.host)


class MonitoringTls(Model):
    """The server's certificate chain and its private key, PEM; the key without a passphrase."""

    PATHS = frozenset({"certificate_file", "key_file"})

    certificate_file: Annotated[str, Text(4096)]
    """The server's certificate chain."""
    key_file: Annotated[str, Text(4096)]
    """The chain's private key."""


class MonitoringWitness(Model):
    """A witness of other audit logs (C2SP tlog-witness), at `/add-checkpoint`: it cosigns a log that has only grown."""

    PATHS = frozenset({"folder"})

    name: Annotated[str, Text(200, form=r"[^\s+]+", says="a name without spaces and +")]
    """Its name in cosignatures, such as "sequencer-2.example/witness"."""
    folder: Annotated[str, Text(4096)]
    """Where its key and the newest checkpoint of each log are. Who puts an older folder back makes it forget."""
    logs: Annotated[
        tuple[
            Annotated[
                str,
                Text(
                    512,
                    form=r"[^\s+]+\+[0-9a-f]{8}\+A[Q-Za-f][A-Za-z0-9+/]{42}",
                    says="a log's verifier key, <name>+<key id>+<base64>, of type 1, as `hsmcore audit show` prints it",
                ),
            ],
            ...,
        ],
        BeforeValidator(as_tuple),
        each_once("log"),
    ]
    """The verifier keys of the logs that it cosigns."""


class Monitoring(Model):
    """`monitoring`: the address of `hsmcore serve` and `hsmcore.serve.attached`, and the permissions of its users.

    Beyond this machine's loopback, TLS and a viewer token are required. Without an operator token, nothing can be
    changed."""

    listen: Annotated[str, Text(256), Variables] = DEFAULT_LISTEN
    """"host:port", "[address]:port" or "unix:/path"; port 0: any free one."""
    tls: MonitoringTls | None = None
    """Certificates. Required beyond loopback."""
    viewer_token: Secret | None = None
    """The token that may read. Default, on loopback only: every reader may."""
    operator_token: Secret | None = None
    """The token that may drain, force, rotate and read."""
    hosts: Annotated[tuple[Annotated[str, Text(253)], ...], BeforeValidator(as_tuple)] = ()
    """Further names in the Host header: those of proxies and load balancers."""
    witness: MonitoringWitness | None = None
    """Cosign other logs. Needs no token: who asks shows a log's signature."""

    @field_validator("listen")
    @classmethod
    def _address(cls, value: str) -> str:
        try:
            Address.parse(value)
        except ValueError as error:
            raise fault(str(error)) from None
        return value

    @property
    def address(self) -> Address:
        """`listen`, parsed."""
        return Address.parse(self.listen)

    @model_validator(mode="after")
    def _safe(self) -> Monitoring:
        if self.viewer_token is not None and self.viewer_token == self.operator_token:
            raise clash("viewerToken and operatorToken are the same: whoever may look could act")
        if self.address.local:
            return self
        wanted = (("tls", self.tls), ("viewerToken", self.viewer_token))
        missing = [name for name, value in wanted if value is None]
        if missing:
            raise clash(
                f"listens at {self.listen}, which other machines can reach, without {' and '.join(missing)}: add "
                f'{"them" if len(missing) > 1 else "it"}, or listen at "127.0.0.1:9464" or "unix:/path"'
            )
        return self
