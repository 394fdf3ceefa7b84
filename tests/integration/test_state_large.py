"""Backups of a state store with many positions: off the event loop, a portion at a time, of a file and of a server."""

from __future__ import annotations

import gc
import sqlite3
import tempfile
import threading
import time
import tracemalloc
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from tests.support.loops import one_loop
from tests.support.postgres import fleet

from hsmcore.base.places import Folder
from hsmcore.config import load
from hsmcore.config.secret import Secret
from hsmcore.manager.policy.watermark import Watermark
from hsmcore.recovery.restore import back_up, check, restore
from hsmcore.recovery.state_backup import SUFFIX, StateBackups
from hsmcore.state import Store, backup
from hsmcore.state.postgres import link
from hsmcore.state.schema import PORTION

pytestmark = pytest.mark.integration
MANY = 300_000
MEMORY = 24 << 20
"""Bytes that Python may hold at once; the store has more than twice as many."""


def rows(count):
    """A statement that makes rows of `bound`, in both dialects."""
    numbers = f"WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {count})"  # noqa: S608
    return f"INSERT INTO bound {numbers} SELECT 'd', i, '{'a' * 64}', 'host:1', 1, '{'b' * 64}' FROM n"  # noqa: S608


@pytest.fixture
def config(world, tmp_path):
    made = world.config(
        policy={"kinds": ["block"]}, stateFile=str(tmp_path / "state.db"), auditLogFile=str(tmp_path / "audit.log"),
        stateBackup={"location": str(tmp_path / "backups")},
    )  # fmt: skip
    made["sequencer"]["stateSecret"] = "s" * 32
    return load(made)


def backups_of(config):
    return sorted(Path(config.key_manager.state_backup.location).glob(f"*{SUFFIX}"))


async def fill(config):
    path = config.key_manager.state_path
    await (await Store.open(path, config.state_secret)).close()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(rows(MANY))
        connection.commit()
    assert path.stat().st_size > 2 * MEMORY


@one_loop
async def test_a_backup_and_its_drill_do_nothing_in_the_loops_thread(config, monkeypatch):
    await fill(config)
    where = []
    resolve, sha256, cleanup = Secret.resolve, backup.hashlib.sha256, tempfile.TemporaryDirectory.cleanup

    class Mapped(backup.mmap):
        def close(self):
            where.append(("unmap", threading.current_thread()))
            super().close()

    def resolved(secret):
        where.append(("stateSecret", threading.current_thread()))
        return resolve(secret)

    def digested(*data):
        if not data or len(data[0]) > 1 << 20:
            where.append(("digest", threading.current_thread()))
        return sha256(*data)

    def removed(folder):
        where.append(("remove", threading.current_thread()))
        return cleanup(folder)

    monkeypatch.setattr(backup, "mmap", Mapped)
    monkeypatch.setattr(tempfile.TemporaryDirectory, "cleanup", removed)
    monkeypatch.setattr(Secret, "resolve", resolved)
    monkeypatch.setattr(backup.hashlib, "sha256", digested)
    tracemalloc.start()
    try:
        await StateBackups(config).look()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert {what for what, _ in where} == {"stateSecret", "digest", "unmap", "remove"}
    assert threading.main_thread() not in {thread for _, thread in where}
    assert peak < MEMORY
    [made] = backups_of(config)
    assert made.stat().st_size > 2 * MEMORY


@one_loop
async def test_a_backup_from_the_future_is_none(config):
    """A clock that was ahead for a moment has dated it; with the right clock, none would be made for a month."""
    await (await Store.open(config.key_manager.state_path, config.state_secret)).close()
    backups = StateBackups(config)
    await backups.look()
    [made] = backups_of(config)
    prefix, _, digest, suffix = made.name.rsplit(".", 3)
    ahead = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(time.time() + 30 * 86_400))
    made.rename(made.with_name(f"{prefix}.{ahead}.{digest}.{suffix}"))
    await backups.look()
    assert len(backups_of(config)) == 2
    assert backups.seen.backup <= time.time()
    await backups.look()
    assert len(backups_of(config)) == 2


