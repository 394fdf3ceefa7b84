"""As mutants.py: faults of the gateway and of its clients that the simulation must see."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from hsmcore.gateway.chunks import ChargedBatch
from hsmcore.gateway.client.outbox import RequestOutbox
from hsmcore.gateway.client.request import ClientRequest, lost
from hsmcore.gateway.clients import OpenWork
from hsmcore.gateway.connection import GatewayConnection
from hsmcore.gateway.jobs import Queue
from hsmcore.gateway.replay import ReplaySession, Sessions
from hsmcore.gateway.wire_requests import ServedRequest


def _crossed() -> None:
    """An answer goes to another client's connection that has a request of the same number."""
    answer = ServedRequest.answer

    def other(self: ServedRequest, outcome: Any) -> None:
        for one in self.connection.server.connections:  # type: ignore[attr-defined]
            session = one.session
            if session is not None and session is not self.session and self.number in session.open:
                self.connection = one
                break
        answer(self, outcome)

    ServedRequest.answer = other


def _moved() -> None:
    """A request that is sent again names the key that is current by then."""
    send_on = ClientRequest.send_on

    def current(self: ClientRequest, session: Any, now: float) -> bytes:
        if self.sent and self.asked_id is None:
            self.key = session.current
            self.number += 1_000_000
        return send_on(self, session, now)

    ClientRequest.send_on = current


def _slot_lost() -> None:
    """Room of a request that ends after its connection is not given back."""
    answer = ServedRequest.answer

    def keep(self: ServedRequest, outcome: Any) -> None:
        if not self.connection.lives:
            self.account.open += self.cost
        answer(self, outcome)

    ServedRequest.answer = keep


def _forgetful() -> None:
    """Each connection remembers answers of its own: what comes again is signed again."""
    enter = Sessions.enter

    def anew(self: Sessions[Any], nonce: bytes) -> ReplaySession[Any]:
        return enter(self, nonce + len(self._sessions).to_bytes(4))

    Sessions.enter = anew


def _answer_lost() -> None:
    """An answer goes only to the connection that asked first."""
    ServedRequest.asked_on = lambda _self, _connection: None


def _deaf() -> None:
    """What a caller leaves is not withdrawn."""
    RequestOutbox.withdraw = lambda _self, _request: None


def _thrown_away() -> None:
    """What is signed of a batch whose client leaves is bound to no key."""
    ChargedBatch._throw_away = lambda _self, _at, _count: None


def _first_come() -> None:
    """Requests begin in the order in which they come, however many one client has."""
    OpenWork.must_hold = lambda _self, _count: False
    begin = OpenWork.begin

    def all_of_it(self: OpenWork, count: int, *, signs: bool = False) -> None:
        most, self.most = self.most, 1 << 30
        begin(self, count, signs=signs)
        self.most = most

    OpenWork.begin = all_of_it

    def at_once(self: Queue, job: Any) -> None:
        self.turns.under_way += job.cost if job.takes_turn else 0
        self._run(job)

    Queue.enter = at_once


def _not_held() -> None:
    """What is more than may be open is refused."""
    OpenWork.must_hold = lambda _self, _count: False


def _held_for_ever() -> None:
    """Room that is given back lets nothing go on."""
    OpenWork._go_on_later = lambda _self: None


def _let_in() -> None:
    """A user that is no client is served as the first client."""
    from hsmcore.gateway.clients import Directory

    by_peer = Directory.by_peer
    Directory.by_peer = lambda self, uid, gid: by_peer(self, uid, gid) or next(iter(self.clients.values()))


def _link_kept() -> None:
    """A connection that is lost counts for ever."""
    lost = GatewayConnection.connection_lost

    def keep(self: GatewayConnection, error: Exception | None) -> None:
        if self.client is not None and error is not None:
            self.client.connections += 1
        lost(self, error)

    GatewayConnection.connection_lost = keep


def _not_sent_again() -> None:
    """What was open on a connection that breaks is not sent again."""

    def left(self: RequestOutbox, channel: Any) -> None:
        requests, channel.open = channel.open, {}
        for request in requests.values():
            self._out -= request.count
            if not request.future.done():
                request.future.set_exception(lost(request, "the connection broke"))

    RequestOutbox.left = left


def _not_drained() -> None:
    """An order to drain a member is not followed."""
    from hsmcore.failover.levels import Levels

    Levels.drain = lambda _self, _endpoint, _drained, _reason, _now: None


MUTANTS: Final[dict[str, tuple[Callable[[], None], str]]] = {
    "answers-crossed": (_crossed, "genuine"),
    "moved": (_moved, "one_key"),
    "slot-lost": (_slot_lost, "nothing_left"),
    "forgetful": (_forgetful, "signs_once"),
    "answer-lost": (_answer_lost, "answered_on_the_wire"),
    "not-withdrawn": (_deaf, "withdrawn"),
    "thrown-away": (_thrown_away, "one_key"),
    "first-come": (_first_come, "within_share"),
    "not-held": (_not_held, "within_share"),
    "held-for-ever": (_held_for_ever, "costs_nothing"),
    "let-in": (_let_in, "strangers"),
    "link-kept": (_link_kept, "nothing_left"),
    "not-drained": (_not_drained, "obeyed"),
    "not-sent-again": (_not_sent_again, "costs_nothing"),
}
