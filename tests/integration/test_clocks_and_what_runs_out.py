"""A wall clock that is wrong, by an hour to 400 days in either direction, for a second or an hour, running, over a
restart and over another boot: budgets, sums of a minute, messages bound to a key, records that expire, and roles."""

from __future__ import annotations

import hashlib
import time
from contextlib import asynccontextmanager
from itertools import product
from types import SimpleNamespace

import pytest
from tests.integration.test_clocks_that_are_wrong import DAY, ERRORS, HOUR, LIVES
from tests.support.audit_logs import settings
from tests.support.loops import one_loop
from tests.support.size import FULL

from hsmcore.audit import AuditLog
from hsmcore.audit.open_log import OpenLog
from hsmcore.base import steady
from hsmcore.errors import PolicyRefused
from hsmcore.failover import bindings
from hsmcore.failover.bindings import KeyBindings, StoredBindings
from hsmcore.failover.budget import Emergency, Limits
from hsmcore.failover.errors import EmergencyRefused
from hsmcore.state import Store
from hsmcore.state.postgres import roles
from hsmcore.state.postgres.roles import RolesSeen

pytestmark = pytest.mark.integration
SECOND = 10**9
MINUTE = 60 * SECOND
CASES = [(*case, lasts) for case in product(ERRORS, LIVES) for lasts in (SECOND, HOUR)]
cases = pytest.mark.parametrize(("error", "life", "lasts"), CASES if FULL else CASES[::5])


class Machine:
    """A machine, whose wall clock may be wrong and which may boot. `passed`: how much more time has passed."""

    def __init__(self, monkeypatch):
        self.ahead = self.passed = 0
        self.name, self.since = "first", 0
        wall, boot, monotonic, put = time.time_ns, steady.boottime, time.monotonic_ns, OpenLog._put
        monkeypatch.setattr(time, "time_ns", lambda: wall() + self.passed + self.ahead)
        monkeypatch.setattr(time, "time", lambda: time.time_ns() / SECOND)
        for module in (steady, roles):
            monkeypatch.setattr(module, "boottime", lambda: boot() + self.passed - self.since)
        monkeypatch.setattr(steady, "_boot", lambda: self.name)
        monkeypatch.setattr(bindings, "monotonic_ns", lambda: monotonic() + self.passed)
        monkeypatch.setattr(OpenLog, "_put", lambda log, _now, *record: put(log, time.time_ns(), *record))

    def boots(self):
        self.since += steady.boottime() - SECOND
        self.name = "another"

    @asynccontextmanager
    async def wrong(self, error, life, lasts, process):
        """The clock is wrong during the block, and for `lasts`; `process` has `end` and `begin`."""
        if life != "running":
            await process.end()
        if life == "another boot":
            self.boots()
        self.ahead = error
        if life != "running":
            await process.begin()
        yield
        self.passed += lasts
        self.ahead = 0


@pytest.fixture
def machine(monkeypatch):
    return Machine(monkeypatch)


class Process:
    """What a process has open on a store: `make` of it."""

    def __init__(self, place, make):
        self.place, self.make = place, make

    async def begin(self):
        self.store = await Store.open(self.place)
        self.made = self.make(self.store)

    async def end(self):
        if hasattr(self.made, "close"):
            await self.made.close()
        await self.store.close()


async def is_refused(asked):
    try:
        await asked
    except (EmergencyRefused, PolicyRefused):
        return True
    return False


