"""The file of a state store that is deleted or replaced while a key manager runs on it: nothing is bound in a file that
no start will find, and no command says that it did what it did not."""

from __future__ import annotations

import asyncio
import json
import shutil
import sqlite3
import subprocess
from contextlib import closing

import pytest
from tests.integration.test_state_identity import edited
from tests.support.loops import one_loop
from tests.support.managers import becomes, opened
from tests.support.policed import ordered
from tests.support.scrapes import Scrape
from tests.support.state_holder import Holder
from tests.support.terminal import PROGRAM

import hsmcore
from hsmcore.errors import DoubleSign, HsmError
from hsmcore.state import Store, StoreBusy, StoreError
from hsmcore.state.sqlite import discard

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("terminal")]
SEALED = [False, True]


def policed(token, folder, *, sealed=False, **more):
    config = token.config(
        "ed25519", policy={"kinds": ["block"]}, stateFile=str(folder / "state.db"), maxCacheSize=0, **more
    )
    if sealed:
        config["sequencer"]["stateSecret"] = "s" * 32
    return config


def replace(path, how):
    """What an operator does by mistake. Returns where the file is now."""
    aside, copy = path.with_name("aside.db"), path.with_name("copy.db")
    with closing(sqlite3.connect(path)) as found, closing(sqlite3.connect(copy)) as earlier:
        found.backup(earlier)
    path.rename(aside)
    if how == "replaced":
        copy.rename(path)
    return aside


def command(config, folder, *arguments):
    (folder / "config.json").write_text(json.dumps(config))
    whole = [*PROGRAM, *arguments, "--config", str(folder / "config.json")]
    return subprocess.run(whole, capture_output=True, text=True, check=False, timeout=60)


@one_loop
@pytest.mark.parametrize("sealed", SEALED)
@pytest.mark.parametrize("how", ["deleted", "replaced"])
async def test_nothing_is_signed_on_a_file_that_is_gone(world, tmp_path, how, sealed):
    config = policed(world, tmp_path, sealed=sealed)
    told = []
    async with opened(config) as manager:
        manager.on("store-not-genuine", told.append)
        await manager.sign(ordered(1))
        aside = replace(tmp_path / "state.db", how)
        with pytest.raises(StoreError, match=r"file is gone|another file"):
            await manager.sign(ordered(2))

        async def is_told():
            return bool(told) and Scrape.of(manager)("hsmcore_store_not_genuine", scope="file") == 1

        await becomes(is_told)
        assert told[0]["scope"] == "file"
        shutil.move(aside, tmp_path / "state.db")
        await manager.sign(ordered(2))
        assert Scrape.of(manager)("hsmcore_store_not_genuine", scope="file") == 0
    async with opened(config) as manager:
        with pytest.raises(DoubleSign):
            await manager.sign(ordered(2, b"other"))


@one_loop
async def test_two_workers_do_not_bind_one_position_in_two_files(world, tmp_path):
    """The store is deleted between their starts."""
    one, other = (
        policed(world, tmp_path, sealed=True, auditLogFile=str(tmp_path / name / "audit.log")) for name in "ab"
    )
    async with opened(one) as first:
        await first.sign(ordered(1))
        for end in ("", "-wal", "-shm"):
            (tmp_path / f"state.db{end}").unlink()
        with pytest.raises(HsmError):  # this host knows that there was another one
            await hsmcore.create_key_manager(other).initialize()
        with pytest.raises(StoreError):
            await first.sign(ordered(2))


@pytest.mark.parametrize("how", ["deleted", "replaced"])
def test_no_order_is_taken_that_reaches_no_key_manager(world, tmp_path, how):
    config = policed(world, tmp_path, failover={"emergencyModeEnabled": True})
    (tmp_path / "manager.json").write_text(json.dumps(config))
    with Holder("manager", tmp_path / "manager.json"):
        replace(tmp_path / "state.db", how)
        for order in (
            ("failover", "drain", f"softhsm:{world.label}", "--yes"), ("emergency", "disable"),
            ("policy", "floor", "set", "block", "5"),
        ):  # fmt: skip
            done = command(config, tmp_path, *order, "--reason", "r")
            assert done.returncode == 1, done.stderr
            assert "no key manager" not in done.stderr
        assert (tmp_path / "state.db").exists() == (how == "replaced")


