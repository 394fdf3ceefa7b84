"""OffloadEngine under random schedules: each request gets one answer, the right one, and nothing is left."""

from __future__ import annotations

import asyncio
import hashlib
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.managers import until
from tests.support.size import share

from hsmcore._native import Journal
from hsmcore.errors import (
    DeadlineExceeded,
    EngineClosed,
    HsmError,
    InternalError,
    KeyDeactivated,
    MemberDown,
    ModuleBusy,
)
from hsmcore.members.offload.engine import OffloadEngine


def answer_for(key: int, message: bytes) -> bytes:
    """What the back end gives for a message."""
    return hashlib.sha512(bytes([key]) + message).digest()


class Backend:
    """Answers in an order and with failures that the seed decides. Counts what is with it."""

    def __init__(self, concurrency: int, seed: int, stubborn: bool = False) -> None:
        self.concurrency = concurrency
        self.calls = self.inside = self.most = 0
        self.stubborn = stubborn
        self.let = asyncio.Event()
        self.hanging = asyncio.Event()
        self._random = random.Random(seed)

    async def sign(self, key: int, message: bytes) -> bytes:
        self.calls += 1
        self.inside += 1
        self.most = max(self.most, self.inside)
        try:
            for _ in range(self._random.randrange(4)):
                await asyncio.sleep(0)
            if message.startswith(b"busy"):
                raise ModuleBusy("made up")
            if message.startswith(b"bug"):
                raise ZeroDivisionError
            while message.startswith(b"hang") and not self.let.is_set():
                self.hanging.set()
                try:
                    await self.let.wait()
                except asyncio.CancelledError:
                    if not self.stubborn:
                        raise
            return answer_for(key, message)
        finally:
            self.inside -= 1


def engine_for(backend: Any, **options: Any) -> OffloadEngine:
    given_options = {
        "member": "test",
        "queue_size": 8,
        "max_message": 100,
        "default_timeout": 30.0,
        "cache_size": 0,
        "single_flight": False,
        "cache_nondeterministic": False,
    } | options
    engine = OffloadEngine.before(backend, **given_options)
    engine.start(asyncio.get_running_loop())
    for _ in range(2):
        engine.add_key("ed25519", bytes(32))
    return engine


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["sign", "sign", "sign", "batch", "cancel", "forget", "turn", "wipe", "down", "up"]),
        st.sampled_from([b"a", b"b", b"c", b"busy", b"bug"]),
        st.integers(0, 1),
    ),
    max_size=60,
)


@settings(max_examples=share(60))
@given(
    steps=STEPS,
    seed=st.integers(0, 2**32),
    cache=st.sampled_from([0, 1, 100]),
    shared=st.booleans(),
    k=st.integers(1, 3),
)
def test_every_schedule_answers_all_requests(steps, seed, cache, shared, k):
    asyncio.run(schedule(steps, seed, cache, shared, k))


async def schedule(steps: Any, seed: int, cache: int, shared: bool, concurrency: int) -> None:
    backend = Backend(concurrency, seed)
    engine = engine_for(backend, cache_size=cache, single_flight=shared)
    asked: list[Asked] = []
    refused = 0
    """Requests that failed without a call, because the back end was lost."""
    for step, message, key in steps:
        before = engine.stats()["failures"]
        await take(step, engine, asked, message, key)
        refused += engine.stats()["failures"] - before if step == "down" else 0
    await asyncio.wait_for(engine.idle(), 10)
    for one in asked:
        one.check()
    await until(lambda: engine.in_flight == 0)  # what was begun for requests that are gone
    stats = engine.stats()
    assert await engine.stop(5) == 0
    assert backend.inside == 0
    assert backend.most <= concurrency
    assert (stats["in_flight"], stats["waiting"], stats["busy"], stats["stuck"]) == (0, 0, 0, 0)
    assert stats["signatures"] + stats["failures"] - refused == backend.calls
    assert len(asyncio.all_tasks()) == 1


class Asked:
    """What was asked for, and what must come of it."""

    def __init__(self, future: asyncio.Future[Any], key: int, messages: list[bytes], batch: bool) -> None:
        self.future, self.key, self.messages, self.batch = future, key, messages, batch

    def check(self) -> None:
        assert self.future.done()
        if self.future.cancelled():
            return
        results = self.future.result() if self.batch else [self.future.exception() or self.future.result()]
        for message, result in zip(self.messages, results, strict=True):
            if isinstance(result, bytes):
                assert result == answer_for(self.key, message)
            else:
                assert isinstance(result, (ModuleBusy, InternalError, MemberDown))


