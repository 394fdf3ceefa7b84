"""A service's tasks and how they end: repeated work survives its errors, and closing closes everything."""

from __future__ import annotations

import asyncio
from contextvars import ContextVar
from itertools import pairwise

import pytest
from structlog.testing import capture_logs
from tests.support.managers import until

from hsmcore.base.scope import Scope, end_of_pause

FAILED = "the work failed"
CALLER: ContextVar[str] = ContextVar("caller")


class Work:
    """Fails as often as it is told to, then succeeds."""

    def __init__(self, *errors: Exception) -> None:
        self.errors, self.calls = list(errors), 0

    async def __call__(self) -> float | None:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return None


async def test_work_is_done_at_once_and_again_when_it_is_woken():
    work, scope = Work(), Scope()
    wake = scope.every(3600, work, FAILED)
    await until(lambda: work.calls == 1)
    wake.set()
    await until(lambda: work.calls == 2)
    await scope.close()
    assert not scope.is_open


async def test_work_that_waits_first_waits():
    work, scope = Work(), Scope()
    scope.every(3600, work, FAILED, at_once=False)
    await asyncio.sleep(0.02)
    assert work.calls == 0
    await scope.close()


async def test_an_error_is_logged_once_and_once_when_it_is_over():
    errors = [OSError("gone"), OSError("gone"), OSError("gone"), ZeroDivisionError("ours")]
    work, scope = Work(*errors), Scope()
    with capture_logs() as logs:
        scope.every(0.001, work, FAILED)
        await until(lambda: work.calls > 6)
        await scope.close()
    said = [(line["event"], line.get("error"), bool(line.get("exc_info"))) for line in logs]
    assert said == [(FAILED, "gone", False), (FAILED, "ours", True), (f"over: {FAILED}", None, False)]


async def test_pauses_grow_with_failures_up_to_the_longest_one():
    times: list[float] = []
    loop, scope = asyncio.get_running_loop(), Scope()

    async def work() -> None:
        times.append(loop.time())
        raise OSError("gone")

    scope.every(0.01, work, FAILED, most_seconds=0.04)
    await until(lambda: len(times) == 6)
    await scope.close()
    pauses = [after - before for before, after in pairwise(times)]
    for pause, least in zip(pauses, (0.01, 0.02, 0.04, 0.04, 0.04), strict=True):
        assert pause >= 0.89 * least


async def test_work_that_goes_on_by_itself_is_no_callers():
    seen: list[str] = []
    scope = Scope()

    async def work() -> None:
        seen.append(CALLER.get("nobody"))

    CALLER.set("neighbour")
    scope.every(3600, work, FAILED)
    await until(lambda: bool(seen))
    await scope.close()
    assert seen == ["nobody"]


async def test_closing_ends_tasks_first_and_then_the_rest_the_last_one_first():
    ended: list[str] = []
    scope = Scope()

    async def task() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            ended.append("task")

    async def closed() -> None:
        ended.append("coroutine")

    scope.defer(lambda: ended.append("first"))
    scope.defer(closed)
    scope.start(task())
    await asyncio.sleep(0)
    await scope.close()
    assert ended == ["task", "coroutine", "first"]


async def test_what_cannot_be_closed_keeps_nothing_else_open():
    ended: list[str] = []
    scope = Scope()

    def fails() -> None:
        raise OSError("held")

    scope.defer(lambda: ended.append("first"))
    scope.defer(fails)
    scope.defer(lambda: ended.append("last"))
    with pytest.raises(OSError, match="held"):
        await scope.close()
    assert ended == ["last", "first"]
    await scope.close()
    assert ended == ["last", "first"]


async def test_the_error_of_a_task_that_nobody_waits_for_is_logged():
    scope = Scope()

    async def task() -> None:
        raise OSError("gone")

    with capture_logs() as logs:
        scope.start(task(), failed=FAILED)
        await until(lambda: bool(logs))
    assert [(line["event"], line["error"]) for line in logs] == [(FAILED, "gone")]
    await scope.close()


async def test_finishing_lets_tasks_come_to_their_end_and_those_that_they_start():
    ended: list[str] = []
    scope = Scope()
    go_on = asyncio.Event()

    async def second() -> None:
        await go_on.wait()
        ended.append("second")

    async def first() -> None:
        scope.start(second())
        ended.append("first")

    scope.defer(lambda: ended.append("rest"))
    scope.start(first())
    finishing = asyncio.ensure_future(scope.finish())
    await until(lambda: ended == ["first"])
    assert not finishing.done()
    go_on.set()
    assert await finishing == 0
    assert ended == ["first", "second", "rest"]
    assert await scope.finish() == 0


async def test_what_has_no_end_is_ended_when_its_time_is_over_and_counted():
    scope = Scope()

    async def done() -> None:
        return

    endless = [scope.start(asyncio.sleep(3600)) for _ in range(2)]
    scope.start(done())
    assert await scope.finish(0.01) == 2
    assert all(task.cancelled() for task in endless)


async def test_a_scope_is_open_until_its_last_task_has_returned():
    """What starts a task unless one runs must see its end at once: what comes right after it would wait for ever."""
    seen: list[bool] = []
    scope = Scope()

    async def task() -> None:
        asyncio.get_running_loop().call_soon(lambda: seen.append(scope.is_open))  # before its callbacks

    scope.start(task())
    assert scope.is_open
    await scope.finish()
    assert seen == [False]


async def test_a_pause_that_a_work_returned_is_as_long_as_it_says(monkeypatch):
    ends, loop = list[tuple[float, float]](), asyncio.get_running_loop()
    call_at, over = loop.call_at, asyncio.Event()

    def noted(when, *given, **more):
        ends.append((loop.time(), when))
        return call_at(loop.time(), *given, **more)

    async def work():
        if len(ends) > 5:
            over.set()
        return 0.7

    monkeypatch.setattr(loop, "call_at", noted)
    scope = Scope()
    scope.every(0.5, work, "failed")
    await over.wait()
    await scope.close()
    assert all(0.69 < end - now < 0.71 for now, end in ends[1:])


def test_pauses_of_up_to_a_second_end_together():
    for now in (0.0, 17.01, 17.24, 123_456.789):
        for length in (0.1, 0.25, 0.5, 1.0):
            at = end_of_pause(now, length)
            assert 0.49 * length < at - now < 1.51 * length
            assert at / length == pytest.approx(round(at / length))
        assert end_of_pause(now, 3600.0) == now + 3600.0
