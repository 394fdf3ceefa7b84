"""A batch through the levels: one crossing to each member; a message that fails continues as a request of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

from hsmcore._native import freeze
from hsmcore.base.receipt import Receipt
from hsmcore.errors import EmptyMessage, HsmError
from hsmcore.errors.batch import each, of_batch
from hsmcore.failover.breaker import WITHHELD
from hsmcore.failover.levels import EMERGENCY
from hsmcore.failover.member_state import FULL, MemberState
from hsmcore.failover.policy import Attempts
from hsmcore.failover.request import Request

if TYPE_CHECKING:
    from hsmcore.failover.endpoint import Endpoint
    from hsmcore.failover.router import Router


async def sign_many(
    router: Router,
    messages: Sequence[Any],
    timeout: float | None,
    return_exceptions: bool,
    extra: bytes | None = None,
    only: bytes | None = None,
) -> list[Any]:
    """Signatures, or errors with `return_exceptions`, in order. `extra` goes into the audit records. `only`: as
    Router.ask."""
    batch = each(freeze, messages)
    endpoint = router.pick()
    deadline = router.deadline(timeout)
    if endpoint is None or endpoint.level_name == EMERGENCY or router.bindings.any_elsewhere(batch, endpoint.key):
        return await _one_by_one(router, batch, timeout, return_exceptions, extra, only)
    parts = _parts(router, endpoint, batch)
    if only is not None and any(part.key != only for part in parts):
        return await _one_by_one(router, batch, timeout, return_exceptions, extra, only)
    await _ask(router, batch, parts, deadline, extra)
    results = [result for part in parts for result in part.results]
    again = {
        index: asyncio.ensure_future(
            router.resume(
                Request(batch[index], deadline, allow_other_key=False, extra=extra, attempts=Attempts(only=only)),
                part.endpoint,
                part.key,
                results[index],
            )
        )
        for part in parts
        for index in range(part.first, part.end)
        if type(results[index]) is not bytes
    }
    if not again:
        return results
    ended: BaseException | None = None
    try:
        answers = await asyncio.gather(*again.values(), return_exceptions=True)
    except asyncio.CancelledError as error:
        ended, answers = error, []
    for index, answer in zip(again, answers, strict=False):
        if isinstance(answer, Receipt):
            results[index] = answer.signature
        elif isinstance(answer, HsmError) and return_exceptions:
            results[index] = answer
        elif ended is None:
            ended = of_batch(answer, index)
    if ended is not None:
        for part in parts:
            part.throw_away(router, batch)
        _throw_away(router, batch, again)
        raise ended
    return results


def _throw_away(router: Router, batch: list[Any], tasks: Mapping[int, asyncio.Task[Receipt]]) -> None:
    """The caller gets none of these answers: bind the messages that they signed. A failed or cancelled request bound
    its message itself."""
    for index, task in tasks.items():
        if task.done() and not task.cancelled() and task.exception() is None:
            router.bind((batch[index],), task.result().public_key)


@dataclass(slots=True)
class _Part:
    """Messages from `first` up to `end`, with the member and the key that sign them."""

    endpoint: Endpoint
    first: int
    end: int
    key: bytes
    asked: asyncio.Future[list[Any]] | None = None
    results: list[Any] = field(default_factory=list)

    @classmethod
    def of(cls, endpoint: Endpoint, first: int, end: int) -> Self:
        return cls(endpoint, first, end, endpoint.key_version.public_key)

    def begin(self, router: Router, batch: list[Any], deadline: int, extra: bytes | None) -> None:
        """Submit to the member. Raises the request's own errors."""
        try:
            self.asked = router.begin_many(self.endpoint, batch[self.first : self.end], deadline, extra)
        except HsmError as error:
            self.fail(router, error)

    def take(self, router: Router) -> None:
        """Take the member's answer. Raises the request's own errors."""
        if self.asked is None:
            return
        error = self.asked.exception()
        if error is None:
            self.results = self.asked.result()
        elif isinstance(error, HsmError):
            self.fail(router, error)
        else:
            raise error

    def fail(self, router: Router, error: HsmError) -> None:
        if error.index is not None:
            of_batch(error, self.first + error.index)
        self.results = [error] * (self.end - self.first)
        if router.is_request_s_own(error):
            raise error

    def throw_away(self, router: Router, batch: list[Any]) -> None:
        """The caller gets no answer: bind every message that is signed, or may be."""
        if self.asked is None:
            return
        own = batch[self.first : self.end]
        if not self.asked.done() or self.asked.cancelled():
            self.asked.cancel()
            if self.endpoint.abandon(self.asked):
                router.bind(own, self.key)
            return
        error = self.asked.exception()
        results = self.asked.result() if error is None else [error] * len(own)
        for message, result in zip(own, results, strict=True):
            if not isinstance(result, HsmError) or isinstance(result, WITHHELD) or result.maybe_signed:
                router.bind((message,), self.key)


