"""What a front knows of the process with the keys, and how a connection comes there."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

from hsmcore.base.digests import MAX_TOKEN_BYTES, TokenDigester
from hsmcore.base.listening.rates import AddressBuckets
from hsmcore.gateway.front.reports import FrontReports

HANDSHAKES: Final = 20
"""Of TLS, a second, by one address, that show no client: each takes more than a millisecond of the event loop."""
HANDSHAKES_AT_ONCE: Final = 50
UNKNOWN: Final = 200
"""Requests over HTTP that no client sends, a second, by one address, and at once."""


class KnownToken(NamedTuple):
    """Whose a token is, and its end in seconds since 1970, None: never, also as the configuration has it."""

    client: str
    ends: float | None
    expires: str | None


class KnownClients:
    """The clients, by what shows who they are. `keys`: the key managers of each, by its name."""

    def __init__(self, generation: int, told: Mapping[str, Any]) -> None:
        """`told`: as Directory.told."""
        self.generation = generation
        self.keys: Mapping[str, list[str]] = told["keys"]
        self._names: Mapping[str, str] = told["names"]
        self._digester = TokenDigester(bytes.fromhex(told["key"]))
        self._tokens = {bytes.fromhex(digest): KnownToken(*said) for digest, said in told["tokens"].items()}

    def by_names(self, names: Iterable[str]) -> str | None:
        """The client whose certificate has these names. None also if they are several clients' names."""
        found = {self._names[name] for name in names if name in self._names}
        return found.pop() if len(found) == 1 else None

    def by_token(self, token: str) -> str | None:
        """The client that sends this token, unless the token has ended. The time that it takes says nothing about other
        tokens."""
        found = self._known(token)
        return found.client if found is not None and (found.ends is None or time.time() < found.ends) else None

    def refusal_of(self, token: str) -> str:
        """Return why there is no client by a token: for records."""
        found = self._known(token)
        return "unknown token" if found is None else f"the token of {found.client!r} expired at {found.expires}"

    def _known(self, token: str) -> KnownToken | None:
        return self._tokens.get(self._digester.of(token[:MAX_TOKEN_BYTES].encode(errors="replace")))


class Core:
    """The process with the keys, as its fronts know it. Belongs to one event loop."""

    def __init__(self, reports: FrontReports) -> None:
        self.reports = reports
        self.clients = KnownClients(0, {"keys": {}, "names": {}, "key": "", "tokens": {}})
        self.state: Mapping[str, Any] = {}
        """As fronts.state_of."""
        self.handshakes = AddressBuckets(HANDSHAKES_AT_ONCE, 1 / HANDSHAKES)
        """What each address may begin here before its clients have shown who they are."""
        self.unknown = AddressBuckets(UNKNOWN, 1 / UNKNOWN)
        """Requests over HTTP of an address that no client sends."""

    def connection(self, face: str, client: str, peer: str, number: int = 0) -> socket.socket:
        """Return a connection to the key managers, as this client. `face`: "wire" or "vault". `number`: by which it is
        told later that it is no client's any more."""
        own, theirs = socket.socketpair()
        self.reports.tell(face, self.clients.generation, client, peer, number, connection=theirs)
        own.setblocking(False)
        return own
