"""The URL of a fleet's database: what it may say, and what of it people are shown. Its parts never reach an error: a
password that is not percent-encoded may stand in any of them."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

import psycopg
from psycopg.conninfo import conninfo_to_dict

from hsmcore.base.listening.sockets import is_loopback
from hsmcore.state.errors import StoreError
from hsmcore.state.seal import SealSecret

ENCRYPTED: Final = ("require", "verify-ca", "verify-full")
"""Values of sslmode with which a server elsewhere may be asked."""
_URL_HINT: Final = (
    "Write postgresql://user:password@host:port/database, with each special character of the password percent-encoded."
)
_TLS_HINT: Final = "Add ?sslmode=verify-full&sslrootcert=… to the URL; sslmode=require does not check who answers."
_HOST: Final = re.compile(r"[A-Za-z0-9._-]+|[0-9A-Fa-f:.%]+|[/@][^\s?#]*")
_PORT: Final = re.compile(r"\d{0,5}")
_DEFAULT_PORT: Final = "5432"
_ELSEWHERE: Final = ("PGHOSTADDR", "PGSERVICE")
"""Variables that libpq would believe more than the host of the URL, or take an address from."""
_DATABASE: Final = re.compile(r"[^\s@:/?#]+")
_DEFAULTS: Final[Mapping[str, Any]] = {
    "connect_timeout": 5,
    "application_name": "hsmcore",
    # A server that has gone without a word is noticed within seconds, also while nothing is sent.
    "tcp_user_timeout": 10_000,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
}
_FIXED: Final[Mapping[str, Any]] = {"client_encoding": "utf8"}


class FleetUrl(Protocol):
    """Where the URL stands: hsmcore.config.FleetStore."""

    @property
    def url(self) -> SealSecret: ...


class DatabaseServer(Protocol):
    """The database of a fleet: hsmcore.config.Fleet."""

    @property
    def store(self) -> FleetUrl: ...
    @property
    def name(self) -> str: ...
    @property
    def manager(self) -> str | None:
        """The key manager, where there are several: each has its own schema."""

    @property
    def single_node(self) -> bool: ...
    @property
    def ttl_ms(self) -> int: ...


@dataclass(frozen=True, slots=True)
class ServerUrl:
    """A URL that may be used."""

    where: str
    """Hosts with their ports, and the database."""
    is_here: bool
    """Whether each server is on this host."""
    sslmode: str
    given: Mapping[str, Any]

    def __repr__(self) -> str:
        return f"ServerUrl({self.where})"

    def options(self) -> dict[str, Any]:
        """Return the arguments of psycopg's `connect`."""
        # With several servers, use the one that is not a standby; also to read, since a standby may lag behind.
        several = {"target_session_attrs": "read-write"} if "," in str(self.given["host"]) else {}
        return {**_DEFAULTS, **several, **self.given, **_FIXED}


def parse(url: bytes | bytearray, shown: str) -> ServerUrl:
    """Return a URL's parts. Raises StoreError, also for a server elsewhere without TLS."""
    given = _parts(url)
    if given is None:
        raise StoreError(f"{shown}: its URL cannot be understood", hint=_URL_HINT)
    for name in _ELSEWHERE:
        if name in os.environ:
            raise StoreError(f"{shown}: {name} is set, and would lead to another server", hint="Unset it.")
    hosts = given["host"].split(",")
    addresses = str(given.get("hostaddr", "")).split(",") if "hostaddr" in given else []
    is_here = all(map(_is_here, [*hosts, *addresses]))
    where = ",".join(f"{host}:{port}" for host, port in zip(hosts, ports(given), strict=True)) + f"/{given['dbname']}"
    sslmode = str(given.get("sslmode", ""))
    if not is_here and sslmode not in ENCRYPTED:
        raise StoreError(f"{shown}: the URL of {where} does not ask for TLS", hint=_TLS_HINT)
    return ServerUrl(where, is_here, sslmode, given)


def resolved(secret: SealSecret, shown: str) -> ServerUrl:
    """Fetch a URL, and parse it. Blocks. Raises as `parse`, and SecretUnavailable."""
    url = secret.resolve()
    try:
        return parse(url, shown)
    finally:
        url[:] = bytes(len(url))


def _parts(url: bytes | bytearray) -> dict[str, Any] | None:
    try:
        text = url.decode()
        if not text.startswith(("postgresql://", "postgres://")):
            return None
        given: dict[str, Any] = dict(conninfo_to_dict(text))
    except (psycopg.Error, ValueError):
        return None
    known = (
        # A service would bring a host and a sslmode from another place.
        "service" not in given
        and all(_HOST.fullmatch(host) for host in str(given.get("host", "")).split(","))
        and len(ports(given)) == len(given["host"].split(","))
        and all(map(_PORT.fullmatch, ports(given)))
        and _DATABASE.fullmatch(str(given.get("dbname", "")))
    )
    return given if known else None


def ports(given: Mapping[str, Any]) -> list[str]:
    """Return the port of each host: one for all, or one for each, where "" is the default one."""
    ports = [port or _DEFAULT_PORT for port in str(given.get("port", "")).split(",")]
    return ports * len(str(given["host"]).split(",")) if len(ports) == 1 else ports


def _is_here(host: str) -> bool:
    return host.startswith(("/", "@")) or is_loopback(host)
