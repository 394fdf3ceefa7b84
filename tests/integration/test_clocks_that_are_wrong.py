"""A wall clock that is wrong, by an hour to 400 days in either direction, for a second or an hour, at each point of a
key's life on SoftHSM: no overlap ends early, no key is destroyed or replaced early, and nothing is missed for more than
a day once the clock is right."""

from __future__ import annotations

import time
from itertools import product

import pytest
from tests.integration.test_rotation import rules, stored
from tests.integration.test_rotation_clock import DAY, Clocks
from tests.support.loops import one_loop
from tests.support.managers import becomes, opened
from tests.support.size import FULL

from hsmcore.base import steady
from hsmcore.manager.rotation.service import RotationService

pytestmark = pytest.mark.integration
HOUR = 3_600_000_000_000
ERRORS = [sign * size for size in (HOUR, DAY, 30 * DAY, 400 * DAY) for sign in (1, -1)]
POINTS = ["idle", "rotation", "overlap", "overlap's end", "deactivated", "destruction", "before due"]
LIVES = ["running", "restarted", "another boot"]
CASES = [
    (error, point, life, HOUR if number % 2 else 10**9)
    for number, (error, point, life) in enumerate(product(ERRORS, POINTS, LIVES))
]


class World(Clocks):
    """A machine, whose clock may be wrong and which may boot, with a key manager on it."""

    def __init__(self, monkeypatch, config):
        super().__init__(monkeypatch)
        self.config, self.booted, self.name, self.open = config, 0, "first", None
        monkeypatch.setattr(steady, "_boot", lambda: self.name)
        since = steady.boottime()
        monkeypatch.setattr(RotationService, "boot", staticmethod(lambda: steady.boottime() - since + self.passed))
        self._patch = monkeypatch

    @property
    def now(self):
        return time.time_ns() + self.passed

    async def begin(self):
        self.open = opened(self.config)
        self.manager = await self.open.__aenter__()
        await self.some_looks()

    async def end(self):
        await self.open.__aexit__(None, None, None)

    async def at(self, moment):
        """Let time pass up to a moment, by both clocks."""
        self.passed += max(moment - self.now, 0)
        await self.some_looks()

    async def is_wrong(self, error, life, lasts, meanwhile):
        """Have the wall clock wrong by `error`, as long as `lasts`."""
        if life != "running":
            await self.end()
        if life == "another boot":
            since, self.name = steady.boottime() + self.passed, "another"
            self._patch.setattr(RotationService, "boot", staticmethod(lambda: steady.boottime() + self.passed - since))
        self.ahead = error
        if life != "running":
            await self.begin()
        await self.some_looks()
        await meanwhile()
        await self.at(self.now + lasts)
        self.ahead = 0
        await self.some_looks()


@pytest.mark.parametrize(("error", "point", "life", "lasts"), CASES if FULL else CASES[::13])
@one_loop
async def test_nothing_ends_early_and_nothing_is_missed(fresh_token, tmp_path, monkeypatch, error, point, life, lasts):
    token = fresh_token()
    world = World(monkeypatch, token.config(**rules(tmp_path, overlapDays=2, destroyAfterDays=7)))
    await world.begin()
    old = await world.manager.get_current_key_id()
    begun = 0

    async def rotates():
        nonlocal begun
        begun = world.now
        await world.manager.rotate_key()

    async def nothing():
        pass

    async def wrong(here, meanwhile=nothing):
        if here == point:
            await world.is_wrong(error, life, lasts, meanwhile)

    async def state():
        keys, rotations, _ = await stored(tmp_path)
        return keys[0].state, rotations[-1].cause if rotations else ""

    async def reaches(wanted):
        async def there():
            return await state() == wanted

        await becomes(there)

    # After another boot a clock is believed up to a day ahead of what is known (decision 0052), and one that was
    # believed so is taken back after a day.
    early = DAY if life == "another boot" and error > 0 else 0
    late = DAY + 2 * HOUR + lasts + (2 * DAY if life == "another boot" else 0)
    await world.at(world.now + DAY)
    await wrong("idle")
    if point == "rotation":
        await world.is_wrong(error, life, lasts, rotates)
    else:
        await rotates()
    schedule = world.manager._background.rotation.schedule
    overlap_ends, due = schedule.overlap_ends_ns(begun), schedule.due_ns(begun)

    await world.at(begun + DAY // 2)
    await wrong("overlap")
    await world.at(overlap_ends - early - 2 * HOUR)
    await wrong("overlap's end")
    assert await state() == ("overlap", "manual")
    for _ in range(3):  # a step backwards is taken after a day, too
        await world.at(world.now + (overlap_ends + late - world.now) // 2)
    await world.at(overlap_ends + late)
    await reaches(("deactivated", "manual"))
    await wrong("deactivated")

    destroyed = overlap_ends + 7 * DAY
    await world.at(destroyed - early - 2 * HOUR)
    await wrong("destruction")
    assert await state() == ("deactivated", "manual")
    assert old in {key.id for key in await world.manager._path.member.control.list_keys()}
    await world.at(destroyed + 2 * late)
    await reaches(("destroyed", "manual"))
    assert old not in {key.id for key in await world.manager._path.member.control.list_keys()}

    await world.at(due - early - 2 * HOUR)
    await wrong("before due")
    assert await state() == ("destroyed", "manual")
    await world.at(due + late)
    await reaches(("destroyed", "schedule"))
    await world.end()