@pytest.mark.parametrize("begun", ["before", "meanwhile"])
@cases
@one_loop
async def test_a_budget_neither_ends_early_nor_lasts_longer(tmp_path, machine, error, life, lasts, begun):
    process = Process(tmp_path / "state.db", lambda store: Emergency(store, Limits(50, 3 * 3600)))
    await process.begin()
    await process.made.begin()
    if begun == "before":
        await process.made.spend(17)  # no block is left
    first = machine.passed
    machine.passed += 600 * SECOND
    # After another boot a clock is believed up to a day ahead of what is known, and taken back after a day (0052).
    believed = life == "another boot" and error > 0
    async with machine.wrong(error, life, lasts, process):
        if begun == "meanwhile":
            first = machine.passed
        if begun == "meanwhile" or not believed:
            assert not await is_refused(process.made.spend(17))
    if not believed:
        machine.passed += 600 * SECOND
        assert not await is_refused(process.made.spend(1))
        await process.end()  # and the right clock at a restart
        await process.begin()
        assert not await is_refused(process.made.spend(1))
    assert (await process.made.status()).first_ns is not None
    for _ in range(4 if believed else 0):
        machine.passed += DAY // 2 + HOUR
        await is_refused(process.made.spend(1))
    # How long the boot took is not known where the clock is behind: the time of before it ends at the last mark.
    late = 2 * DAY if believed else 600 * SECOND if life == "another boot" else 0
    machine.passed = max(machine.passed, first + late + 3 * HOUR + MINUTE)
    assert await is_refused(process.made.spend(1))
    await process.end()
    await process.begin()
    assert await is_refused(process.made.spend(1))
    await process.made.reset("the operator has looked")
    assert not await is_refused(process.made.spend(1))
    await process.end()


@cases
@one_loop
async def test_a_message_stays_bound_for_its_time_and_no_longer(tmp_path, machine, error, life, lasts):
    process = Process(tmp_path / "state.db", lambda store: KeyBindings(StoredBindings(store)))
    nothing = SimpleNamespace(enabled=False)
    await process.begin()
    await process.made.restore(nothing)
    process.made.add(b"m", b"key", bindings.monotonic_ns())
    await process.made._saving.finish()
    machine.passed += 10 * SECOND
    async with machine.wrong(error, life, lasts, process):
        if life != "running":
            await process.made.restore(nothing)
        process.made.forget(bindings.monotonic_ns())
        assert process.made.get(b"m") == b"key"
        process.made.add(b"n", b"key", bindings.monotonic_ns())
    if lasts < MINUTE:
        await process.end()
        await process.begin()
        await process.made.restore(nothing)
        assert (process.made.get(b"m"), process.made.get(b"n")) == (b"key", b"key")
    machine.passed += 121 * SECOND
    process.made.forget(bindings.monotonic_ns())
    assert not process.made
    await process.end()
    await process.begin()
    await process.made.restore(nothing)
    assert not process.made
    await process.end()


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("life", LIVES[1:])
@one_loop
async def test_what_a_crash_left_is_bound_with_a_clock_that_is_wrong(tmp_path, machine, error, life):
    path = tmp_path / "log" / "audit.log"
    log = AuditLog(str(path), settings())
    await log.open()
    log.record("sign", result="ok", message=b"m", public_key="ab" * 32, signature=bytes(64))
    await log.close()
    if life == "another boot":
        machine.boots()
    machine.ahead = error
    log = AuditLog(str(path), settings())
    await log.open()
    [row] = await bindings.left_by_a_crash(log)
    assert row.digest == hashlib.sha256(b"m").digest()
    store = await Store.open(tmp_path / "state.db")
    made = KeyBindings(StoredBindings(store))
    await made.restore(log)
    assert made.get(b"m") == bytes.fromhex("ab" * 32)
    await made.close()
    await store.close()
    await log.close()


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("lasts", [SECOND, HOUR])
def test_a_role_is_taken_from_a_holder_that_is_silent_and_from_no_other(machine, error, lasts):
    """The database's clock is wrong; the holder renews each second for a role of three seconds."""
    seen, row = RolesSeen("a database"), (1, "another", 0)

    def is_free(renewed):
        nonlocal row
        now = time.time_ns()
        if renewed:
            row = (1, "another", now + 3 * SECOND)
        return seen.is_free("rotation", row, now, 3.0)

    for second in range(40):
        machine.ahead = error if 10 <= second < 20 else 0
        assert not is_free(renewed=second not in (10, 20)), "it was taken from a holder that lives"
        machine.passed += SECOND
    machine.ahead = error
    assert not is_free(renewed=True)
    machine.passed += lasts
    machine.ahead = 0
    is_free(renewed=False)
    machine.passed += 3 * SECOND
    assert is_free(renewed=False), "it is held although its holder is gone"
