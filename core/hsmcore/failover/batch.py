"""A batch through the levels: it crosses to each member in one piece, and what fails goes on by itself."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from time import monotonic_ns
from typing import TYPE_CHECKING, Any

from hsmcore.errors import EmptyMessage, HsmError, InvalidMessageType
from hsmcore.failover.levels import EMERGENCY
from hsmcore.failover.request import Answer, Maker, frozen
from hsmcore.failover.sharing import WORTH_SHARING, share_out

if TYPE_CHECKING:
    from hsmcore.failover.router import Router
    from hsmcore.failover.seat import Seat


async def sign_many(
    router: Router,
    messages: Sequence[Any],
    timeout: float | None,
    return_exceptions: bool,
    extra: bytes | None = None,
) -> tuple[list[Any], list[Maker]]:
    """Signatures or errors, and of each who made it, or should have. `extra` goes into the audit records."""
    batch = [message if type(message) is bytes else frozen(message) for message in messages]
    router.check()
    seat = router.levels.pick()
    begun = monotonic_ns()
    if seat is None or seat.level_name == EMERGENCY or router.has_pledges:
        return await _one_by_one(router, seat, batch, timeout, return_exceptions, extra)
    results: list[Any] = []
    seats: list[Seat] = []
    parts = _parts(router, seat, batch)
    for part, own in zip(parts, await _signed(router, batch, parts, timeout, extra), strict=True):
        results += own
        seats += [part.seat] * len(own)
    makers = [_maker(seat) for seat in seats]
    failed = [index for index, result in enumerate(results) if type(result) is not bytes]
    if failed:
        again = [router.resume(batch[index], begun, timeout, seats[index], results[index], extra) for index in failed]
        for index, done in zip(failed, await asyncio.gather(*again, return_exceptions=True), strict=True):
            if isinstance(done, Answer):
                results[index], makers[index] = done.signature, done.maker
            elif isinstance(done, HsmError) and return_exceptions:
                results[index] = done
            elif isinstance(done, BaseException):
                raise done
    return results, makers


@dataclass(frozen=True, slots=True)
class _Part:
    """Messages from `first` up to `end`, and who signs them."""

    seat: Seat
    first: int
    end: int


def _parts(router: Router, seat: Seat, batch: list[Any]) -> list[_Part]:
    members = router.levels.sharing
    if len(members) < 2 or len(batch) < WORTH_SHARING:
        return [_Part(seat, 0, len(batch))]
    _check(batch)
    parts, first = [], 0
    for member, count in share_out(len(batch), members):
        parts.append(_Part(member, first, first + count))
        first += count
    return parts


async def _signed(
    router: Router, batch: list[Any], parts: list[_Part], timeout: float | None, extra: bytes | None
) -> list[list[Any]]:
    """The results of each part. Raises the request's own errors."""
    started: dict[int, asyncio.Future[list[Any]] | HsmError] = {}
    # The one with the longest message first: if that one is refused as too long, nothing is signed.
    longest = max(range(len(batch)), key=lambda index: _length(batch[index]), default=0)
    for index in sorted(range(len(parts)), key=lambda i: not parts[i].first <= longest < parts[i].end):
        part = parts[index]
        try:
            started[index] = router.begin_many(part.seat, batch[part.first : part.end], timeout, extra)
        except HsmError as error:
            if router.is_request_s_own(error):
                raise
            started[index] = error
    waiting = [_result(router, part, started[index]) for index, part in enumerate(parts)]
    return list(await asyncio.gather(*waiting))


async def _result(router: Router, part: _Part, future: asyncio.Future[list[Any]] | HsmError) -> list[Any]:
    try:
        if isinstance(future, HsmError):
            raise future
        return await router.end_many(part.seat, future)
    except HsmError as error:
        if router.is_request_s_own(error):
            raise
        return [error] * (part.end - part.first)


def _length(message: Any) -> int:
    return len(message) if isinstance(message, bytes) else 0


def _check(batch: list[Any]) -> None:
    """Before anything is signed."""
    for message in batch:
        if not isinstance(message, bytes):
            raise InvalidMessageType(f"a message must be bytes-like, not {type(message).__name__}")
        if not message:
            raise EmptyMessage("a message must have at least one byte")


async def _one_by_one(
    router: Router,
    seat: Seat | None,
    batch: list[Any],
    timeout: float | None,
    return_exceptions: bool,
    extra: bytes | None,
) -> tuple[list[Any], list[Maker]]:
    """Where each message has to be looked at: whether it is bound to a key, or may have a unit of the budget."""
    _check(batch)
    nobody = _maker(seat) if seat is not None else Maker("", "", router.version)
    tasks = [asyncio.ensure_future(router.sign_traced(message, timeout, extra=extra)) for message in batch]
    try:
        answers = await asyncio.gather(*tasks, return_exceptions=return_exceptions)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise
    for answer in answers:
        if isinstance(answer, BaseException) and not isinstance(answer, HsmError):
            raise answer
    return (
        [answer.signature if isinstance(answer, Answer) else answer for answer in answers],
        [answer.maker if isinstance(answer, Answer) else nobody for answer in answers],
    )


def _maker(seat: Seat) -> Maker:
    return Maker(seat.name, seat.level_name, seat.key_version)
