"""OffloadEngine under random schedules: each request gets one answer, the right one, and nothing is left."""

from __future__ import annotations

import asyncio
import hashlib
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.managers import until

from hsmcore._native import Histogram
from hsmcore.errors import DeadlineExceeded, HsmError, InternalError, KeyDeactivated, MemberDown, ModuleBusy
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
        "queue_size": 8,
        "max_message": 100,
        "default_timeout": 30.0,
        "cache_size": 0,
        "single_flight": False,
        "cache_nondeterministic": False,
    } | options
    engine = OffloadEngine(backend, member="test", **given_options)
    engine.attach(asyncio.get_running_loop())
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


@settings(max_examples=60)
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
    for step, message, key in steps:
        await take(step, engine, asked, message, key)
    await asyncio.wait_for(engine.idle(), 10)
    for one in asked:
        one.check()
    await until(lambda: engine.in_flight == 0)  # what was begun for requests that are gone
    assert await engine.stop(5) == 0
    assert backend.inside == 0
    assert backend.most <= concurrency
    stats = engine.stats()
    assert (stats["in_flight"], stats["waiting"], stats["busy"], stats["stuck"]) == (0, 0, 0, 0)
    assert stats["signatures"] + stats["failures"] == backend.calls
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
        engine.set_down(step == "down")


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
    for n in range(2):
        with pytest.raises(DeadlineExceeded):
            await engine.submit(b"hang %d" % n, timeout=0.01)
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
    assert engine.stats()["busy"] == 0
    with pytest.raises(HsmError, match="closed"):
        await future


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


@given(st.integers(0, 2**40))
def test_times_fall_into_the_native_buckets(ns):
    """native/src/hist.c, written down once more."""
    if ns < 16:
        upper = ns
    else:
        octave = ns.bit_length() - 1
        step = ns >> (octave - 4) & 15
        upper = (16 + step << octave - 4) + (1 << octave - 4) - 1
    histogram = Histogram()
    histogram.add(ns)
    assert histogram.rows() == [(upper, 1)]