@one_loop
async def test_a_fleets_store_is_copied_in_portions(postgres, tmp_path, monkeypatch):
    """The server ends a transaction that is idle for a second; to write a portion may take longer."""
    portions = link.Link.portions

    def slow(own, table, most):
        for number, portion in enumerate(portions(own, table, most)):
            assert len(portion) <= MANY / 100
            if table.name == "bound" and number == 3:
                time.sleep(3 * link.IDLE_MS / 1e3)
            yield portion

    monkeypatch.setattr(link.Link, "portions", slow)
    place = fleet(postgres.database())
    store = await Store.open(place)
    try:
        await store.run(lambda connection: connection.exec_driver_sql(rows(MANY)))
        reader = await Store.open_to_read(place)
        try:
            await reader.copy_to(tmp_path / "copy.db")
        finally:
            await reader.close()
    finally:
        await store.close()
    with closing(sqlite3.connect(tmp_path / "copy.db")) as copy:
        assert copy.execute("SELECT count(*), max(position) FROM bound").fetchone() == (MANY, MANY)


@contextmanager
def at_most(size):
    """Raise AssertionError if the process has more memory in the body than before, mapped files among it."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak is what there is now
    before = peak()
    yield
    assert peak() - before < size


def peak():
    """The most memory that the process has had, in bytes."""
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) << 10


@one_loop
async def test_a_backup_takes_no_memory_of_its_size(config, tmp_path):
    """Pages of a mapped file count as the process's, until they are given back."""
    await fill(config)
    with at_most(MEMORY):
        async with back_up(config) as (_, head, body):
            await Folder(str(tmp_path), tmp_path).create("made", head, body)
        assert (tmp_path / "made").stat().st_size > 2 * MEMORY
        async with backup.mapping(tmp_path / "made") as data:
            await check(config, data)


@one_loop
async def test_a_fleets_store_is_restored_in_portions(postgres, world, tmp_path):
    made = world.config(policy={"kinds": ["block"]}, auditLogFile=str(tmp_path / "audit.log"))
    places = []
    for _ in range(2):
        store = {"url": postgres.database()}
        made["sequencer"]["keyManager"]["fleet"] = {"store": store, "name": "tests", "host": "a", "singleNode": True}
        places.append(load(made))
    first, second = places
    store = await Store.open(first.key_manager.fleet)
    await store.run(lambda connection: connection.exec_driver_sql(rows(MANY)))
    await store.close()
    told = []
    with at_most(MEMORY):
        async with back_up(first, lambda *counts: told.append(counts)) as (_, head, body):
            await Folder(str(tmp_path), tmp_path).create("made", head, body)
        async with backup.mapping(tmp_path / "made") as data:
            await restore(second, data, replace=False, told=lambda *counts: told.append(counts))
    assert min(done for done, _ in told) < MANY / 100
    assert [(done >= MANY, done == total) for done, total in told].count((True, True)) >= 2
    store = await Store.open(second.key_manager.fleet)
    try:
        count = await store.run(lambda connection: connection.exec_driver_sql("SELECT count(*) FROM bound").scalar())
    finally:
        await store.close()
    assert count == MANY


@one_loop
async def test_a_removal_passes_no_row_twice_while_a_backup_is_made(postgres):
    """The server keeps what was removed for the backup's transaction: each portion would go past all that is gone."""
    url = postgres.database()
    many, database = 20 * PORTION, url.rpartition("/")[2]
    store = await Store.open(fleet(url))
    passed = "SELECT idx_tup_read FROM pg_stat_user_indexes WHERE indexrelname = 'bound_pkey'"
    try:
        await store.run(lambda connection: connection.exec_driver_sql(rows(many)))
        postgres.execute("ANALYZE hsmcore_tests.bound", database)
        with postgres.connect(database) as backing_up, backing_up.transaction():
            backing_up.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            backing_up.execute("SELECT count(*) FROM hsmcore_tests.watermark")
            assert await Watermark(store, "").raise_floor("d", many, "final") == many
        await store.run(lambda connection: connection.exec_driver_sql("SELECT pg_stat_force_next_flush()"))
        [(count,)] = postgres.execute(passed, database)
    finally:
        await store.close()
    assert many <= count < 4 * many
