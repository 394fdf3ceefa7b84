"""How much of a client's frames is taken: in turns while it is alone, in time while others send, too."""

import pytest

from hsmcore.gateway import intake
from hsmcore.gateway.intake import AT_ONCE, LATELY, PLAIN_COST, SHARED, SIGN_COST, TICK, Crowd, FrameIntake


class Loop:
    """Plans, and does what is planned when it is told to."""

    def __init__(self):
        self.now, self.planned = 1000.0, []

    def time(self):
        return self.now

    def call_soon(self, call, *args):
        self.planned.append((self.now, call, args))

    def call_later(self, seconds, call, *args):
        self.planned.append((self.now + seconds, call, args))

    def turn(self):
        """One iteration: what is due."""
        due = [one for one in self.planned if one[0] <= self.now]
        self.planned = [one for one in self.planned if one[0] > self.now]
        for _, call, args in due:
            call(*args)


class Flood:
    """A connection that always has more. `cost`: of each frame."""

    behind = True

    def __init__(self, cost):
        self.cost, self.taken = cost, 0

    def take(self, most):
        self.taken += most
        return most * self.cost


@pytest.fixture
def loop(monkeypatch):
    made = Loop()
    monkeypatch.setattr(intake.asyncio, "get_running_loop", lambda: made)
    return made


@pytest.mark.parametrize("cost", [PLAIN_COST, SIGN_COST, 4 * SIGN_COST, 100 * SIGN_COST])
def test_one_that_is_alone_has_as_much_in_each_turn(loop, cost):
    one, flood = FrameIntake(Crowd()), Flood(cost)
    one.offer(flood)
    for _ in range(999):
        loop.turn()
    assert abs(flood.taken * cost - 1000 * AT_ONCE) <= AT_ONCE * cost // SIGN_COST + cost


@pytest.mark.parametrize("cost", [PLAIN_COST, SIGN_COST, 4 * SIGN_COST, 100 * SIGN_COST])
def test_while_others_send_it_has_as_much_in_a_time_however_many_turns_there_are(loop, cost):
    crowd = Crowd()
    one, other, flood, quiet = FrameIntake(crowd), FrameIntake(crowd), Flood(cost), Flood(0)
    quiet.behind = False
    other.offer(quiet)
    one.offer(flood)
    flood.taken = 0
    for at in range(10_000):
        loop.now += TICK / 10
        other.offer(quiet) if at % 100 == 0 else None
        loop.turn()
    owed = 2 * (AT_ONCE * cost // SIGN_COST + cost)
    assert 0.85 * 1000 * SHARED - owed <= flood.taken * cost <= 1000 * SHARED + owed
    assert quiet.taken  # and had its turns at once


def test_what_was_refused_is_owed(loop):
    one, flood = FrameIntake(Crowd()), Flood(SIGN_COST)
    one.charge(2 * AT_ONCE)
    one.offer(flood)
    loop.turn()
    assert flood.taken == 0
    loop.turn()
    loop.turn()
    assert flood.taken


def test_others_count_for_a_while(loop):
    """Then a client has its frames by the turn again: it waits for no clock."""
    crowd = Crowd()
    one, other, flood, quiet = FrameIntake(crowd), FrameIntake(crowd), Flood(SIGN_COST), Flood(0)
    quiet.behind = False
    one.offer(flood)
    loop.turn()
    loop.turn()
    before = flood.taken
    loop.turn()
    assert flood.taken > before
    other.offer(quiet)
    for _ in range(3):
        loop.turn()  # what was planned before
    before = flood.taken
    for _ in range(100):
        loop.turn()
    assert flood.taken == before
    loop.now += 2 * LATELY
    loop.turn()
    before = flood.taken
    for _ in range(100):
        loop.turn()
    assert flood.taken >= before + 100
