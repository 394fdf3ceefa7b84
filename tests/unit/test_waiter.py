"""What takes an answer in place of a future: hsmcore._native.Waiter."""

from __future__ import annotations

import asyncio
from contextvars import ContextVar, copy_context

import pytest

from hsmcore._native import AnswerQueue, Waiter

who: ContextVar[str] = ContextVar("who", default="nobody")
NOBODY = copy_context()


def begun(queue: AnswerQueue) -> Waiter:
    waiter = Waiter()
    waiter.begins(queue)
    return waiter


async def test_the_answers_of_an_iteration_go_on_together_in_their_order_and_in_no_callers_context():
    found: list[tuple[str, list[object]]] = []
    queue = AnswerQueue(
        asyncio.get_running_loop(), lambda waiters: found.append((who.get(), [one.outcome for one in waiters])), NOBODY
    )
    first, second, third = (begun(queue) for _ in range(3))
    caller = copy_context()
    caller.run(who.set, "caller")
    caller.run(second.set_result, 2)
    first.set_result(1)
    assert found == []
    await asyncio.sleep(0)
    assert found == [("nobody", [2, 1])]
    error = ValueError("three")
    third.set_exception(error)
    await asyncio.sleep(0)
    assert found[1] == ("nobody", [error])
    assert (third.exception(), first.exception(), first.result()) == (error, None, 1)


async def test_an_answer_is_taken_once_and_none_after_it_was_withdrawn():
    queue = AnswerQueue(asyncio.get_running_loop(), lambda _: None, NOBODY)
    answered, left = begun(queue), begun(queue)
    assert not answered.done()
    answered.set_result(1)
    with pytest.raises(asyncio.InvalidStateError):
        answered.set_exception(ValueError())
    assert (answered.done(), answered.cancelled(), answered.cancel()) == (True, False, False)
    assert left.cancel()
    with pytest.raises(asyncio.InvalidStateError):
        left.set_result(1)
    assert (left.done(), left.cancelled()) == (True, True)
    assert asyncio.isfuture(left)


async def test_who_is_told_is_told_in_the_context_of_its_own():
    """The record of a failure has the caller of the request."""
    told: list[tuple[str, object]] = []
    waiter = begun(AnswerQueue(asyncio.get_running_loop(), lambda _: None, NOBODY))
    caller = copy_context()
    caller.run(who.set, "caller")
    caller.run(waiter.add_done_callback, lambda one: told.append((who.get(), one.result())))
    waiter.set_result(1)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert told == [("caller", 1)]
