"""The clients that the configuration names: how each is known, and what it has used up of what it may."""

from __future__ import annotations

import asyncio
import sys
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from contextvars import Context
from typing import Any, Final, NamedTuple, Protocol

from hsmcore._native import Flow, MemoryBudget
from hsmcore.audit.record import caller_context, come_by, label
from hsmcore.base.traceparent import TraceParent
from hsmcore.config import GatewayClient
from hsmcore.config.gateway import GatewayToken
from hsmcore.config.secret import TokenDigests
from hsmcore.errors import ConfigFault, ConfigurationError, ModuleBusy
from hsmcore.gateway.intake import Crowd, FrameIntake
from hsmcore.gateway.replay import Sessions
from hsmcore.manager.policy.callers import CallerAccount, Rate

COME_BACK_MS: Final = 1000
"""When there may be room for one more connection, or a gateway after one that ends."""
_TOKENS: Final = {"token", "tokens"}
AT_ONCE: Final = 16
"""Requests that waited for room and go on in a turn of the event loop, at most."""


class CameBy(NamedTuple):
    """The way on which requests come. `pid`: the client's process, as the kernel says; 0: not known. `connection`: its
    number, among those of this gateway process; 0: none of the wire."""

    peer: str
    pid: int = 0
    connection: int = 0


class KnownClient:
    """A client and what it has used up of its rules. Belongs to one event loop."""

    def __init__(
        self, name: str, rules: GatewayClient, before: KnownClient | None = None, crowd: Crowd | None = None
    ) -> None:
        """`before`: the same client with other rules, of which the answers are kept. `crowd`: the other clients."""
        self.name, self.rules = name, rules
        self.connections = 0
        """Those that have said HELLO."""
        self.sessions: Sessions[Any] = Sessions(MemoryBudget(0)) if before is None else before.sessions
        """Its answers that may be asked for again. They have no memory until these rules hold."""
        self.intake: FrameIntake = FrameIntake(crowd or Crowd()) if before is None else before.intake
        """Takes the frames of its connections."""
        self.context = caller_context(name)
        """What runs in it is recorded as this client's."""
        self.rate = Rate.of(rules)

    def by(self, way: CameBy) -> Context:
        """Return a context for its requests that come by one way."""
        made = self.context.copy()
        made.run(come_by, {name: value for name, value in way._asdict().items() if value})
        return made

    def has_rules(self, rules: GatewayClient) -> bool:
        """Whether these are its rules, apart from its tokens."""
        return self.rules.model_dump(exclude=_TOKENS) == rules.model_dump(exclude=_TOKENS)


def within(context: Context, parent: TraceParent | None, **labels: str) -> Context:
    """Return a context like this one for one request: spans are children of `parent`, records have its trace id, and
    the labels."""
    made = context.copy()
    made.run(label, **labels)
    if parent is not None:
        made.run(_enter, parent)
    return made


def _enter(parent: TraceParent) -> None:
    label(trace_id=parent.trace_id.hex())
    if "opentelemetry.trace" not in sys.modules:
        return
    from opentelemetry.context import attach
    from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context

    trace_id, span_id = int.from_bytes(parent.trace_id, "big"), int.from_bytes(parent.span_id, "big")
    told = SpanContext(trace_id, span_id, is_remote=True, trace_flags=TraceFlags(parent.flags))
    attach(set_span_in_context(NonRecordingSpan(told)))


class Held(Protocol):
    """A request for which there is no room. `cost`: messages."""

    cost: int

    def go_on(self) -> None:
        """There is room for it: release it, and have it admitted."""


class OpenWork(Flow[Any], CallerAccount):
    """What a client has open at one key manager, on all its connections, its share of the turns there, and its requests
    for which there is no room: they wait, and are not refused. What another client does is none of its business."""

    def __init__(self, client: KnownClient, most: int) -> None:
        """`most`: requests that may be open."""
        Flow.__init__(self, client.rules.weight)
        CallerAccount.__init__(self, f"client {client.name!r}", client.rules, client.rate, most)
        self.client = client
        self.held: OrderedDict[Held, None] = OrderedDict()
        self._going_on = False

    def must_hold(self, count: int) -> bool:
        """Whether so many more must wait for room, behind others or first."""
        return count <= self.most and (bool(self.held) or self.open + count > self.most)

    def release(self, held: Held) -> None:
        """A request waits no more."""
        del self.held[held]
        self._go_on_later()

    def _go_on_later(self) -> None:
        if self.held and not self._going_on:
            self._going_on = True
            asyncio.get_running_loop().call_soon(self._go_on)

    def _go_on(self) -> None:
        self._going_on = False
        for _ in range(AT_ONCE):
            first = next(iter(self.held), None)
            if first is None or self.open + first.cost > self.most:
                return
            first.go_on()  # and its release plans the next turn

    def end(self, count: int = 1) -> None:
        self.open -= count
        if self.held:
            self._go_on_later()


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
        former = before or {}
        same = {name: one for name, one in former.items() if name in clients and one.has_rules(clients[name])}
        crowd = next((one.intake.crowd for one in former.values()), None) or Crowd()
        self.clients = {
            name: same.get(name) or KnownClient(name, rules, former.get(name), crowd) for name, rules in clients.items()
        }
        known = self.clients.values()
        self._uids = {uid: client for client in known for uid in client.rules.uid}
        self._gids = {gid: client for client in known for gid in client.rules.gid}
        self._names = {name: client for client in known for name in client.rules.names}
        self._digests = TokenDigests()
        self._tokens: dict[bytes, tuple[KnownClient, GatewayToken]] = {}
        for name, rules in clients.items():
            for one in rules.all_tokens:
                digest = self._digests.of_secret(one.token)
                if digest in self._tokens:
                    problem = f"is a token of client {self._tokens[digest][0].name!r} already"
                    raise ConfigurationError.of([ConfigFault(one.token.where, problem)])
                self._tokens[digest] = self.clients[name], one

    def told(self) -> dict[str, Any]:
        """Return what fronts need to know: of tokens digests, and the key that these were made with."""
        return {
            "key": self._digests.key.hex(),
            "tokens": {
                digest.hex(): (client.name, one.ends if one.expires else None, one.expires)
                for digest, (client, one) in self._tokens.items()
            },
            "names": {name: client.name for name, client in self._names.items()},
            "keys": {name: client.rules.keys for name, client in self.clients.items()},
        }

    def fronted(self, face: str) -> frozenset[str]:
        """Return the clients that a front may name: those that it can know."""
        known = (*self._names.values(), *(one for one, _ in self._tokens.values() if face == "vault"))
        return frozenset(client.name for client in known)

    def has(self, client: KnownClient) -> bool:
        """Whether a client is one of these, with the rules that it has."""
        return self.clients.get(client.name) is client

    def by_peer(self, uid: int, gid: int, others: Iterable[int] = ()) -> KnownClient | None:
        """The client at the other end of a Unix socket. Its user counts before its primary group, and that before its
        `others`; None also if these are several clients'."""
        return self._uids.get(uid) or self._gids.get(gid) or _the_only(map(self._gids.get, others))


def _the_only(clients: Iterable[KnownClient | None]) -> KnownClient | None:
    found = {client.name: client for client in clients if client is not None}
    return next(iter(found.values())) if len(found) == 1 else None
