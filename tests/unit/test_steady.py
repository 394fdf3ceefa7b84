"""The clock for what cannot be undone: steps that do not last are none."""

from __future__ import annotations

import pytest

from hsmcore.base import steady
from hsmcore.base.steady import HELD_NS, STEP_NS, SteadyClock

SECOND = 10**9
DAY = 86_400 * SECOND
BEGIN = 20_000 * DAY


class World:
    """A machine's two clocks."""

    def __init__(self) -> None:
        self.wall, self.boot = BEGIN, 5 * DAY
        self.steps: list[tuple[int, int]] = []

    def clock(self) -> SteadyClock:
        return SteadyClock(lambda: self.wall, lambda: self.boot, lambda *step: self.steps.append(step))

    def passes(self, time: int) -> None:
        self.wall += time
        self.boot += time


@pytest.mark.parametrize("step", [9 * DAY, -9 * DAY])
def test_a_step_counts_once_it_has_held_for_a_day(step):
    world = World()
    clock = world.clock()
    world.wall += step
    assert (clock.now(), clock.sure(), clock.late()) == (BEGIN, min(BEGIN, BEGIN + step), max(BEGIN, BEGIN + step))
    assert not clock.agrees
    world.passes(HELD_NS - 1)
    assert clock.now() == BEGIN + HELD_NS - 1
    world.passes(1)
    assert clock.now() == clock.sure() == world.wall
    assert clock.agrees
    assert world.steps == [(BEGIN, BEGIN + step)]


def test_a_clock_that_is_wrong_for_four_seconds_now_and_then_is_never_believed():
    world = World()
    clock = world.clock()
    for _ in range(40):
        world.wall += 9 * DAY
        clock.now()
        world.passes(4 * SECOND)
        assert clock.now() < world.wall - 8 * DAY
        world.wall -= 9 * DAY
        clock.now()
        world.passes(3_600 * SECOND)
        assert clock.now() == world.wall
    assert len(world.steps) == 40


def test_small_steps_go_forward_only():
    world = World()
    clock = world.clock()
    for _ in range(1000):
        world.passes(3_600 * SECOND)
        world.wall += SECOND
        assert clock.now() == world.wall
    before = world.wall
    world.wall -= 5 * SECOND
    assert (clock.now(), clock.sure(), clock.late()) == (before, world.wall, before)
    assert world.steps == []


@pytest.mark.parametrize("sign", [1, -1])
def test_a_step_is_one_from_ten_seconds_on(sign):
    for by in (STEP_NS - 1, STEP_NS):
        world = World()
        clock = world.clock()
        world.wall += sign * by
        clock.now()
        assert clock.agrees == (by < STEP_NS)
        assert len(world.steps) == (by == STEP_NS)


def test_a_step_during_a_step_holds_from_its_own_beginning():
    for by in (STEP_NS - 1, STEP_NS):
        world = World()
        clock = world.clock()
        world.wall += DAY
        clock.now()
        world.passes(HELD_NS - 1)
        world.wall += by
        assert clock.now() == BEGIN + HELD_NS - 1
        world.passes(1)
        assert (clock.now() == world.wall) == (by < STEP_NS)
        assert len(world.steps) == (2 if by == STEP_NS else 1)


def test_restarts_during_one_boot_neither_believe_a_step_nor_forget_how_long_it_has_held():
    world = World()
    mark = world.clock().mark
    world.wall += 100 * DAY
    for hours in range(1, 25):
        clock = world.clock()
        assert not clock.counted
        clock.resume(mark, 0)
        assert clock.counted
        world.passes(3_600 * SECOND)
        assert clock.now() == BEGIN + hours * 3_600 * SECOND
        mark = clock.mark
    world.passes(3_600 * SECOND)
    assert clock.now() == world.wall


def test_after_another_boot_the_wall_clock_is_believed_up_to_a_day_ahead(monkeypatch):
    world = World()
    mark = world.clock().mark
    monkeypatch.setattr(steady, "_boot", lambda: "another")
    world.boot = SECOND
    for away, believed in ((DAY // 2, DAY // 2), (7 * DAY, DAY), (-DAY, 0)):
        world.wall = BEGIN + away
        clock = world.clock()
        clock.resume(mark, 0)
        assert clock.now() == BEGIN + believed
        assert clock.sure() == min(BEGIN + believed, world.wall)
        assert not clock.counted


@pytest.mark.parametrize(
    "mark", ["", "x", "[]", "{}", "3", '{"boot": "", "at": 1.5, "offset": "", "step": 0, "since": 0}']
)
def test_without_a_mark_what_is_durably_known_bounds_a_start(mark):
    world = World()
    clock = world.clock()
    clock.resume(mark, BEGIN - 30 * DAY)
    assert clock.now() == BEGIN - 29 * DAY
    fresh = world.clock()
    fresh.resume(mark, 0)
    assert fresh.now() == BEGIN


def test_it_goes_on_from_a_later_time_that_is_known():
    world = World()
    clock = world.clock()
    clock.reach(BEGIN - 1)
    assert clock.now() == BEGIN
    clock.reach(BEGIN + DAY)
    world.passes(SECOND)
    assert clock.now() == BEGIN + DAY + SECOND
