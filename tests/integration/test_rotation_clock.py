"""Rotation with a wall clock that steps, on SoftHSM: nothing that cannot be undone happens before a step has held."""

from __future__ import annotations

import time

import pytest
from tests.integration.test_rotation import rules, stored
from tests.support.loops import one_loop
from tests.support.managers import becomes, opened, until

from hsmcore.base import steady
from hsmcore.manager.rotation import service
from hsmcore.manager.rotation.clock import ACCEPTED
from hsmcore.manager.rotation.service import RotationService

pytestmark = pytest.mark.integration
DAY = 86_400_000_000_000


class Clocks:
    """The wall clock is `ahead`; both have passed `passed` more than they have."""

    def __init__(self, monkeypatch):
        self.ahead = self.passed = self.looks = 0
        see = RotationService._see

        async def look(rotation):
            await see(rotation)
            self.looks += 1

        monkeypatch.setattr(service, "LOOK_SECONDS", 0.02)
        monkeypatch.setattr(RotationService, "_see", look)
        monkeypatch.setattr(RotationService, "clock", staticmethod(lambda: time.time_ns() + self.passed + self.ahead))
        monkeypatch.setattr(RotationService, "boot", staticmethod(lambda: steady.boottime() + self.passed))

    async def some_looks(self):
        """Return when the rotation service has looked a few times more."""
        least = self.looks + 5
        await until(lambda: self.looks >= least)


@pytest.fixture
def clocks(monkeypatch):
    return Clocks(monkeypatch)


def where(step):
    async def reached(tmp_path):
        return (await stored(tmp_path))[1][0].run.step == step

    return reached


@one_loop
async def test_a_clock_that_is_wrong_for_a_moment_destroys_no_key(fresh_token, tmp_path, clocks):
    config = fresh_token().config(**rules(tmp_path, overlapDays=0, destroyAfterDays=7))
    async with opened(config) as manager:
        old = await manager.get_current_key_id()
        await manager.rotate_key()
        await becomes(lambda: where("destroy")(tmp_path))

        async def there():
            return old in {key.id for key in await manager._path.member.control.list_keys()}

        clocks.ahead = 9 * DAY
        await clocks.some_looks()
        assert await there()
        clocks.ahead = 0
        clocks.passed = 6 * DAY
        await clocks.some_looks()
        assert await there()
        clocks.passed = 8 * DAY

        async def gone():
            return not await there()

        await becomes(gone)


@one_loop
async def test_a_step_ends_an_overlap_and_begins_a_rotation_once_it_has_held_for_a_day(fresh_token, tmp_path, clocks):
    config = fresh_token().config(**rules(tmp_path, overlapDays=2))
    async with opened(config) as manager:
        new = await manager.rotate_key()
        for passed in (0, DAY - 3_600_000_000_000):
            clocks.ahead, clocks.passed = 40 * DAY, passed
            await clocks.some_looks()
            assert await manager.get_current_key_id() == new
            assert (await stored(tmp_path))[0][0].state == "overlap"
        clocks.passed = DAY

        async def goes_on():
            keys, rotations, _ = await stored(tmp_path)
            return keys[0].state == "deactivated" and rotations[-1].cause == "schedule"

        await becomes(goes_on)
        assert await manager.sign(b"m")


@one_loop
async def test_an_operator_vouches_for_the_clock(fresh_token, tmp_path, clocks):
    config = fresh_token().config(**rules(tmp_path, overlapDays=2))
    async with opened(config) as manager:
        await manager.rotate_key()
        clocks.ahead = 3 * DAY
        await clocks.some_looks()
        assert (await stored(tmp_path))[0][0].state == "overlap"
        vouched = steady.SteadyClock(RotationService.clock, RotationService.boot)
        keys = manager._background.rotation.keys
        await keys.set_setting(ACCEPTED, vouched.mark)

        async def ended():
            return (await stored(tmp_path))[0][0].state == "deactivated"

        await becomes(ended)
        assert await keys.setting(ACCEPTED) == ""
