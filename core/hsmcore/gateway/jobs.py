"""A client's request from its admission to its answer: it waits for its turn, begins, and is answered once."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Iterable
from contextvars import Context, copy_context
from functools import cached_property
from time import monotonic
from typing import Any, Final

from hsmcore._native import AnswerQueue, FairQueue, RequestOfClient, answer_signs
from hsmcore.audit.record import come_as
from hsmcore.base.log import get_logger
from hsmcore.base.receipt import Receipt
from hsmcore.errors import DeadlineExceeded, HsmError, InternalError, RequestCancelled
from hsmcore.gateway.clients import OpenWork
from hsmcore.gateway.wire.messages import LEVEL_NUMBERS, NO_RECORD

SWEEP_SECONDS: Final = 0.05
"""Seconds between two looks whether a request that waits for its turn has met its deadline."""


class Job(RequestOfClient):
    """A request, or messages of one. `start(job, seconds)` begins it, with what is left of its timeout, and has it
    `follow` what was begun, or wait for the key manager's answer itself."""

    __slots__ = ()

    counts = True
    """Whether its messages count as open: those of a slice are counted with its batch."""

    def __init__(
        self, queue: Queue, account: OpenWork, start: Callable[[Any, float], None], timeout: float, cost: int = 1
    ) -> None:
        """`timeout` in seconds. `cost`: messages. The account counts them as open already."""
        self.queue, self.account, self.start, self.timeout, self.cost = queue, account, start, timeout, cost
        self.context = account.client.context
        """What it begins in: its records are its client's, and belong to its trace."""
        self.takes_turn = True
        """Whether it begins in its turn: it keeps a key manager busy by itself."""
        # `running`: what was begun. `until`: deadline of one that waits for its turn, as time.monotonic(). `number`:
        # that of its client; 0: it has none.

    def answer(self, outcome: Any) -> None:
        """Take the result, or an HsmError. Is called once."""
        raise NotImplementedError

    def split(self, count: int) -> Job:
        """Take so many messages off, as a job of their own. Only jobs of more than one message are split."""
        raise NotImplementedError

    def run(self, work: Coroutine[Any, Any, Any]) -> None:
        """Have a coroutine carry it out, under its client's name."""
        context = self.context.copy()
        if self.number:
            context.run(come_as, self.number)
        self.follow(asyncio.get_running_loop().create_task(work, context=context))

    def follow(self, future: asyncio.Future[Any]) -> None:
        """End with this future. Cancelling the job cancels it."""
        self.running = future
        future.add_done_callback(self.settled, context=OUTSIDE)

    def settled(self, future: asyncio.Future[Any]) -> None:
        """What was begun has ended."""
        self.queue.end(self, outcome_of(future))


