"""The state store: migrations, two users at once, budgets against a reference model, history and desired state."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import json
import os
import sqlite3
import stat
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sqlalchemy import select
from tests.support.child import in_fork
from tests.support.loops import one_loop
from tests.support.managers import until
from tests.support.size import share

from hsmcore.base import steady
from hsmcore.config.secret import Secret
from hsmcore.errors import BadArgument
from hsmcore.failover import history as module
from hsmcore.failover.budget import BLOCK, SECOND, Emergency, Limits
from hsmcore.failover.errors import EmergencyRefused
from hsmcore.failover.events import Event
from hsmcore.failover.history import History
from hsmcore.manager.rotation import store as rotation_store
from hsmcore.manager.rotation.machine import Run
from hsmcore.manager.rotation.store import Rotations
from hsmcore.state import Desired, Keys, Outbox, Store, StoreBusy, StoreError, schema
from hsmcore.state import outbox as outbox_module
from hsmcore.state.clock import StoreClock
from hsmcore.state.schema import EMERGENCY_EPISODE as EPISODE
from hsmcore.state.schema import METADATA, MIGRATIONS
from hsmcore.state.schema import ROTATION_SETTING as SETTING
from hsmcore.state.sealed_rows import fingerprint


async def test_it_is_private_and_survives(tmp_path):
    path = tmp_path / "made" / "state.db"
    for expected in (0, 1):
        store = await Store.open(path)
        history = History(store)
        assert len(await history.query()) == expected
        await history.note(Event("outage", reason="first"))
        modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
        assert modes == dict.fromkeys(("state.db", "state.db-wal", "state.db-shm"), 0o600)
        await store.close()
        await store.close()
        with pytest.raises(StoreError, match="closed"):
            await history.query()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


@one_loop
async def test_the_migrations_make_the_tables_that_the_code_knows(tmp_path):
    store = await Store.open(tmp_path / "state.db")
    await store.close()
    with sqlite3.connect(tmp_path / "state.db") as connection:
        for table in METADATA.tables.values():
            rows = connection.execute(f"PRAGMA table_info({table.name})").fetchall()
            assert [row[1] for row in rows] == [column.name for column in table.columns]
            assert [bool(row[3]) or bool(row[5]) for row in rows] == [
                not column.nullable or column.primary_key for column in table.columns
            ]
        assert connection.execute("SELECT version FROM schema_version").fetchall() == [(m.number,) for m in MIGRATIONS]
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()


@one_loop
async def test_a_newer_store_is_refused_and_an_older_one_not_read(tmp_path):
    path = tmp_path / "state.db"
    await (await Store.open(path)).close()
    connection = sqlite3.connect(path)
    connection.execute("INSERT INTO schema_version VALUES (999, 0)")
    connection.commit()
    with pytest.raises(StoreError, match=r"newer version.*schema 999") as caught:
        await Store.open(path)
    assert caught.value.hint == "Use that version, or name another stateFile."
    connection.execute("DELETE FROM schema_version WHERE version > 8")
    connection.commit()
    connection.close()
    with pytest.raises(StoreError, match=r"older version .* lacks schema 9") as caught:
        await Store.open_to_read(path)
    assert caught.value.hint == "Start the key manager with this version, which brings it up to date."
    with pytest.raises(StoreError, match="there is none yet") as caught:
        await Store.open_to_read(tmp_path / "other.db")
    assert caught.value.hint == "The first start of a key manager makes it."


@one_loop
@pytest.mark.parametrize("content", [b"not a database, but long enough to look like one" * 100, None])
async def test_what_is_no_store_is_refused(tmp_path, content):
    path = tmp_path / "state.db"
    path.write_bytes(content) if content is not None else path.mkdir()
    with pytest.raises(StoreError, match="state store") as caught:
        await Store.open(path)
    assert "stateFile" in caught.value.hint


@one_loop
async def test_opening_that_is_cancelled_leaves_nothing(place):
    for _ in range(10):
        task = asyncio.ensure_future(Store.open(place))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


@one_loop
async def test_a_role_is_held_by_one(place):
    first, second = await Store.open(place), await Store.open(place)
    async with first.exclusively("rotation"), second.exclusively("other"):
        with pytest.raises(StoreBusy, match="rotation"):
            async with second.exclusively("rotation"):
                pass
    async with second.exclusively("rotation"):
        pass
    await first.close()
    await second.close()


# ---- several Stores of a process on one file -------------------------------------------------------------------------


def lock_holder(path):
    """Which process keeps others from locking the database as a whole: SQLite's shared lock, which in WAL mode each
    connection holds as long as it is open. 0: none."""

    def ask():
        with path.open("r+b") as file:
            wanted = struct.pack("hhqqi0q", fcntl.F_WRLCK, os.SEEK_SET, 0x40000002, 510, 0)
            kind, _, _, _, holder = struct.unpack("hhqqi0q", fcntl.fcntl(file, fcntl.F_GETLK, wanted))
        return 0 if kind == fcntl.F_UNLCK else holder

    return in_fork(ask)


def noted(path):
    """What another process reads, and leaves behind: as the last one, it would delete the log that is in use."""

    async def read():
        store = await Store.open(path)
        rows = await History(store).query()
        await store.close()
        return [row["reason"] for row in rows]

    return in_fork(lambda: asyncio.run(read()))


@one_loop
@pytest.mark.parametrize("opener", [Store.open, Store.open_to_read])
async def test_the_locks_outlast_a_store_that_comes_and_goes(tmp_path, opener):
    path = tmp_path / "state.db"
    first = await Store.open(path)
    assert lock_holder(path) == os.getpid()
    await (await opener(path)).close()
    assert lock_holder(path) == os.getpid()
    await History(first).note(Event("outage", reason="still here"))
    await first.close()
    assert lock_holder(path) == 0


def test_threads_that_make_a_store_at_the_same_time_share_it(tmp_path):
    """Each with a loop of its own, by different names; each may close it while others go on."""
    (tmp_path / "link").symlink_to(tmp_path)
    names = [tmp_path / "state.db", tmp_path / "link" / "state.db", f"{tmp_path}/link/../{tmp_path.name}/state.db"]
    start, opened, closed = threading.Barrier(6), threading.Barrier(7), threading.Barrier(7)

    async def use(number):
        start.wait(30)
        store = await Store.open(names[number % 3])
        await History(store).note(Event("outage", reason=f"{number}"))
        opened.wait(30)
        if number % 2:
            await store.close()
        closed.wait(30)
        if not number % 2:
            await History(store).note(Event("outage", reason=f"{number}"))
            await store.close()

    users = [threading.Thread(target=lambda number=number: asyncio.run(use(number))) for number in range(6)]
    for user in users:
        user.start()
    opened.wait(30)
    assert len(connections(tmp_path)) == 1
    assert lock_holder(names[0]) == os.getpid()
    closed.wait(30)
    for user in users:
        user.join(30)
    assert sorted(noted(names[0])) == sorted([*"012345", *"024"])


def connections(folder):
    """The descriptors that this process has of the database itself."""
    database, found = str(folder.resolve() / "state.db"), []
    for link in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # it was closed after it was listed
            found.append(os.readlink(link))  # noqa: PTH115
    return [link for link in found if link == database]


def test_a_process_that_writes_to_a_new_file_delays_the_store_and_does_not_fail_it(tmp_path):
    """SQLite does not wait when it is told to use the WAL while another process has the write lock."""
    path = tmp_path / "state.db"
    path.touch(0o600)
    program = (
        "import sqlite3, sys\nwriter = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "writer.execute('BEGIN IMMEDIATE')\nprint('writing', flush=True)\nsys.stdin.read()"
    )

    async def use(writer):
        opening = asyncio.ensure_future(Store.open(path))
        await asyncio.sleep(0.2)
        assert not opening.done()
        writer.stdin.close()
        await (await opening).close()

    command = [sys.executable, "-c", program, path]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as writer:
        assert writer.stdout.readline() == b"writing\n"
        asyncio.run(use(writer))


def test_processes_that_make_a_store_at_the_same_time_share_it(tmp_path):
    paths = [tmp_path / f"{number}" / "state.db" for number in range(10)]

    async def use(name):
        for path in paths:
            store = await Store.open(path)
            await History(store).note(Event("outage", reason=name))
            await store.close()

    reading, writing = os.pipe()
    children = []
    for number in range(4):
        children.append(os.fork())
        if not children[-1]:
            try:
                os.close(writing)
                os.read(reading, 1)  # until the last one is there
                asyncio.run(use(f"{number}"))
                os._exit(0)
            finally:
                os._exit(1)
    os.close(reading)
    os.close(writing)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 4
    for path in paths:
        assert sorted(noted(path)) == [*"0123"]
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_checkpoints_of_several_processes_are_not_taken_for_those_of_another_program(tmp_path, monkeypatch):
    monkeypatch.setattr("hsmcore.state.sqlite._CHECKPOINT_EVERY", 2)
    path = tmp_path / "state.db"
    rounds, notes = 6, 8

    async def use():
        for _ in range(rounds):  # the file is opened and closed between others' checkpoints, too
            store = await Store.open(path)
            for _ in range(notes):
                await History(store).note(Event("outage", reason="noted"))
            assert not store.problems
            await store.close()

    def one():
        try:
            asyncio.run(use())
            os._exit(0)
        finally:
            os._exit(1)

    children = [os.fork() or one() for _ in range(4)]
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 4
    assert len(noted(path)) == 4 * rounds * notes


@pytest.mark.parametrize("is_killed", [False, True], ids=["alone", "after a checkpoint that was cut short"])
@one_loop
async def test_a_file_that_another_program_has_written_to_takes_nothing_more(tmp_path, monkeypatch, is_killed):
    path = tmp_path / "state.db"
    if is_killed:
        store = await Store.open(path)
        await History(store).note(Event("outage", reason="first"))
        await store.run(lambda connection: connection.exec_driver_sql("PRAGMA application_id = 0"))
        await store.close()
    first = await Store.open(path)
    await History(first).note(Event("outage", reason="kept"))
    with path.open("ab") as file:
        file.write(bytes(4096))
    for _ in range(2):
        with pytest.raises(StoreError, match="another program has written to it"):
            await History(first).note(Event("outage", reason="lost"))
    assert list(first.problems) == ["file"]
    await first.close()
    again = await Store.open(path)  # by its rows, a later start judges it
    await History(again).note(Event("outage", reason="later"))
    await again.close()


@one_loop
async def test_what_is_committed_does_not_fail_for_a_checkpoint_without_descriptors(tmp_path, monkeypatch):
    monkeypatch.setattr("hsmcore.state.sqlite._CHECKPOINT_EVERY", 1)
    path, opened = tmp_path / "state.db", os.open
    store = await Store.open(path)
    await History(store).note(Event("outage", reason="first"))

    def none_left(name, *arguments, **named):
        if name == tmp_path:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return opened(name, *arguments, **named)

    monkeypatch.setattr(os, "open", none_left)
    await History(store).note(Event("outage", reason="second"))
    monkeypatch.undo()
    await store.close()
    assert noted(path) == ["first", "second"]


@one_loop
async def test_a_role_is_held_by_one_whatever_the_file_is_called(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path)
    first, second = await Store.open(tmp_path / "s.db"), await Store.open(tmp_path / "link" / "s.db")
    async with first.exclusively("rotation"):
        with pytest.raises(StoreBusy, match="rotation"):
            async with second.exclusively("rotation"):
                pass
    await first.close()
    await second.close()


@one_loop
async def test_a_forked_child_leaves_an_open_store_alone(tmp_path):
    """SQLite in the child believes that it holds locks, which only the parent has."""
    path = tmp_path / "state.db"
    store = await Store.open(path)

    def inherited():
        asyncio.run(History(store).query())

    assert in_fork(inherited, 10) == "StoreError"
    for opener in (Store.open, Store.open_to_read):
        assert in_fork(lambda opener=opener: asyncio.run(opener(path)), 10) == "StoreError"
    assert in_fork(lambda: asyncio.run(store.close()), 10) is None
    await History(store).note(Event("outage", reason="the parent goes on"))
    await store.close()
    assert noted(path) == ["the parent goes on"]


@one_loop
async def test_a_file_that_was_replaced_is_another_one(tmp_path):
    path = tmp_path / "state.db"
    old = await Store.open(path)
    await History(old).note(Event("outage", reason="lost"))
    for file in tmp_path.iterdir():
        file.unlink()
    new = await Store.open(path)
    await History(new).note(Event("outage", reason="kept"))
    assert [row["reason"] for row in await History(new).query()] == ["kept"]
    await old.close()
    await new.close()
    assert noted(path) == ["kept"]


@one_loop
async def test_closing_that_is_cancelled_closes(tmp_path):
    path = tmp_path / "state.db"
    store = await Store.open(path)
    gate = threading.Event()
    waiting = asyncio.ensure_future(store.run(lambda _: gate.wait(30)))
    closing = asyncio.ensure_future(store.close())
    await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    gate.set()
    assert await waiting
    await until(lambda: not connections(tmp_path))
    assert lock_holder(path) == 0


@one_loop
async def test_several_users_of_one_store_never_spend_more_than_there_is(place):
    stores = [await Store.open(place) for _ in range(3)]
    budgets = [Emergency(store, Limits(200, 60)) for store in stores]
    spent = 0

    async def spender(budget):
        nonlocal spent
        while True:
            try:
                await budget.spend()
            except EmergencyRefused:
                return
            spent += 1

    await asyncio.gather(*(spender(budget) for budget in budgets for _ in range(20)))
    # What one has reserved and another wants is wasted, less than a block each.
    assert 200 - 2 * BLOCK < spent <= 200
    for store in stores:
        await store.close()


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("spend"), st.integers(1, 40)),
        st.tuples(st.just("give back"), st.just(1)),
        st.tuples(st.just("crash"), st.just(0)),
        st.tuples(st.just("restart"), st.just(0)),
        st.tuples(st.just("reboot"), st.just(0)),
        st.tuples(st.just("time"), st.integers(0, 40)),
        st.tuples(st.just("clock back"), st.integers(1, 100_000)),
        st.tuples(st.just("reset"), st.just(0)),
        st.tuples(st.just("reset elsewhere"), st.just(0)),
        st.tuples(st.just("cancelled"), st.integers(1, 20)),
    ),
    max_size=40,
)


@dataclass
class Episode:
    """How many were used, when the first one was, and how many a crash may have wasted."""

    used: int = 0
    first: int | None = None
    wasted: int = 0


class Play:
    """One budget and the reference. A boot loses the time since the last reservation and the last start of a clock,
    which leaves a mark, unless the wall clock knows better."""

    def __init__(self, folder, most, seconds):
        self.path, self.limits = Path(folder) / "state.db", Limits(most, seconds)
        self.now = self.wall = self.boot = 1_000_000 * SECOND  # so late that a first mark is due
        self.boots = self.number = self.latest = self.marked = 0
        self.episodes, self.given = defaultdict(Episode), []

    async def open(self):
        self.store = await Store.open(self.path)
        self.budget = Emergency(self.store, self.limits, lambda: self.wall, lambda: self.boot)
        self.given.clear()
        await self.budget.begin()
        self.marked = self.now
        await self._look()

    async def _look(self):
        """The episode that the store has."""
        query = select(EPISODE.c.id, EPISODE.c.latest_ns).where(EPISODE.c.ended_ns.is_(None))
        for row in await self.store.rows(query):
            self.number, self.latest = row["id"], row["latest_ns"]
            assert self.latest <= self.now

    def over(self, episode):
        return episode.first is not None and self.now >= episode.first + self.limits.max_seconds * SECOND

    async def spend(self, units):
        try:
            number = await self.budget.spend(units)
        except EmergencyRefused as error:
            await self._look()
            episode = self.episodes[self.number]
            over = self.over(episode)
            assert not over or "time" in str(error)  # noqa: PT017  # both outcomes are judged
            assert over or episode.used + units + episode.wasted > self.limits.max_transactions
        else:
            await self._look()
            self._used(number, units)

    def _used(self, number, units):
        episode = self.episodes[number]
        episode.first = self.now if episode.first is None else episode.first
        episode.used += units
        assert episode.used <= self.limits.max_transactions, "more than there were"
        assert not self.over(episode), "later than allowed"
        self.given.append(number)

    async def give_back(self, _value):
        if self.given:
            number = self.given.pop(0)
            self.budget.give_back(number)
            self.episodes[number].used -= 1

    async def cancelled(self, units):
        task = asyncio.ensure_future(self.budget.spend(units))
        await asyncio.sleep(0)
        task.cancel()
        [result] = await asyncio.gather(task, return_exceptions=True)
        begun = (await self.budget.status()).first_ns is not None
        await self._look()
        if isinstance(result, int):
            self._used(result, units)
        episode = self.episodes[self.number]
        if begun and episode.first is None:
            episode.first = self.now

    async def crash(self, _value):
        self.episodes[self.number].wasted += BLOCK + 40  # the rest of a block, or of what was asked for
        await self._again()

    async def restart(self, _value):
        await self.budget.close()
        await self._again()

    async def reboot(self, _value):
        self.boots, self.boot = self.boots + 1, SECOND
        self.now = min(self.now, max(self.wall, self.latest, self.marked))
        await self.crash(0)

    async def _again(self):
        await self.store.close()
        await self.open()

    async def time(self, seconds):
        self.now += seconds * SECOND
        self.boot += seconds * SECOND
        self.wall += seconds * SECOND

    async def clock_back(self, seconds):
        self.wall -= seconds * SECOND

    async def reset(self, _value):
        await self.budget.reset("an exercise")

    async def reset_elsewhere(self, _value):
        await Emergency(self.store, self.limits, lambda: self.wall, lambda: self.boot).reset("elsewhere")
        self.marked = self.now


@settings(max_examples=share(60), suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(most=2, seconds=1, steps=[("cancelled", 9)])
@example(most=1, seconds=1, steps=[("time", 1), ("clock back", 1), ("reset elsewhere", 0), ("reboot", 0)])
@example(most=100, seconds=10, steps=[("spend", 1), ("time", 9), ("spend", 40), ("clock back", 3600), ("reboot", 0),
                                      ("time", 5), ("spend", 1)])  # fmt: skip
@example(
    most=9,
    seconds=10,
    steps=[("spend", 1), ("time", 9), ("clock back", 3600), ("restart", 0), ("time", 1), ("spend", 1)],
)
@example(most=5, seconds=10, steps=[("spend", 1), ("reset", 0), ("give back", 1), ("spend", 1), ("spend", 5)])
@example(most=5, seconds=10, steps=[("spend", 1), ("reset", 0), ("spend", 1), ("give back", 1), ("spend", 5)])
@example(most=100, seconds=10, steps=[("spend", 1), ("reset elsewhere", 0), *[("spend", 20)] * 5, ("spend", 1)])
@given(most=st.integers(1, 100), seconds=st.integers(1, 100), steps=STEPS)
def test_a_budget_is_kept_whatever_happens(caplog, most, seconds, steps):
    async def play(folder):
        game = Play(folder, most, seconds)
        patch.setattr(steady, "_boot", lambda: f"{game.boots}")
        await game.open()
        for step, value in steps:
            await getattr(game, step.replace(" ", "_"))(value)
        found = await game.budget.status()
        assert found.reserved >= game.episodes[found.episode].used
        await game.store.close()

    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        asyncio.run(play(folder))
    assert "never retrieved" not in caplog.text  # a refusal for a caller that left is nobody's


@one_loop
async def test_a_clock_keeps_its_mark_once_an_hour_and_none_that_goes_on_from_another_s_time(place):
    now = [1_000_000 * SECOND]
    store = await Store.open(place)
    clock = StoreClock(store, lambda: now[0], lambda: now[0])

    async def kept_at():
        assert await clock.follow() == clock.now()
        [row] = await store.rows(select(SETTING.c.value).where(SETTING.c.name == "clock"))
        return json.loads(row["value"])["at"]

    for passed, kept in ((0, 0), (3_599, 0), (1, 3_600), (3_599, 3_600), (1, 7_200)):
        now[0] += passed * SECOND
        assert await kept_at() == (1_000_000 + kept) * SECOND
    clock.reach(clock.now() + steady.STEP_NS - 1)
    now[0] += 3_600 * SECOND
    assert await kept_at() == now[0]
    before = now[0]
    for ahead in (steady.STEP_NS, 0):
        clock.reach(clock.now() + ahead)
        now[0] += 3_600 * SECOND
        assert await kept_at() == before
    await store.close()


@one_loop
async def test_a_clock_that_is_a_day_ahead_for_a_moment_uses_up_no_budget(place):
    wall, boot = [1_000 * SECOND], [0]
    store = await Store.open(place)
    budget = Emergency(store, Limits(50, 60), lambda: wall[0], lambda: boot[0])
    await budget.spend()
    wall[0] += 86_400 * SECOND
    assert (await budget.status()).usable
    for _ in range(30):
        await budget.spend()
    wall[0] -= 86_400 * SECOND
    await budget.spend()
    wall[0] += 60 * SECOND
    boot[0] += 60 * SECOND
    with pytest.raises(EmergencyRefused, match="time"):
        await budget.spend()
    await store.close()


@one_loop
async def test_the_latest_time_that_a_process_has_told_counts_in_every_one(place):
    ahead, boot = 5 * SECOND, [1_000 * SECOND]
    store = await Store.open(place)
    here, there = (Emergency(store, Limits(90, 60), lambda by=by: boot[0] + by, lambda: boot[0]) for by in (0, ahead))
    await here.spend()
    boot[0] += 52 * SECOND
    await there.spend(20)
    await here.spend(20)
    boot[0] += 4 * SECOND
    assert here.try_spend() == 0
    with pytest.raises(EmergencyRefused, match="time"):
        await here.spend()
    await store.close()


@one_loop
async def test_limits_may_become_stricter_at_once_and_laxer_after_a_reset(place):
    store = await Store.open(place)
    await Emergency(store, Limits(50, 60)).spend(10)
    assert (await Emergency(store, Limits(20, 60)).status()).left == 4
    lax = Emergency(store, Limits(500, 6000))
    assert (await lax.status()).max_transactions == 50
    with pytest.raises(EmergencyRefused):
        await lax.spend(100)
    with pytest.raises(BadArgument, match="reason"):
        await lax.reset("  ")
    ended = await lax.reset("drill")
    assert ended.reserved == 16
    await lax.spend(100)
    assert (await lax.status()).left == 400
    await store.close()


@one_loop
async def test_a_status_begins_nothing_and_says_what_is_left(place):
    store = await Store.open(place)
    budget = Emergency(store, Limits(50, 60))
    for _ in range(2):
        found = await budget.status()
        assert (found.episode, found.first_ns, found.reserved, found.left, found.usable) == (None, None, 0, 50, True)
    begun = await budget.begin()
    assert (begun.episode, begun.first_ns, begun.expires_ns, begun.left) == (1, None, None, 50)
    await budget.spend()
    found = await budget.status()
    assert (found.episode, found.reserved, found.left, found.held) == (1, BLOCK, 50 - BLOCK, BLOCK - 1)
    assert found.expires_ns == found.first_ns + 60 * SECOND
    strict, lax = [await Emergency(store, Limits(50, seconds)).status() for seconds in (10, 600)]
    assert (strict.expires_ns, lax.expires_ns) == (found.first_ns + 10 * SECOND, found.expires_ns)
    await budget.spend(20)  # with the rest of the block
    assert (await budget.status()).reserved == 2 * BLOCK
    assert await budget.spend(29)
    found = await budget.status()
    assert (found.left, found.held, found.usable) == (0, 0, False)
    await budget.close()
    await store.close()


@one_loop
async def test_what_the_store_has_forgotten_is_counted_again(place):
    now = [1_000 * SECOND]
    store = await Store.open(place)
    budget = Emergency(store, Limits(50, 60), lambda: now[0], lambda: now[0])
    assert await budget.count(10, 995 * SECOND) == 40
    found = await budget.status()
    assert (found.first_ns, found.reserved, found.expired) == (995 * SECOND, 10, False)
    assert await budget.count(10, 999 * SECOND) == 30
    assert (await budget.status()).first_ns == 995 * SECOND
    assert await budget.count(1000, 990 * SECOND) == 0
    found = await budget.status()
    assert (found.first_ns, found.reserved) == (990 * SECOND, 50)
    now[0] = 1_050 * SECOND - 1
    assert not (await budget.status()).expired
    now[0] += 1
    assert (await budget.status()).expired
    await store.close()


@pytest.mark.parametrize(("most", "reserved"), [(2 * BLOCK, 1), (2 * BLOCK + 1, BLOCK)])
@one_loop
async def test_the_last_two_blocks_are_reserved_by_the_unit_and_a_close_gives_the_rest_back(place, most, reserved):
    store = await Store.open(place)
    budget = Emergency(store, Limits(most, 60))
    await budget.spend()
    assert (await budget.status()).reserved == reserved
    await budget.close()
    assert budget.try_spend() == 0
    assert (await budget.status()).reserved == 1
    await store.close()


@one_loop
@pytest.mark.parametrize("use", ["begin", "spend", "count", "reset"])
async def test_units_are_counted_by_the_time_that_the_store_knows(place, use):
    """Whatever is done first by a process whose clock is ahead."""
    now = 1_000_000 * SECOND
    store = await Store.open(place)
    here = Emergency(store, Limits(50, 60), lambda: now, lambda: now)
    await here.reset("so that there is a mark")
    if use == "reset":
        await here.begin()
    ahead = Emergency(store, Limits(50, 60), lambda: now + 2 * steady.HELD_NS, lambda: now)
    arguments = {"count": (1, now), "reset": ("by the one that is ahead",)}
    await getattr(ahead, use)(*arguments.get(use, ()))
    [row] = await store.rows(select(EPISODE))
    assert (row["began_ns"], row["ended_ns"]) == (now, now if use == "reset" else None)
    assert row["reserved"] == {"spend": BLOCK, "count": 1}.get(use, 0)
    await store.close()


@one_loop
async def test_a_reset_elsewhere_takes_what_was_reserved(place):
    store = await Store.open(place)
    here, there = Emergency(store, Limits(20, 60)), Emergency(store, Limits(20, 60))
    before = await here.spend()
    await there.reset("elsewhere")
    assert not (await here.status()).expired
    here.give_back(before)  # of an attempt that went on meanwhile
    assert here.try_spend() == 0  # its block belonged to the old episode
    before = await here.spend()
    await here.reset("here")
    here.give_back(before)
    assert here.try_spend() == 0
    await here.spend(20)
    with pytest.raises(EmergencyRefused, match="20 signatures is used up"):
        await here.spend()
    await store.close()


@one_loop
async def test_history_is_queried_by_time_kind_and_member(place):
    store = await Store.open(place)
    history = History(store)
    kinds = ["failover", "member-down", "failback"]
    events = [(n, Event(kinds[n % 3], "primary", "secondary", f"m{n % 2}", "why", {"n": n})) for n in range(30)]
    await history.append(events)

    async def numbers(*args, **kwargs):
        return [row["details"]["n"] for row in await history.query(*args, **kwargs)]

    assert await numbers() == list(range(30))
    assert await numbers(5, 7) == [5, 6, 7]
    assert await numbers(kinds=["failover"], limit=2) == [24, 27]
    assert await numbers(member="m1", since_ns=26) == [27, 29]
    assert await numbers(after=28) == [28, 29]
    assert await history.newest() == 30
    await store.close()


DAY = 86_400 * SECOND


async def looked(what):
    return [row["id"] for row in await what]


@one_loop
async def test_history_is_kept_by_age_and_number(place, monkeypatch):
    """The newest events stay whatever a clock says, and the oldest go however young they are; in portions."""
    now = 1000 * DAY
    monkeypatch.setattr(module, "LEAST", 10)
    monkeypatch.setattr(module, "MOST", 20)
    monkeypatch.setattr(schema, "PORTION", 4)
    store = await Store.open(place)
    history, portions = History(store), []

    def removed(connection, table, where):
        portions.append(schema.remove_oldest(connection, table, where))
        return portions[-1]

    monkeypatch.setattr(module, "remove_oldest", removed)
    await history.append([(now - (30 - n) * SECOND, Event("member-up")) for n in range(1, 31)])
    await history.forget(now)
    assert await looked(history.query()) == list(range(11, 31))
    assert portions == [4, 4, 2, 0]
    await history.forget(now + 500 * DAY)
    assert await looked(history.query()) == list(range(21, 31))
    await store.close()


@one_loop
async def test_the_steps_of_open_rotations_and_of_the_newest_ones_are_kept(place, monkeypatch):
    monkeypatch.setattr(rotation_store, "LEAST", 2)
    monkeypatch.setattr(rotation_store, "MOST", 4)
    store = await Store.open(place, Secret.plain("s" * 32))
    keys, rotations = Keys(store), Rotations(store)
    current = await keys.begin("aa" * 8, b"\1" * 32, "ed25519", "key", [], "as configured")
    for number in range(1, 8):
        made = await rotations.begin("manual", current.version, f"key-{number}", None)
        status = "overlap" if number == 2 else "failed"
        await rotations.record(made.id, Run(status, "generate"), "generate", "done", {})
    now = time.time_ns()

    async def with_steps():
        return sorted({step["rotation_id"] for step in await rotations.steps()})

    await rotations.forget(now)
    assert await with_steps() == [2, 4, 5, 6, 7]
    await rotations.forget(now + 500 * DAY)
    assert await with_steps() == [2, 6, 7]
    assert len(await rotations.last()) == 7
    store.require_genuine()
    await store.close()


@one_loop
async def test_notices_that_are_to_be_delivered_are_kept(place, monkeypatch):
    monkeypatch.setattr(outbox_module, "LEAST", 1)
    monkeypatch.setattr(outbox_module, "MOST", 3)
    store = await Store.open(place)
    outbox = Outbox(store)
    for number in range(1, 7):
        assert await outbox.add("failure", f"occasion {number}", "title", "body", ["one", "other"])
    for delivery in await outbox.due(time.time_ns(), 100):
        if delivery.id > 2:
            await outbox.change(delivery.id, done_ns=1)
    await outbox.forget(time.time_ns())

    async def occasions():
        return [row["occasion"][-1] for row in await outbox.all()]

    assert await occasions() == list("11445566")
    assert await outbox.add("failure", "occasion 6", "title", "body", []) is False
    await outbox.forget(time.time_ns() + 500 * DAY)
    assert await occasions() == list("1166")
    left = await store.run(lambda on: on.exec_driver_sql("SELECT count(*) FROM notice_delivery").scalar())
    assert left == 4
    await store.close()


@one_loop
async def test_a_look_reads_no_more_of_the_steps_the_more_there_are(place):
    store = await Store.open(place)
    rotations, keys = Rotations(store), Keys(store)
    current = await keys.begin("aa" * 8, b"\1" * 32, "ed25519", "key", [], "as configured")
    made = await rotations.begin("manual", current.version, "key-2", None)
    asked = []

    def look(connection):
        execute = connection.exec_driver_sql

        def noted(query):
            rows = execute(query).all()
            asked.append(len(rows))
            return rows

        connection.exec_driver_sql = noted
        try:
            return fingerprint(connection, ("steps",))
        finally:
            del connection.exec_driver_sql

    before = await store.run(look)
    assert await store.run(look) == before
    for number in range(20):
        await rotations.note(made.id, "generate", "done", {"number": number})
    assert await store.run(look) != before
    assert set(asked) == {1}
    await store.close()


@one_loop
async def test_desired_state_and_reports_are_stored(place):
    store = await Store.open(place)
    desired = Desired(store)
    await desired.set("force", "secondary", "game day")
    await desired.set("force", "primary", "again")
    await desired.set("drain:m", "yes", "maintenance")
    await desired.set("drain:m", None, "")
    assert {name: (wish.value, wish.reason) for name, wish in (await desired.all()).items()} == {
        "force": ("primary", "again")
    }
    await desired.report("km:1", {"active": "primary"})
    [report] = await desired.reports()
    assert await desired.running() == [report]
    assert report.pop("written_ns") > 0
    assert report == {"active": "primary"}
    await desired.report("km:1", None)
    assert await desired.reports() == []
    await store.close()
