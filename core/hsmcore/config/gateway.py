"""The gateway: where it listens, and who may have what signed."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from math import inf
from typing import Annotated, Final, Literal, Self

from pydantic import BeforeValidator, field_validator, model_validator

from hsmcore.config.base import Model, Text, Whole, as_tuple, clash, fault
from hsmcore.config.monitoring import Address
from hsmcore.config.placed import Variables
from hsmcore.config.policy import CallerRules
from hsmcore.config.secret import Secret

DEFAULT_SOCKET: Final = "unix:/run/hsmcore/sign.sock"
_SAYS: Final = 'must be "unix:/path", "tls:host:port" or "https:host:port"'
_PeerName = Annotated[
    str,
    Text(
        512,
        form=r"dns:[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?|spiffe://[a-z0-9._-]+(/[A-Za-z0-9._-]+)+",
        says='"dns:name" or "spiffe://domain/path": a name that the client\'s certificate has',
    ),
]
_Number = Annotated[int, Whole(0, 2**32 - 2)]


@dataclass(frozen=True, slots=True)
class Listen:
    """An address to listen at. `face`: "unix" and "tls" speak hsmcore-wire/1, "https" Vault Transit's API."""

    face: Literal["unix", "tls", "https"]
    address: Address

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse an address. Raises ValueError with the allowed forms as its text."""
        if text.startswith("unix:"):
            return cls("unix", Address.parse(text))
        for face in ("tls", "https"):
            if text.startswith(f"{face}:"):
                return cls(face, Address.parse(text.removeprefix(f"{face}:")))
        raise ValueError(_SAYS)


class GatewayTls(Model):
    """The gateway's certificate chain and private key, and what client certificates are checked against; PEM, the key
    without a passphrase. Files are read again when they change."""

    PATHS = frozenset({"certificate_file", "key_file", "client_ca_file"})

    certificate_file: Annotated[str, Text(4096)]
    """The gateway's certificate chain."""
    key_file: Annotated[str, Text(4096)]
    """The chain's private key."""
    client_ca_file: Annotated[str, Text(4096)] | None = None
    """Certificates of the authorities for clients. Required for "tls:"; for "https:", where tokens will do as well, a
    client certificate is asked for if this is given."""