async def take(step: str, engine: OffloadEngine, asked: list[Asked], message: bytes, key: int) -> None:
    """One step of a schedule."""
    if step in ("sign", "batch"):
        try:
            ask(step, engine, asked, message, key)
        except MemberDown:
            assert engine.stats()["down"]
    elif step in ("cancel", "forget") and asked:
        asked[-1].future.cancel()
        if step == "cancel":
            engine.abandon(asked[-1].future)
    elif step == "turn":
        await asyncio.sleep(0)
    elif step == "wipe":
        engine.clear_cache()
    elif step in ("down", "up"):
        engine.lose("TOKEN_LOST" if step == "down" else "")


def ask(step: str, engine: OffloadEngine, asked: list[Asked], message: bytes, key: int) -> None:
    if step == "batch":
        messages = [message, b"a", message]
        asked.append(Asked(engine.submit_many(messages, return_exceptions=True, key=key), key, messages, True))
        return
    signed = engine.submit(message, key=key)
    if isinstance(signed, bytes):
        assert signed == answer_for(key, message)
    else:
        asked.append(Asked(signed, key, [message], False))


async def test_a_back_end_that_hangs_is_down_until_it_answers():
    backend = Backend(2, 0, stubborn=True)
    engine = engine_for(backend)
    hanging = [engine.submit(b"hang %d" % n, timeout=1.0) for n in range(2)]
    late = await asyncio.gather(*hanging, return_exceptions=True)
    assert {type(one) for one in late} == {DeadlineExceeded}
    await until(lambda: engine.stats()["down"])
    assert engine.stats()["stuck"] == 2
    with pytest.raises(MemberDown):
        engine.submit(b"x")
    backend.let.set()
    await until(lambda: not engine.stats()["down"])
    assert await engine.submit(b"x") == answer_for(0, b"x")
    assert await engine.stop(5) == 0


async def test_stopping_counts_the_calls_that_do_not_end():
    backend = Backend(2, 0, stubborn=True)
    engine = engine_for(backend)
    future = engine.submit(b"hang")
    await backend.hanging.wait()
    assert await engine.stop(0.01) == 1
    with pytest.raises(HsmError, match="closed"):
        await future
    backend.let.set()
    await until(lambda: backend.inside == 0)
    assert await engine.stop(5) == 0


async def test_a_call_that_is_stopped_before_its_first_step_is_over():
    backend = Backend(1, 0)
    engine = engine_for(backend)
    future = engine.submit(b"x")
    assert await engine.stop(5) == 0
    assert backend.calls == 0
    assert backend.inside == 0
    assert await engine.stop(5) == 0
    with pytest.raises(HsmError, match="closed"):
        await future


async def test_nothing_that_waits_is_begun_while_the_engine_stops():
    backend, tasks = Backend(1, 0), asyncio.all_tasks()
    engine = engine_for(backend)
    asked = [engine.submit(b"hang"), engine.submit(b"x")]
    await backend.hanging.wait()
    assert await engine.stop(5) == 0
    assert [type(error) for error in await asyncio.gather(*asked, return_exceptions=True)] == [EngineClosed] * 2
    for _ in range(5):
        await asyncio.sleep(0)
    assert (backend.calls, backend.inside, asyncio.all_tasks()) == (1, 0, tasks)


