"""The clients that the configuration names: how each is known, and what it has used up of what it may."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from hsmcore.audit.record import caller_context
from hsmcore.config import GatewayClient
from hsmcore.config.secret import MAX_TOKEN_BYTES, TokenDigests
from hsmcore.errors import BadArgument, ConfigFault, ConfigurationError, ModuleBusy, QueueFull
from hsmcore.gateway.held import Line
from hsmcore.gateway.turns import Flow
from hsmcore.manager.policy.callers import Rate

COME_BACK_MS: Final = 1000
"""When there may be room for one more connection, or a gateway after one that ends."""
ROOM_MS: Final = 100
"""When to come back to a client's own limit of open requests: as long as few signatures take, many for a fast HSM. A
client that counts its credits never waits for it."""


class KnownClient:
    """A client and what it has used up of its rules. Belongs to one event loop."""

    def __init__(self, name: str, rules: GatewayClient) -> None:
        self.name, self.rules = name, rules
        self.context = caller_context(name)
        """What runs in it is recorded as this client's."""
        self._rate = None if rules.per_second is None else Rate(rules.per_second)

    def has_rules(self, rules: GatewayClient) -> bool:
        """Whether these are its rules, apart from its token."""
        return self.rules.model_dump(exclude={"token"}) == rules.model_dump(exclude={"token"})

    def spend(self, signatures: int) -> None:
        """Count signatures in the rate. Raises QueueFull, and counts none then."""
        if self._rate is not None and signatures and (wait := self._rate.take(signatures)):
            raise refused(f"client {self.name!r} has used up its {self._rate.per_second} signatures a second", wait)


class OpenWork:
    """What a client has open at one key manager: what another one does is none of its business."""

    def __init__(self, client: KnownClient, most: int) -> None:
        """`most`: requests that may be open."""
        self.client, self.most = client, most
        self.open = 0
        """Requests that are not answered, on all the client's connections; each message of a batch is one."""
        self.flow: Flow[Any] = Flow(client.rules.weight)
        self.line = Line(self.has_room)
        """Requests of its connections for which there is no room."""

    def has_room(self, count: int) -> bool:
        """Whether so many more may be open now."""
        return self.open + count <= self.most

    def begin(self, count: int = 1, signatures: int = 0) -> None:
        """Count requests as open, and these signatures in the client's rate. Raises QueueFull, BadArgument for more
        than can ever be open, and counts nothing then."""
        name = self.client.name
        if count > self.most:
            raise BadArgument(f"a batch of {count}; client {name!r} may have {self.most} requests open")
        if self.open + count > self.most:
            raise refused(f"client {name!r} has {self.open} requests open and may have {self.most}", ROOM_MS)
        self.client.spend(signatures)
        self.open += count

    def end(self, count: int = 1) -> None:
        """They are answered."""
        self.open -= count
        self.line.go_on()


def refused(text: str, retry_after_ms: int) -> QueueFull:
    """Return the refusal of a request for which there is no room now."""
    error = QueueFull(text, hint="Send the request again later.")
    error.retry_after_ms = retry_after_ms
    return error


def ending() -> ModuleBusy:
    """Return the refusal of a gateway that ends."""
    error = ModuleBusy("the gateway ends", hint="Connect again.")
    error.retry_after_ms = COME_BACK_MS
    return error


class Directory:
    """The clients, by what shows who they are. Each look-up returns None for a stranger."""

    def __init__(self, clients: Mapping[str, GatewayClient], before: Mapping[str, KnownClient] | None = None) -> None:
        """Fetch the tokens. `before`: those of another directory, of which the ones whose rules are the same are
        taken over. May block. Raises SecretUnavailable, and ConfigurationError for a token that is too short or
        belongs to two clients."""
        same = {name: one for name, one in (before or {}).items() if name in clients and one.has_rules(clients[name])}
        self.clients = {name: same.get(name) or KnownClient(name, rules) for name, rules in clients.items()}
        known = self.clients.values()
        self._uids = {uid: client for client in known for uid in client.rules.uid}
        self._gids = {gid: client for client in known for gid in client.rules.gid}
        self._names = {name: client for client in known for name in client.rules.names}
        self._digests = TokenDigests()
        self._tokens: dict[bytes, KnownClient] = {}
        for name, rules in clients.items():
            if rules.token is not None:
                digest = self._digests.of_secret(rules.token)
                if digest in self._tokens:
                    problem = f"is the token of client {self._tokens[digest].name!r}, too"
                    raise ConfigurationError.of([ConfigFault(rules.token.where, problem)])
                self._tokens[digest] = self.clients[name]

    def has(self, client: KnownClient) -> bool:
        """Whether a client is one of these, with the rules that it has."""
        return self.clients.get(client.name) is client

    def by_peer(self, uid: int, gid: int) -> KnownClient | None:
        """The client at the other end of a Unix socket. Its user counts before its group."""
        return self._uids.get(uid) or self._gids.get(gid)

    def by_names(self, names: Iterable[str]) -> KnownClient | None:
        """The client whose certificate has these names. None also if they are several clients' names."""
        found = {client.name: client for name in names if (client := self._names.get(name)) is not None}
        return next(iter(found.values())) if len(found) == 1 else None

    def by_token(self, token: str) -> KnownClient | None:
        """The client that sends this token. The time that it takes says nothing about other tokens."""
        return self._tokens.get(self._digests.of(token[:MAX_TOKEN_BYTES].encode(errors="replace")))