def _parts(router: Router, endpoint: Endpoint, batch: list[Any]) -> list[_Part]:
    members = router.levels.sharing
    if len(members) < 2 or len(batch) < WORTH_SHARING:
        return [_Part.of(endpoint, 0, len(batch))]
    _check(batch)
    parts, first = [], 0
    for member, count in share_out(len(batch), members):
        parts.append(_Part.of(member, first, first + count))
        first += count
    return parts


async def _ask(router: Router, batch: list[Any], parts: list[_Part], deadline: int, extra: bytes | None) -> None:
    """Sign each part. Raises the request's own errors."""
    # The part with the longest message first: if that message is too long, nothing is signed.
    if len(parts) > 1:
        longest = max(range(len(batch)), key=lambda index: len(batch[index]))
        parts = sorted(parts, key=lambda part: not part.first <= longest < part.end)
    try:
        for part in parts:
            part.begin(router, batch, deadline, extra)
        await asyncio.gather(*(part.asked for part in parts if part.asked is not None), return_exceptions=True)
        for part in parts:
            part.take(router)
    except BaseException:
        for part in parts:
            part.throw_away(router, batch)
        raise


def _check(batch: list[bytes]) -> None:
    """Refuse an empty message before anything is signed."""
    for index, message in enumerate(batch):
        if not message:
            raise of_batch(EmptyMessage(), index)


async def _one_by_one(
    router: Router,
    batch: list[Any],
    timeout: float | None,
    return_exceptions: bool,
    extra: bytes | None,
    only: bytes | None,
) -> list[Any]:
    """For messages that each need a decision: a bound key, or a unit of the emergency budget."""
    _check(batch)
    tasks = [asyncio.ensure_future(router.ask(one, timeout, extra, only=only)) for one in batch]
    try:
        answers = await asyncio.gather(*tasks, return_exceptions=return_exceptions)
    except BaseException as error:
        for index, task in enumerate(tasks):
            if task.done() and not task.cancelled() and task.exception() is error:
                of_batch(error, index)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        _throw_away(router, batch, dict(enumerate(tasks)))
        raise
    for answer in answers:
        if isinstance(answer, BaseException) and not isinstance(answer, HsmError):
            raise answer
    return [answer.signature if isinstance(answer, Receipt) else answer for answer in answers]


WORTH_SHARING: Final = 16
"""Messages; a smaller batch goes to one member in one crossing."""

M = TypeVar("M", bound=MemberState)


def share_out(count: int, members: Sequence[M]) -> list[tuple[M, int]]:
    """How many of `count` requests each member takes, so that afterwards load is in proportion to weight. The numbers
    add up to `count`; a member with a higher load takes none."""
    loads = {m: (m.engine.in_flight + m.engine.waiting, m.weight / FULL) for m in members}
    taking = sorted(members, key=lambda m: loads[m][0] / loads[m][1])
    while True:
        height = (count + sum(loads[m][0] for m in taking)) / sum(loads[m][1] for m in taking)
        if loads[taking[-1]][0] <= height * loads[taking[-1]][1] or len(taking) == 1:
            break
        taking.pop()
    wanted = [height * loads[m][1] - loads[m][0] for m in taking]
    shares = [int(want) for want in wanted]
    by_rest = sorted(range(len(taking)), key=lambda i: shares[i] - wanted[i])
    for index in by_rest[: count - sum(shares)]:
        shares[index] += 1
    return [(m, share) for m, share in zip(taking, shares, strict=True) if share]
