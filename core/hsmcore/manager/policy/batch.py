"""A batch under a policy: the gate passes most messages, each other one is judged, and what is refused keeps no other
one from being signed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from typing import Any

from hsmcore.errors import HsmError
from hsmcore.manager.policy.guard import Admission, Guard

SubmitMany = Callable[[Sequence[Any], float | None, bool, bytes | None], Awaitable[list[Any]]]


async def submit_batch(
    guard: Guard,
    submit: SubmitMany,
    batch: list[Any],
    timeout: float | None,
    return_exceptions: bool,
    extra: bytes | None,
    admitted: ExitStack,
    record: Callable[[str, Any, HsmError], object],
) -> Awaitable[list[Any]]:
    """Admit a batch and submit it; the result is what SigningPath.submit_many returns. Without `return_exceptions`, a
    refusal is raised before anything is signed; else `record` gets each. The admissions end with `admitted`."""
    if guard.gate.passes_all(batch):
        return submit(batch, timeout, return_exceptions, extra)
    judged = [_judge(guard, message, admitted, return_exceptions) for message in batch]
    waiting = [one for one in judged if isinstance(one, Admission) and one.waits]
    begun = await asyncio.gather(*(one.begin(timeout) for one in waiting), return_exceptions=True)
    ready: dict[Any, Any] = dict(zip(waiting, begun, strict=True))
    outcomes: list[bytes | HsmError] = []
    for one, message in zip(judged, batch, strict=True):
        result = ready.get(one) if isinstance(one, Admission) else one
        if isinstance(result, BaseException):
            if not (return_exceptions and isinstance(result, HsmError)):
                raise result
            record("sign", message, result)
            outcomes.append(result)
        else:
            outcomes.append(one.message if isinstance(one, Admission) else message)
    good = [one for one in outcomes if not isinstance(one, HsmError)]
    left = min((left for left in begun if isinstance(left, float)), default=timeout)
    return _in_order(outcomes, submit(good, left, return_exceptions, extra) if good else None)


async def _in_order(outcomes: Sequence[bytes | HsmError], answer: Awaitable[list[Any]] | None) -> list[Any]:
    answers = iter([] if answer is None else await answer)
    return [one if isinstance(one, HsmError) else next(answers) for one in outcomes]


def _judge(guard: Guard, message: Any, admitted: ExitStack, return_exceptions: bool) -> Admission | HsmError | None:
    """Return None for a message that the gate passes."""
    if guard.passes(message, None):
        return None
    try:
        return admitted.enter_context(guard.admitted(message, None, None))
    except HsmError as error:
        if not return_exceptions:
            raise
        return error
