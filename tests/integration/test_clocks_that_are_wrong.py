"""A wall clock that is wrong, by an hour to 400 days in either direction, for a second or an hour, at each point of a
key's life on SoftHSM: no overlap ends early, no key is destroyed or replaced early, and nothing is missed for more than
a day once the clock is right."""

from __future__ import annotations

import asyncio
import time
from itertools import product
from types import SimpleNamespace

import pytest
from tests.integration.test_rotation import Handover, rules, stored
from tests.integration.test_rotation_clock import DAY, Clocks
from tests.support.loops import one_loop
from tests.support.managers import becomes, opened
from tests.support.size import FULL
from tests.support.state_rollbacks import config_of

import hsmcore
from hsmcore.base import steady
from hsmcore.config import load
from hsmcore.manager.rotation.service import RotationService
from hsmcore.recovery import marks, state_backup
from hsmcore.recovery.state_backup import StateBackups
from hsmcore.state import keys

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


@pytest.mark.parametrize(("error", "point", "life", "lasts"), CASES if FULL else CASES[::37])
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
        ring, rotations, _ = await stored(tmp_path)
        return ring[0].state, rotations[-1].cause if rotations else ""

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


@one_loop
async def test_a_first_start_with_a_clock_that_is_ahead_puts_no_rotation_off(fresh_token, tmp_path, monkeypatch):
    world = World(monkeypatch, fresh_token().config(**rules(tmp_path)))
    monkeypatch.setattr(keys, "time", SimpleNamespace(time_ns=lambda: world.now + world.ahead))
    world.ahead = 400 * DAY
    await world.begin()
    world.ahead = 0
    await world.some_looks()
    await world.at(world.now + DAY + HOUR)
    schedule = world.manager._background.rotation.schedule

    async def counts_from_now():
        [key] = (await stored(tmp_path))[0]
        return schedule.due_ns(key.counts_from_ns) <= world.now + 31 * DAY

    await becomes(counts_from_now)
    await world.end()


@one_loop
async def test_a_rotation_that_failed_by_a_clock_that_was_ahead_is_tried_again(fresh_token, tmp_path, monkeypatch):
    world = World(monkeypatch, fresh_token().config(**rules(tmp_path, overlapDays=2)))
    manager = hsmcore.create_key_manager(world.config)
    manager.on_rotation(Handover(fails=1))
    async with manager:
        await becomes(lambda: has_dates(manager))
        await world.at(manager._background.rotation.seen.due_ns - HOUR)
        world.ahead = 400 * DAY
        await world.at(world.now + 2 * HOUR)

        async def has(status):
            return any(each.run.status == status for each in (await stored(tmp_path))[1])

        await becomes(lambda: has("failed"))
        world.ahead = 0
        await becomes(lambda: has("overlap"))


async def has_dates(manager):
    return manager._background.rotation.seen is not None


@pytest.mark.parametrize("error", ERRORS)
@one_loop
async def test_backups_drills_and_marks_come_in_time(tmp_path, monkeypatch, error):
    ahead, passed, drills, check = [error], [0], [], state_backup.check
    config = config_of(tmp_path, stateBackup={"location": str(tmp_path / "backups"), "everyHours": 1, "drillHours": 24})
    wall, boot = time.time_ns, steady.boottime
    async with opened(config) as manager:
        await becomes(lambda: has_backup(manager))
        monkeypatch.setattr(time, "time_ns", lambda: wall() + ahead[0] + passed[0])
        monkeypatch.setattr(time, "time", lambda: time.time_ns() / 1e9)
        for module in (marks, state_backup):
            monkeypatch.setattr(module, "boottime", lambda: boot() + passed[0])

        async def counted(*arguments):
            drills.append(arguments)
            return await check(*arguments)

        monkeypatch.setattr(state_backup, "check", counted)
        service = StateBackups(load(config))
        await service.look()
        assert len(drills) == 1
        ahead[0] = 0
        passed[0] = 2 * HOUR + 10**9
        made = len(list((tmp_path / "backups").iterdir()))
        await service.look()
        assert (len(list((tmp_path / "backups").iterdir())), len(drills)) == (made + 1, 1)
        passed[0] = 25 * HOUR
        await service.look()
        assert len(drills) == 2
    monkeypatch.undo()


async def has_backup(manager):
    return manager._background.state_backups.seen.drill > 0


class Slow(Handover):
    """A chain that takes its time."""

    def __init__(self):
        super().__init__()
        self.begun, self.may_end = asyncio.Event(), asyncio.Event()

    async def handover(self, old, new, km):
        self.begun.set()
        await self.may_end.wait()
        return await super().handover(old, new, km)


@pytest.mark.parametrize("error", ERRORS if FULL else ERRORS[::4])
@one_loop
async def test_a_scheduled_handover_begins_when_it_is_due_and_is_done_once(fresh_token, tmp_path, monkeypatch, error):
    world = World(monkeypatch, fresh_token().config(**rules(tmp_path, overlapDays=2)))
    manager, slow = hsmcore.create_key_manager(world.config), Slow()
    manager.on_rotation(slow)
    async with manager:
        await becomes(lambda: has_dates(manager))
        due = manager._background.rotation.seen.due_ns
        await world.at(due - 2 * HOUR)
        world.ahead = error
        await world.some_looks()
        assert not slow.begun.is_set(), "a wrong clock began it"
        world.ahead = 0
        world.passed += due + HOUR - world.now
        await slow.begun.wait()  # the service looks at nothing else meanwhile
        world.ahead = error  # and wrong while it is under way
        world.passed += HOUR
        slow.may_end.set()

        async def is_done():
            return (await stored(tmp_path))[1][-1].run.step == "deactivate"

        await becomes(is_done)
        await world.some_looks()
        assert [call[0] for call in slow.calls] == ["handover"]
        assert [key.state for key in (await stored(tmp_path))[0]] == ["overlap", "active"]
        world.ahead = 0
        await world.at(due + 2 * DAY - HOUR)
        assert [key.state for key in (await stored(tmp_path))[0]] == ["overlap", "active"]
        for _ in range(3):  # a date of a clock that was ahead counts once they agree
            await world.at(world.now + DAY)

        async def is_over():
            return (await stored(tmp_path))[0][0].state == "deactivated"

        await becomes(is_over)
        assert [call[0] for call in slow.calls] == ["handover"]
