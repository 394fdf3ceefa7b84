"""A batch through the levels: it crosses to a member in one piece, and what fails goes on by itself."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from time import monotonic_ns
from typing import TYPE_CHECKING, Any

from hsmcore.errors import EmptyMessage, HsmError, InvalidMessageType
from hsmcore.failover.levels import EMERGENCY
from hsmcore.failover.request import Answer, Maker, frozen

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
    try:
        results = await router.submit_many(seat, batch, timeout, extra)
    except HsmError as error:
        if router.is_request_s_own(error):
            raise
        results = [error] * len(batch)
    makers = [_maker(seat)] * len(batch)
    failed = [index for index, result in enumerate(results) if type(result) is not bytes]
    if failed:
        again = [router.resume(batch[index], begun, timeout, seat, results[index], extra) for index in failed]
        for index, done in zip(failed, await asyncio.gather(*again, return_exceptions=True), strict=True):
            if isinstance(done, Answer):
                results[index], makers[index] = done.signature, done.maker
            elif isinstance(done, HsmError) and return_exceptions:
                results[index] = done
            elif isinstance(done, BaseException):
                raise done
    return results, makers


async def _one_by_one(
    router: Router,
    seat: Seat | None,
    batch: list[Any],
    timeout: float | None,
    return_exceptions: bool,
    extra: bytes | None,
) -> tuple[list[Any], list[Maker]]:
    """Where each message has to be looked at: whether it is bound to a key, or may have a unit of the budget."""
    for message in batch:  # before anything is signed
        if not isinstance(message, bytes):
            raise InvalidMessageType(f"a message must be bytes-like, not {type(message).__name__}")
        if not message:
            raise EmptyMessage("a message must have at least one byte")
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
