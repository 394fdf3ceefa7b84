"""A request of a client's connection: how it begins at a key manager, and how it is answered.

`begin_…` are for Job.start, `ANSWER_…` for Job.answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Final, Protocol

from hsmcore._native import BatchedSignature
from hsmcore.base.receipt import Receipt
from hsmcore.config.policy import PREHASHED
from hsmcore.errors import HsmError
from hsmcore.gateway.admission import ClientKey
from hsmcore.gateway.jobs import OUTSIDE, Job, outcome_of
from hsmcore.gateway.replay import ReplaySession
from hsmcore.gateway.wire import batched
from hsmcore.gateway.wire import messages as wire


class Clock(Protocol):
    """What an answer needs of the server."""

    now: float


class Peer(Protocol):
    """What an answer needs of a connection."""

    @property
    def server(self) -> Clock:
        """Its server."""

    @property
    def lives(self) -> bool:
        """Whether an answer can still be sent, as far as is known."""

    def send(self, data: bytes, *, last: bool = False) -> None:
        """Send a frame; at once if it is the `last` one."""


class ServedRequest(Job):
    """A job of a connection. It goes on when the connection ends; its answer goes to each one that asked and lives."""

    __slots__ = ("connection", "counter", "number", "others", "session")

    connection: Peer
    counter: ClientKey
    number: int
    others: tuple[Peer, ...]
    """Which have asked for the same."""
    session: ReplaySession[ServedRequest]

    def asked_on(self, connection: Peer) -> None:
        """It was asked for again. Nobody knows which connection is the client's latest: what was sent on one that has
        broken since may be read after what was sent again on the next."""
        lives = (one for one in (self.connection, *self.others) if one is not connection and one.lives)
        self.connection, self.others = connection, tuple(lives)

    def answered(self, asked: asyncio.Future[Any]) -> None:
        """The member of `begun` has answered, or the client withdrew the request."""
        queue = self.counter.queue
        if asked.cancelled():
            self.counter.manager.abandon(asked, self.what.message)
        queue.end(self, outcome_of(asked))

    def placed(self, place: asyncio.Future[Any]) -> None:
        """The batch that the message was put into has ended, or its deadline has passed."""
        self.counter.queue.end(self, outcome_of(place))


def refusal_of(error: HsmError) -> wire.Refusal:
    """Return an error as it is sent."""
    maybe, after = error.maybe_signed, error.retry_after_ms
    return wire.Refusal(error.retryable, maybe, after, error.status, error.error_class, str(error))


def _run(request: ServedRequest, work: Coroutine[Any, Any, Any]) -> None:
    request.counter.queue.run(request, work)


def begin_sign(request: ServedRequest, left: float) -> None:
    """Have a message signed: without a task, if nothing must be awaited first."""
    what: wire.Sign = request.what
    counter, kind = request.counter, what.kind or None
    desk, manager = counter.desk, counter.manager
    if kind == PREHASHED:
        counter.require_listed(PREHASHED)
        _run(request, desk.sign_prehashed(counter, what.message, left, desk.public_key(counter, what.version)))
        return
    counter.require_kind(what.message, kind)
    only = desk.public_key(counter, what.version)
    asked = request.account.client.context.run(manager.submit, what.message, left, kind, what.position, only)
    if asked is not None:
        request.running = asked
        asked.add_done_callback(request.answered, context=OUTSIDE)
        return
    key_id = desk.key_id(counter, what.version)
    _run(
        request,
        manager.sign_with_receipt(what.message, left, kind=kind, position=what.position, key_id=key_id),
    )


def begin_sign_many(request: ServedRequest, left: float) -> None:
    """Have several messages signed."""
    what: wire.SignMany = request.what
    counter = request.counter
    key_id = counter.desk.key_id(counter, what.version)
    _run(request, counter.desk.sign_batch(counter, what.messages, what.kind or None, left, key_id))


def begin_sign_batched(request: ServedRequest, left: float) -> None:
    """Put a message into the batch that is open, with those of other clients."""
    what: batched.SignBatched = request.what
    counter, kind = request.counter, what.kind or None
    counter.require_kind(what.message, kind)
    placed = request.account.client.context.run(counter.manager.submit_batched, what.message, left, kind)
    if placed is None:
        _run(request, counter.manager.sign_batched(what.message, left, kind))
        return
    request.running = placed
    placed.add_done_callback(request.placed, context=OUTSIDE)


def begin_verify(request: ServedRequest, _left: float) -> None:
    """Have a signature verified."""
    what: wire.Verify = request.what
    _run(request, request.counter.manager.verify(what.message, what.signature, what.key_id or None))


def begin_manage(request: ServedRequest, _left: float) -> None:
    """Carry out an operation on a key."""
    what: wire.Manage = request.what
    _run(request, request.counter.desk.manage_key(request.counter, what.operation, what.key_id))


def _signed(request: ServedRequest, outcome: Receipt) -> bytes:
    number = request.counter.desk.number(request.counter.name, outcome.public_key, outcome.key_id)
    level = outcome.level if outcome.level in wire.LEVELS else ""
    return wire.signed(request.number, wire.SignedMessage(number, level, outcome.audit_seq, outcome.signature))


def _signed_many(request: ServedRequest, outcome: tuple[int, list[bytes | HsmError]]) -> bytes:
    version, outcomes = outcome
    shown = [refusal_of(one) if isinstance(one, HsmError) else one for one in outcomes]
    return wire.signed_many(request.number, version, shown)


def _batched(request: ServedRequest, outcome: BatchedSignature) -> bytes:
    found = batched.Batched(outcome.audit_seq, outcome.key_id, outcome.public_key, outcome.proof)
    return batched.batched(request.number, found)


def _verified(request: ServedRequest, outcome: bool) -> bytes:
    return wire.verified(request.number, outcome)


def _done(request: ServedRequest, outcome: str) -> bytes:
    return wire.done(request.number, outcome)


def _answer(
    request: ServedRequest, outcome: Any, made: Callable[[ServedRequest, Any], bytes], *, remembered: bool = True
) -> None:
    """Answer a request: with an error, or with what `made` makes of the result."""
    connection, session = request.connection, request.session
    if isinstance(outcome, HsmError):
        error, data = outcome, wire.error(request.number, refusal_of(outcome))
    else:
        error, data = None, made(request, outcome)
    request.counter.desk.count(request.account.client, error)
    session.close(request.number, data if remembered else None, connection.server.now)
    for one in (connection, *request.others):
        one.send(data, last=not session.open)


ANSWER_SIGN: Final = partial(_answer, made=_signed)
ANSWER_SIGN_MANY: Final = partial(_answer, made=_signed_many)
ANSWER_SIGN_BATCHED: Final = partial(_answer, made=_batched)
ANSWER_VERIFY: Final = partial(_answer, made=_verified, remembered=False)
ANSWER_MANAGE: Final = partial(_answer, made=_done)
