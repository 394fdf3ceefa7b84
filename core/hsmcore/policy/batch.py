"""A batch under a policy: each message is judged, and what is refused keeps no other one from being signed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from typing import Any

from hsmcore.errors import HsmError
from hsmcore.policy.guard import Admission, Guard

SubmitMany = Callable[[Sequence[Any], float | None, bool, bytes | None], Awaitable[list[Any]]]


async def sign_many(
    guard: Guard,
    submit: SubmitMany,
    batch: Sequence[Any],
    timeout: float | None,
    return_exceptions: bool,
    extra: bytes | None,
    record: Callable[[str, Any, HsmError], object],
) -> list[Any]:
    """As SigningPath.submit_many. Without `return_exceptions`, a refusal is raised before anything is signed; else
    `record` gets each."""
    with ExitStack() as admitted:
        judged = [_judge(guard, message, admitted, return_exceptions) for message in batch]
        begun = await asyncio.gather(
            *(one.begin(timeout) for one in judged if isinstance(one, Admission)), return_exceptions=True
        )
        outcomes: list[Any] = []
        results = iter(begun)
        for one, message in zip(judged, batch, strict=True):
            result = next(results) if isinstance(one, Admission) else one
            if not isinstance(result, BaseException):
                outcomes.append(one)
                continue
            if not (return_exceptions and isinstance(result, HsmError)):
                raise result
            record("sign", message, result)
            outcomes.append(result)
        left = min((left for left in begun if isinstance(left, float)), default=timeout)
        good = [one.message for one in outcomes if isinstance(one, Admission)]
        answers = iter(await submit(good, left, return_exceptions, extra) if good or not batch else [])
        return [next(answers) if isinstance(one, Admission) else one for one in outcomes]


def _judge(guard: Guard, message: Any, admitted: ExitStack, return_exceptions: bool) -> Admission | HsmError:
    try:
        return admitted.enter_context(guard.admitted(message, None, None))
    except HsmError as error:
        if not return_exceptions:
            raise
        return error