async def test_a_retired_key_fails_no_request_of_another():
    backend = Backend(1, 0)
    engine = engine_for(backend)
    held = engine.submit(b"hang", key=1)
    queued = [engine.submit(b"x", key=key) for key in (0, 1, 0)]
    await asyncio.sleep(0)
    engine.retire_key(0)
    backend.let.set()
    outcomes = await asyncio.gather(held, *queued, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [bytes, KeyDeactivated, bytes, KeyDeactivated]
    assert await engine.stop(5) == 0


# ---- each error is the request's own -------------------------------------------------------------------------------


async def test_no_error_of_another_request_in_the_same_slot():
    backend = Backend(1, 0)
    engine = engine_for(backend, queue_size=2)
    failed = [engine.submit(b"busy %d" % n) for n in range(2)]
    assert {type(one) for one in await asyncio.gather(*failed, return_exceptions=True)} == {ModuleBusy}
    held, refused = engine.submit(b"hang", key=1), engine.submit(b"x")
    await backend.hanging.wait()
    engine.retire_key(0)
    backend.let.set()
    assert await held == answer_for(1, b"hang")
    with pytest.raises(KeyDeactivated):
        await refused
    assert await engine.stop(5) == 0


FOLLOWERS = 20_000
"""More answers than the engine gives before it yields to the loop."""


async def test_followers_get_the_leaders_error_while_their_slot_is_used_again():
    backend = Backend(1, 0)
    engine = engine_for(backend, queue_size=1, single_flight=True)
    futures = [engine.submit(b"busy") for _ in range(FOLLOWERS)]
    others: list[asyncio.Future[bytes]] = []
    futures[0].add_done_callback(lambda _: others.extend(engine.submit(b"bug %d" % n) for n in range(20)))
    outcomes = await asyncio.gather(*futures, return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {ModuleBusy}
    outcomes = await asyncio.gather(*others, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [InternalError] * 20
    assert await engine.stop(5) == 0


@contextmanager
def stalled(folder: Path) -> Iterator[Journal]:
    """A journal that nothing reads: no record is ever known to be durable."""
    archive = folder / "archive"
    archive.mkdir()
    journal = Journal(
        path=str(folder / "log"),
        archive=str(archive),
        first_seq=1,
        next_seq=1,
        rotate_bytes=1 << 30,
        interval_seconds=1.0,
        durability="fsync",
        fail_open=False,
        wait_seconds=60.0,
        max_pending=1 << 26,
    )
    journal.attach(asyncio.get_running_loop(), lambda *_: None, lambda _: EngineClosed("refused"), lambda *_: None)
    journal.detach()
    yield journal
    assert journal.close() == 0


async def test_a_held_answer_that_is_late_has_an_error_of_its_own(tmp_path):
    with stalled(tmp_path) as journal:
        backend = Backend(1, 0)
        engine = engine_for(backend, queue_size=1)
        engine.record_in(journal)
        held = engine.submit(b"x", timeout=2.0)
        await until(lambda: journal.next > 1)
        with pytest.raises(ModuleBusy):
            await engine.submit(b"busy")
        with pytest.raises(DeadlineExceeded):
            await held
        assert await engine.stop(5) == 0


async def leader_and_followers(engine: OffloadEngine, backend: Backend, timeout: float) -> tuple[Any, list[Any]]:
    """Requests that share a signature, of which some are held and others wait to be taken."""
    leader = engine.submit(b"hang")  # with more time than the others, so that it is begun
    futures = [engine.submit(b"hang", timeout=timeout) for _ in range(FOLLOWERS)]
    await backend.hanging.wait()
    backend.let.set()
    while engine.in_flight:  # noqa: ASYNC110 (one turn of the loop is one slice of answers)
        await asyncio.sleep(0)
    return leader, futures


async def test_an_answer_that_is_held_after_its_deadline_is_given_up(tmp_path):
    with stalled(tmp_path) as journal:
        backend = Backend(1, 0)
        engine = engine_for(backend, single_flight=True)
        engine.record_in(journal)
        timeout = 1.0
        leader, futures = await leader_and_followers(engine, backend, timeout)
        # The loop is late, so that the deadlines pass while answers wait to be taken.
        time.sleep(timeout)  # noqa: ASYNC251
        done, _ = await asyncio.wait(futures, timeout=30)
        assert len(done) == FOLLOWERS
        assert {type(future.exception()) for future in done} == {DeadlineExceeded}
        assert await engine.stop(5) == 0
        with pytest.raises(EngineClosed):
            await leader


async def test_stopping_answers_what_waits_to_be_taken(tmp_path):
    with stalled(tmp_path) as journal:
        backend = Backend(1, 0)
        engine = engine_for(backend, single_flight=True)
        engine.record_in(journal)
        leader, futures = await leader_and_followers(engine, backend, 30.0)
        assert await engine.stop(5) == 0
        assert {type(future.exception()) for future in futures if future.done()} == {EngineClosed}
        assert sum(future.done() for future in futures) == FOLLOWERS
        with pytest.raises(EngineClosed):
            await leader


async def test_an_engine_that_is_stopped_is_not_recorded(tmp_path):
    """A member may be stopped while it is opened: the journal would tell its engine of what is written."""
    with stalled(tmp_path) as journal:
        engine = engine_for(Backend(1, 0))
        assert await engine.stop(5) == 0
        with pytest.raises(EngineClosed):
            engine.record_in(journal)
        journal.attach(asyncio.get_running_loop(), lambda *_: None, lambda _: EngineClosed("refused"), lambda *_: None)
        journal.put(b'{"seq":1}\n')
        await until(lambda: journal.written == 1)
        journal._ready()
        journal.detach()