class GatewayToken(Model):
    """A token of a client, and when it ends."""

    token: Secret
    """The X-Vault-Token."""
    expires: (
        Annotated[
            str,
            Text(
                40,
                form=r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(Z|[+-][0-9]{2}:[0-9]{2})",
                says='a time with its zone, such as "2027-01-31T00:00:00Z"',
            ),
        ]
        | None
    ) = None
    """From when on it is refused. Default: it does not end."""

    @field_validator("expires")
    @classmethod
    def _is_a_time(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                datetime.fromisoformat(value)
            except ValueError:
                raise fault("must be a day and a time of day that there are") from None
        return value

    @property
    def ends(self) -> float:
        """`expires`, in seconds since 1970; infinity: never."""
        return inf if self.expires is None else datetime.fromisoformat(self.expires).timestamp()


class GatewayClient(CallerRules):
    """A client: a caller outside this process. How it is known, of which one way is enough, and what it may."""

    uid: Annotated[tuple[_Number, ...], BeforeValidator(as_tuple)] = ()
    """User ids on a Unix socket."""
    gid: Annotated[tuple[_Number, ...], BeforeValidator(as_tuple)] = ()
    """Group ids on a Unix socket: primary and supplementary ones. The primary one counts first; a process
    whose supplementary ones are of two clients is neither."""
    names: Annotated[tuple[_PeerName, ...], BeforeValidator(as_tuple)] = ()
    """Names in a certificate that clientCaFile vouches for."""
    token: Secret | None = None
    """The X-Vault-Token that the client sends to an "https:" address; short for one of `tokens`."""
    tokens: Annotated[tuple[GatewayToken, ...], BeforeValidator(as_tuple)] = ()
    """Tokens of which any will do: while one takes the place of another, both."""
    keys: Annotated[tuple[Annotated[str, Text(32)], ...], BeforeValidator(as_tuple)]
    """The key managers that it may use, by their names in `keyManagers`; "default" is the one at `keyManager`."""
    manages: bool = False
    """Whether it may also generate, choose, deactivate and back up keys."""
    in_flight: Annotated[int, Whole(1, 65_536)] = 256
    """Requests that are open at each key manager, on all its connections together."""
    weight: Annotated[int, Whole(1, 1000)] = 1
    """Its share, in relation to the other clients', while more is asked for than the keys sign."""

    @model_validator(mode="after")
    def _known_somehow(self) -> GatewayClient:
        if not (self.uid or self.gid or self.names or self.all_tokens):
            raise clash("is known by nothing: give uid, gid, names, token or tokens")
        if not self.keys or len(set(self.keys)) != len(self.keys):
            raise clash("keys must list at least one key manager, each once")
        return self

    @property
    def all_tokens(self) -> tuple[GatewayToken, ...]:
        """`token` and `tokens`."""
        return (() if self.token is None else (GatewayToken(token=self.token),)) + self.tokens

    @property
    def tokens_end(self) -> float | None:
        """When its last token ends, in seconds since 1970; infinity: never; None: it has none."""
        return max((one.ends for one in self.all_tokens), default=None)


class Gateway(Model):
    """`gateway`: the addresses, and the clients by name. All others are refused."""

    listen: Annotated[tuple[Annotated[str, Text(256), Variables], ...], BeforeValidator(as_tuple)] = (DEFAULT_SOCKET,)
    """The addresses: "unix:/path", "tls:host:port" or "https:host:port"."""
    tls: GatewayTls | None = None
    """Certificates; required for "tls:" and "https:"."""
    clients: dict[str, GatewayClient]
    """The clients, by names that records and metrics show."""
    fronts: Annotated[int, Whole(1, 64)] = 1
    """Processes for its "tls:" addresses, and as many for "https:" ones, which speak with clients and hold no key."""
    socket_mode: Annotated[str, Text(4, form="0[0-7]{3}", says='the permissions of a Unix socket, such as "0660"')] = (
        "0660"
    )
    """The permissions of a Unix socket that the gateway makes."""
    in_flight: Annotated[int, Whole(1, 65_536)] | None = None
    """Messages of all clients that are at a key manager at a time; the others wait for their turn, and what is at a
    key manager is not overtaken. Default: twice as many as its HSM sessions, and at least 32; 1,024 while one
    client is the only one that asks."""
    max_timeout_ms: Annotated[int, Whole(100, 3_600_000)] = 60_000
    """The longest time for a request, whatever its client says; a key manager's requestTimeoutMs, if that is more. A
    request for a device that hangs keeps its place for so long."""
    drain_ms: Annotated[int, Whole(0, 600_000)] = 10_000
    """How long an end by SIGTERM waits for the answers of open requests."""

    @field_validator("listen")
    @classmethod
    def _addresses(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for text in value:
            try:
                Listen.parse(text)
            except ValueError as error:
                raise fault(f"{text!r} {error}") from None
        if not value or len(set(value)) != len(value):
            raise clash("must list at least one address, each once")
        return value

    @property
    def addresses(self) -> tuple[Listen, ...]:
        """`listen`, parsed."""
        return tuple(map(Listen.parse, self.listen))

    @model_validator(mode="after")
    def _fits_together(self) -> Gateway:
        faces = {one.face for one in self.addresses} - {"unix"}
        if faces and self.tls is None:
            raise clash(f"listens at {min(faces)}: without tls")
        if "tls" in faces and self.tls is not None and self.tls.client_ca_file is None:
            raise clash("listens at tls: without tls.clientCaFile, so no client could show who it is")
        if not self.clients:
            raise clash("clients names nobody: every request would be refused")
        for field in ("uid", "gid", "names"):
            seen: dict[object, str] = {}
            for name, client in self.clients.items():
                for one in getattr(client, field):
                    if one in seen:
                        raise clash(f"clients.{name}.{field} lists {one}, as clients.{seen[one]} does")
                    seen[one] = name
        return self


def require_keys(settings: Gateway | None, managers: Collection[str]) -> None:
    """Raise a fault for a client whose key managers are not all among these."""
    for name, client in (settings.clients if settings is not None else {}).items():
        unknown = [key for key in client.keys if key not in managers]
        if unknown:
            raise clash(f"gateway.clients.{name}.keys names {unknown[0]!r}; there are {', '.join(managers)}")
