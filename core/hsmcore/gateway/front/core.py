"""What a front knows of the process with the keys, and how a connection comes there."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Mapping
from typing import Any

from hsmcore.base.digests import MAX_TOKEN_BYTES, TokenDigester
from hsmcore.gateway.front.reports import FrontReports


class KnownClients:
    """The clients, by what shows who they are. `keys`: the key managers of each, by its name."""

    def __init__(self, generation: int, told: Mapping[str, Any]) -> None:
        """`told`: as Directory.told."""
        self.generation = generation
        self.keys: Mapping[str, list[str]] = told["keys"]
        self._names: Mapping[str, str] = told["names"]
        self._digester = TokenDigester(bytes.fromhex(told["key"]))
        self._tokens = {bytes.fromhex(digest): name for digest, name in told["tokens"].items()}

    def by_names(self, names: Iterable[str]) -> str | None:
        """The client whose certificate has these names. None also if they are several clients' names."""
        found = {self._names[name] for name in names if name in self._names}
        return found.pop() if len(found) == 1 else None

    def by_token(self, token: str) -> str | None:
        """The client that sends this token. The time that it takes says nothing about other tokens."""
        return self._tokens.get(self._digester.of(token[:MAX_TOKEN_BYTES].encode(errors="replace")))


class Core:
    """The process with the keys, as its fronts know it. Belongs to one event loop."""

    def __init__(self, reports: FrontReports) -> None:
        self.reports = reports
        self.clients = KnownClients(0, {"keys": {}, "names": {}, "key": "", "tokens": {}})
        self.state: Mapping[str, Any] = {}
        """As fronts.state_of."""

    def connection(self, face: str, client: str, peer: str) -> socket.socket:
        """Return a connection to the key managers, as this client. `face`: "wire" or "vault"."""
        own, theirs = socket.socketpair()
        self.reports.tell(face, self.clients.generation, client, peer, connection=theirs)
        own.setblocking(False)
        return own