class Queue:
    """Lets admitted jobs for one key manager begin, each in its turn. Belongs to one event loop."""

    def __init__(self, most: int, busy: int, alone: int = 0) -> None:
        """`most`: messages that are at the key manager at a time; `busy`: that keep it busy; `alone`: of a client that
        is alone; see FairQueue."""
        self.turns = FairQueue[Job](most, alone, busy)
        self._ready: deque[tuple[Job, int]] = deque()
        self._starting = False
        self._sweeping: asyncio.TimerHandle | None = None
        self._accounts: set[OpenWork] = set()
        """Those that have something waiting."""

    @cached_property
    def answers(self) -> AnswerQueue:
        """Where jobs wait for answers of the key manager."""
        return AnswerQueue(asyncio.get_running_loop(), self._answered, OUTSIDE)

    def _answered(self, jobs: list[Job]) -> None:
        rest, begun = answer_signs(jobs, self.turns, LEVEL_NUMBERS, NO_RECORD)
        for job in rest:
            job.running, outcome = None, job.outcome
            if type(outcome) is Receipt:
                self.end(job, outcome)
            else:
                job.settled(job)
        if begun:
            self._start(begun)

    def go_on(self, begun: Iterable[Job], waits: Iterable[Job]) -> None:
        """Let jobs of one message begin that have their turns, and others wait for theirs; they have asked for it."""
        for job in waits:
            self._wait(job)
        for job in begun:
            self._run(job)

    def enter(self, job: Job) -> None:
        """Let a job that is admitted begin in its turn, as a whole or in pieces."""
        account = job.account
        if not job.takes_turn or (job.cost == 1 and self.turns.begins(account)):
            self._run(job)
            return
        self._wait(job)

    def _wait(self, job: Job) -> None:
        account = job.account
        begun = self.turns.take(account, job, job.cost)
        job.until = monotonic() + job.timeout
        self._start(begun)
        if account.waiting:
            self._accounts.add(account)
            if self._sweeping is None:
                self._sweep_later()

    def end(self, job: Job, outcome: Any) -> None:
        """Answer a job that has begun. Idempotent."""
        if job.ended:
            return
        job.ended = True
        if job.counts:
            job.account.end(job.cost)
        begun = self.turns.free(job.account, job.cost) if job.takes_turn else []
        job.answer(outcome)
        if begun:
            self._start(begun)

    def cancel(self, job: Job) -> None:
        """Withdraw a job. One that has begun is answered when it has ended; a signature may exist then."""
        if job.running is not None:
            job.running.cancel()
        elif job in job.account.waiting:
            self._withdraw(job, RequestCancelled("withdrawn before its turn", maybe_signed=False))

    def _withdraw(self, job: Job, error: HsmError) -> None:
        begun = self.turns.withdraw(job.account, job)
        job.ended = True
        if job.counts:
            job.account.end(job.cost)
        job.answer(error)
        self._start(begun)

    def _start(self, begun: list[tuple[Job, int]]) -> None:
        """Without recursion: a job may end as soon as it begins, and lets others begin."""
        self._ready.extend(begun)
        if self._starting:
            return
        self._starting = True
        try:
            while self._ready:
                job, count = self._ready.popleft()
                self._run(job if count == job.cost else job.split(count))
        finally:
            self._starting = False

    def _run(self, job: Job) -> None:
        left = job.timeout if not job.until else job.until - monotonic()
        if left <= 0:
            self.end(job, late())
            return
        try:
            job.start(job, left)
        except HsmError as error:
            self.end(job, error)
        except Exception as error:  # noqa: BLE001  # whatever it is, the client has its answer
            self.end(job, unexpected(error))

    def _sweep_later(self) -> None:
        self._sweeping = asyncio.get_running_loop().call_later(SWEEP_SECONDS, self._sweep)

    def _sweep(self) -> None:
        self._sweeping = None
        now = monotonic()
        for account in [account for account in self._accounts if account.waiting]:
            for job in [job for job in account.waiting if job.until <= now]:
                self._withdraw(job, late())
        self._accounts = {account for account in self._accounts if account.waiting}
        if self._accounts:
            self._sweep_later()

    def close(self) -> None:
        """Answer what waits: the key managers are about to close."""
        for account in tuple(self._accounts):
            for job in tuple(account.waiting):
                self._withdraw(job, RequestCancelled("the gateway ended before its turn", maybe_signed=False))
        if self._sweeping is not None:
            self._sweeping.cancel()
            self._sweeping = None


OUTSIDE: Final[Context] = copy_context()
"""The context of callbacks: nobody's."""


def outcome_of(future: asyncio.Future[Any]) -> Any:
    """Return the result of a future that is done, or its error as an HsmError."""
    if future.cancelled():
        return RequestCancelled("withdrawn")
    error = future.exception()
    if error is None:
        return future.result()
    if isinstance(error, HsmError):
        return error
    return unexpected(error)


def unexpected(error: BaseException) -> InternalError:
    """Log an error that is none of a request. Returns the one that its client gets."""
    get_logger().error("a request failed with an error that is none of a request", exc_info=error)
    return InternalError(f"the gateway failed with {type(error).__name__}", maybe_signed=True)


def late() -> DeadlineExceeded:
    """Return the error of a request that waited for too long."""
    return DeadlineExceeded("the deadline passed before it was the request's turn", maybe_signed=False)
