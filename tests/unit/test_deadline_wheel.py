"""The timing wheel of native/src/deadlines.h against a plain table of deadlines, under any clock."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.native import abi
from tests.support.size import share

TICK = 1 << 22
BLOCK = TICK << 8
SECOND = 10**9
HOUR = 3600 * SECOND

STARTS = st.one_of(st.integers(1, 1 << 60), st.sampled_from([1, TICK - 1, BLOCK - 1, 256 * BLOCK - 1, 256 * BLOCK]))
# From a nanosecond to beyond the last block; and the edges of a tick, a block and the wheel.
SPANS = st.one_of(
    st.integers(1, 2 * TICK),
    st.integers(1, 10 * SECOND),
    st.integers(1, 5 * HOUR),
    st.builds(
        lambda unit, count, off: max(1, unit * count + off),
        st.sampled_from([TICK, BLOCK]),
        st.integers(0, 600),
        st.sampled_from([-1, 0, 1]),
    ),
)


class Wheel:
    """The wheel, and what it should hold."""

    def __init__(self, now: int) -> None:
        ffi, self.lib = abi.load()
        self.wheel = ffi.new("hsm_deadlines *")
        self.number = ffi.new("uint32_t *")
        self.now = now
        self.room = 0
        self.watched: dict[int, int] = {}

    def add(self, span: int) -> None:
        number = next(free for free in range(len(self.watched) + 1) if free not in self.watched)
        if number >= self.room:
            self.room = 2 * self.room or 1
            assert self.lib.hsm_deadlines_grow(self.wheel, self.room)
        self.watched[number] = min(self.now + span, (1 << 64) - 1)
        self.lib.hsm_deadlines_add(self.wheel, number, self.watched[number], self.now)

    def drop(self, which: int) -> None:
        number = which % self.room if self.room else 0
        if self.room:
            self.lib.hsm_deadlines_drop(self.wheel, number)  # also one that has no deadline
        self.watched.pop(number, None)

    def expire(self) -> int:
        """Take what has passed. Returns how many there were."""
        count = 0
        while self.lib.hsm_deadlines_expired(self.wheel, self.now, self.number):
            assert self.watched.pop(self.number[0]) <= self.now, "early"
            count += 1
        assert all(deadline > self.now - TICK for deadline in self.watched.values()), "late"
        self.look()
        assert not self.watched or self.next > self.now, "who sleeps until then spins"
        return count

    @property
    def next(self) -> int:
        return self.lib.hsm_deadlines_next(self.wheel)

    def look(self) -> None:
        assert self.wheel.count == len(self.watched)
        assert (self.next == 0) == (not self.watched)
        if self.watched:
            assert self.next <= min(self.watched.values()) + TICK


@contextmanager
def wheel_at(now: int) -> Iterator[Wheel]:
    wheel = Wheel(now)
    try:
        yield wheel
    finally:
        wheel.lib.hsm_deadlines_free(wheel.wheel)
        assert abi.leaks() == dict.fromkeys(abi.leaks(), 0)


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), SPANS),
        st.tuples(st.just("add"), SPANS),
        st.tuples(st.just("drop"), st.integers(0, 100)),
        st.tuples(st.just("pass"), SPANS),
        st.tuples(st.just("jump"), SPANS),
        st.tuples(st.just("empty"), st.just(0)),
    ),
    max_size=80,
)


@settings(max_examples=share(300), deadline=None)
@given(STARTS, STEPS)
def test_nothing_expires_early_or_late(start: int, steps: Any):
    with wheel_at(start) as wheel:
        for step, value in steps:
            if step == "add":
                wheel.add(value)
            elif step == "drop":
                wheel.drop(value)
            elif step == "empty":
                for number in list(wheel.watched):
                    wheel.drop(number)
            else:  # time passes, and is looked at or not
                wheel.now += value
                if step == "pass":
                    wheel.expire()
            wheel.look()
        wheel.now = max([wheel.now, *wheel.watched.values()]) + TICK
        wheel.expire()
        assert not wheel.watched


@settings(max_examples=share(100), deadline=None)
@given(STARTS, st.lists(SPANS, min_size=1, max_size=20), st.integers(0, 5_000_000))
def test_a_caller_that_sleeps_until_the_next_look_does_not_spin(start: int, spans: list[int], oversleeps: int):
    with wheel_at(start) as wheel:
        for span in spans:
            wheel.add(span)
        looks = 0
        while wheel.watched:
            wheel.now = wheel.next + oversleeps
            wheel.expire()
            looks += 1
        # One look for each deadline, one for each block that has one, and one for each turn of the wheel.
        assert looks <= 2 * len(spans) + (max(spans) // (255 * BLOCK) + 1) * len(spans)


@settings(max_examples=share(50), deadline=None)
@given(STARTS, st.lists(st.integers(1, 30 * SECOND), min_size=1, max_size=300))
def test_deadlines_expire_tick_by_tick(start: int, spans: list[int]):
    with wheel_at(start) as wheel:
        for span in spans:
            wheel.add(span)
        order = []
        wheel.now += max(spans) + TICK
        while wheel.lib.hsm_deadlines_expired(wheel.wheel, wheel.now, wheel.number):
            order.append(wheel.watched.pop(wheel.number[0]) // TICK)
        assert order == sorted(order)
        assert not wheel.watched


def test_a_deadline_that_never_comes_costs_one_look_a_turn():
    with wheel_at(SECOND) as wheel:
        wheel.add(1 << 64)
        looks = 0
        while wheel.now < 24 * HOUR:
            wheel.now = wheel.next
            assert wheel.expire() == 0
            looks += 1
        assert looks <= 24 * HOUR // (254 * BLOCK) + 1
        wheel.drop(0)
        wheel.look()