def test_a_key_manager_that_has_not_reported_yet_is_no_stopped_one(world, tmp_path):
    """Its report is gone, as in the first seconds of a start."""
    config = world.config(
        stateFile=str(tmp_path / "state.db"), failover={"emergencyModeEnabled": True}, keyRotation={"overlapDays": 1}
    )
    (tmp_path / "manager.json").write_text(json.dumps(config))
    order = ("emergency", "disable", "--reason", "r")
    with Holder("manager", tmp_path / "manager.json") as holder:
        with closing(sqlite3.connect(tmp_path / "state.db")) as forger:
            forger.execute("CREATE TRIGGER silence AFTER INSERT ON snapshot BEGIN DELETE FROM snapshot; END")
            forger.execute("DELETE FROM snapshot")
            forger.commit()
        done = command(config, tmp_path, *order)
        assert (done.returncode, "no key manager" in done.stderr) == (0, False)
        holder.kill()
    done = command(config, tmp_path, *order)
    assert (done.returncode, "no key manager is running" in done.stderr) == (0, True)


def test_a_command_makes_no_store(world, tmp_path):
    config = policed(world, tmp_path, failover={"emergencyModeEnabled": True})
    orders = (
        ("failover", "drain", f"softhsm:{world.label}", "--yes"), ("failover", "force", "emergency", "--yes"),
        ("emergency", "disable"), ("emergency", "reset"),
    )  # fmt: skip
    for order in orders:
        done = command(config, tmp_path, *order, "--reason", "r")
        assert (done.returncode, "there is none yet" in done.stderr) == (1, True), done.stderr
    for look in (("failover", "status"), ("emergency", "status"), ("policy", "floor", "show")):
        assert command(config, tmp_path, *look).returncode == 0
    assert not (tmp_path / "state.db").exists()


@one_loop
@pytest.mark.parametrize("why", ["wrong PIN", "no such key", "behind its log"])
async def test_a_refused_start_leaves_no_store(fresh_token, tmp_path, why):
    """So the way back, `state restore`, finds none there."""
    token = fresh_token()
    config = policed(token, tmp_path, auditLogFile=str(tmp_path / "audit.log"), keyRotation={"overlapDays": 1})
    if why == "behind its log":
        async with opened(config) as manager:
            await manager.sign(ordered(1))
        done = await asyncio.to_thread(command, config, tmp_path, "state", "backup", "--to", str(tmp_path / "copy"))
        assert done.returncode == 0, done.stderr
        (tmp_path / "state.db").unlink()
    inner = config["sequencer"]["keyManager"]["config"]
    bad = {"wrong PIN": {"pin": "wrong"}, "no such key": {"keyLabel": "nobody"}, "behind its log": {}}[why]
    broken = edited(config)
    broken["sequencer"]["keyManager"]["config"] = {**inner, **bad}
    with pytest.raises(HsmError):
        await hsmcore.create_key_manager(broken).initialize()
    assert not (tmp_path / "state.db").exists()
    if why == "behind its log":
        restore = ("state", "restore", str(tmp_path / "copy"), "--reconcile", "--reason", "r")
        done = await asyncio.to_thread(command, config, tmp_path, *restore)
        assert done.returncode == 0, done.stderr
    async with opened(config) as manager:
        await manager.sign(ordered(2))


@one_loop
async def test_only_a_store_that_is_unused_and_empty_is_removed(tmp_path):
    path = tmp_path / "state.db"
    store = await Store.open(path)
    with pytest.raises(StoreBusy):
        discard(path)
    await store.run(lambda on: on.exec_driver_sql("INSERT INTO bound VALUES ('d', 1, 'x', 'h', 0, '')"))
    await store.close()
    with pytest.raises(StoreBusy):
        discard(path)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("DELETE FROM bound")
        connection.commit()
    discard(path)
    assert not path.exists()


@one_loop
async def test_a_store_is_restored_where_another_one_was_lost(world, tmp_path):
    """Also one that was backed up before it had an id: the operator's word counts for the next start."""
    config = policed(world, tmp_path, auditLogFile=str(tmp_path / "audit.log"))
    async with opened(config) as manager:
        await manager.sign(ordered(1))
    with closing(sqlite3.connect(tmp_path / "state.db")) as connection:
        connection.execute("PRAGMA user_version = 0")
    done = await asyncio.to_thread(command, config, tmp_path, "state", "backup", "--to", str(tmp_path / "copy"))
    assert done.returncode == 0, done.stderr
    with pytest.raises(hsmcore.StoreBehind):
        await hsmcore.create_key_manager(config).initialize()
    restore = ("state", "restore", str(tmp_path / "copy"), "--replace", "--reconcile", "--reason", "r")
    done = await asyncio.to_thread(command, config, tmp_path, *restore)
    assert done.returncode == 0, done.stderr
    async with opened(config) as manager:
        with pytest.raises(DoubleSign):
            await manager.sign(ordered(1, b"other"))
