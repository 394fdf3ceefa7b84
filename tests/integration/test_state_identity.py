"""An edited configuration, or a log that is moved, finds the state store by the key: nothing begins with nothing."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import stat
import subprocess
from pathlib import Path

import pytest
import structlog
from tests.support.commands import commands
from tests.support.loops import one_loop
from tests.support.managers import becomes, opened
from tests.support.policed import ordered
from tests.support.terminal import PROGRAM

import hsmcore
from hsmcore.config import load
from hsmcore.doctor.places import check_places
from hsmcore.errors import DoubleSign
from hsmcore.state import StoreError
from hsmcore.state.sqlite import number_of

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("terminal")]
NAMING = ("configuration-load", "open")


@pytest.fixture
def hsmcore_state(tmp_path, capfdbinary):
    with commands(tmp_path, capfdbinary, "state") as command:
        yield command


def manager_of(config):
    return config["sequencer"]["keyManager"]


def edited(config, **changes):
    """A copy of the configuration; None takes a key out."""
    copy = json.loads(json.dumps(config))
    for name, value in changes.items():
        manager_of(copy)[name] = value
        if value is None:
            del manager_of(copy)[name]
    return copy


def policed(token, folder, **more):
    return token.config(policy={"kinds": ["block"]}, auditLogFile=str(folder / "one" / "audit.log"), **more)


@one_loop
async def test_the_log_names_the_store_that_it_went_with(world, tmp_path):
    config = policed(world, tmp_path)
    for _ in range(2):
        async with opened(config):
            pass
    store = load(config).key_manager.state_path
    lines = map(json.loads, (tmp_path / "one" / "audit.log").read_bytes().splitlines())
    found = [(line.get("state_store"), line.get("state_store_id")) for line in lines if line["operation"] in NAMING]
    number = number_of(store)
    assert number
    assert found == [(str(store), None), *[(str(store), number)] * 3]  # at first the file has none yet


@one_loop
async def test_a_log_without_a_store_names_none(world, tmp_path):
    async with opened(world.config(auditLogFile=str(tmp_path / "audit.log"))):
        pass
    assert b"state_store" not in (tmp_path / "audit.log").read_bytes()


EDITS = {
    "the log in another folder": lambda folder: {"auditLogFile": str(folder / "two" / "audit.log")},
    "the log taken out": lambda _: {"auditLogFile": None},
    "another type": lambda folder: {"type": "pkcs11", "auditLogFile": str(folder / "two" / "audit.log")},
}


@one_loop
@pytest.mark.parametrize("edit", EDITS)
async def test_an_edited_configuration_signs_no_position_twice(world, tmp_path, edit):
    config = policed(world, tmp_path)
    async with opened(config) as manager:
        await manager.sign(ordered(7, b"A"))
        key = manager.public_key.hex()
    store = load(config).key_manager.state_path
    other = edited(config, **EDITS[edit](tmp_path))
    with pytest.raises(hsmcore.StoreBehind) as refused:
        await hsmcore.create_key_manager(other).initialize()
    for said in (str(store), str(load(other).key_manager.state_path), str(tmp_path / "one" / "audit.log")):
        assert said in str(refused.value)
    assert f"hsmcore state begin {key} --reason" in str(refused.value.hint)
    assert not load(other).key_manager.state_path.exists()  # what was refused begins nothing
    async with opened(edited(other, stateFile=str(store))) as manager:
        await manager.sign(ordered(7, b"A"))
        with pytest.raises(DoubleSign):
            await manager.sign(ordered(7, b"B"))


@one_loop
async def test_an_audit_log_that_is_added_begins_no_store(world, tmp_path):
    config = edited(policed(world, tmp_path), auditLogFile=None)
    async with opened(config) as manager:
        await manager.sign(ordered(7, b"A"))
    with pytest.raises(hsmcore.StoreBehind):
        await hsmcore.create_key_manager(policed(world, tmp_path)).initialize()


@one_loop
async def test_after_a_rotation_the_replaced_key_does_not_sign_again(fresh_token, tmp_path):
    rules = {"keyRotation": {"overlapDays": 1}}
    config = fresh_token().config(auditLogFile=str(tmp_path / "one" / "audit.log"), **rules)
    async with opened(config) as manager:
        old = manager.public_key
        await manager.rotate_key()
        new = manager.public_key
    moved = edited(config, auditLogFile=str(tmp_path / "two" / "audit.log"))
    with pytest.raises(hsmcore.StoreBehind, match=old.hex()):
        await hsmcore.create_key_manager(moved).initialize()
    async with opened(config) as manager:
        assert manager.public_key == new != old


@one_loop
@pytest.mark.parametrize("promise", ["budget", "drain", "floor"])
async def test_budget_orders_and_floors_are_promises(world, tmp_path, promise, state_home):
    config = world.config(
        failover={"emergencyModeEnabled": True}, auditLogFile=str(tmp_path / "one" / "audit.log"),
        **({"policy": {"kinds": ["block"]}} if promise == "floor" else {}),
    )  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))

    async def command(*arguments):
        whole = [*PROGRAM, *arguments, "--reason", "r", "--config", str(tmp_path / "config.json")]
        assert (await asyncio.to_thread(subprocess.run, whole, check=False, timeout=60)).returncode == 0

    async def noted():
        return bool([*(state_home / "stores").glob("*.json")])

    async def by_the_emergency_key():
        return (await manager.sign_with_receipt(os.urandom(8))).level == "emergency"

    async with opened(config) as manager:
        if promise == "floor":
            await command("policy", "floor", "set", "block", "5")
        elif promise == "drain":
            await command("failover", "drain", f"softhsm:{world.label}", "--yes")
        else:
            await command("failover", "force", "emergency", "--yes")
            await becomes(by_the_emergency_key)
            await command("failover", "force", "none")
        await becomes(noted)
    moved = edited(config, auditLogFile=str(tmp_path / "two" / "audit.log"))
    with pytest.raises(hsmcore.StoreBehind):
        await hsmcore.create_key_manager(moved).initialize()


@one_loop
async def test_what_makes_no_promise_may_begin_anywhere(world, tmp_path, state_home):
    """As tests and short programs do, with one key."""
    for number in range(3):
        store = {"stateFile": str(tmp_path / f"{number}.db")}
        async with opened(world.config(failover={"emergencyModeEnabled": True}, **store)) as manager:
            await manager.sign(b"x")
        async with opened(world.config(keyRotation={"overlapDays": 1}, **store)) as manager:
            await manager.sign(b"x")
        async with opened(world.config(policy={"kinds": ["block"]}, **store)):
            pass
    assert not [*(state_home / "stores").glob("*")]


@one_loop
async def test_a_first_start_says_that_the_store_begins(world, tmp_path, state_home):
    config = policed(world, tmp_path)
    with structlog.testing.capture_logs() as said:
        async with opened(config) as manager:
            await manager.sign(ordered(1))
        async with opened(config) as manager:
            await manager.sign(ordered(2))
    begun = [line["store"] for line in said if line["event"].startswith("a state store begins")]
    assert begun == [str(load(config).key_manager.state_path)]
    [entry] = (state_home / "stores").glob("*.json")
    assert [stat.S_IMODE(path.stat().st_mode) for path in (entry, entry.parent)] == [0o600, 0o700]
    assert manager.public_key.hex() in entry.read_text()


@one_loop
async def test_a_folder_that_was_moved_goes_on_and_a_copy_does_not(world, tmp_path):
    config = policed(world, tmp_path)
    async with opened(config) as manager:
        await manager.sign(ordered(7, b"A"))
    (tmp_path / "one").rename(tmp_path / "two")
    moved = edited(config, auditLogFile=str(tmp_path / "two" / "audit.log"))
    async with opened(moved) as manager:
        with pytest.raises(DoubleSign):
            await manager.sign(ordered(7, b"B"))
    with pytest.raises(hsmcore.StoreBehind):  # where it was, nothing begins
        await hsmcore.create_key_manager(edited(config, auditLogFile=str(tmp_path / "one" / "audit.log"))).initialize()
    shutil.copytree(tmp_path / "two", tmp_path / "three")
    copied = edited(config, auditLogFile=str(tmp_path / "three" / "audit.log"))
    with pytest.raises(hsmcore.StoreBehind, match="is a copy"):
        await hsmcore.create_key_manager(copied).initialize()
    (tmp_path / "two").rename(tmp_path / "old")
    async with opened(copied) as manager:
        with pytest.raises(DoubleSign):
            await manager.sign(ordered(7, b"B"))


@one_loop
async def test_an_operator_lets_another_store_begin_with_one_command(world, tmp_path, hsmcore_state):
    config = policed(world, tmp_path)
    async with opened(config) as manager:
        await manager.sign(ordered(7, b"A"))
        key = manager.public_key.hex()
    moved = edited(config, auditLogFile=str(tmp_path / "two" / "audit.log"))
    (tmp_path / "config.json").write_text(json.dumps(moved))
    code, _, said = await asyncio.to_thread(hsmcore_state, "begin", "ab" * 32, "--reason", "r")
    assert (code, "no store is known" in said) == (1, True)
    code, shown, _ = await asyncio.to_thread(hsmcore_state, "begin", key, "--reason", "the disk is gone")
    assert (code, shown["formerStore"]) == (0, str(load(config).key_manager.state_path))
    async with opened(moved) as manager:
        await manager.sign(ordered(8))
        [record] = [one async for one in manager.audit.query(match={"command": "state begin", "result": "ok"})]
        assert record["reason"] == "the disk is gone"
    with pytest.raises(hsmcore.StoreBehind):  # the former one no longer counts
        await hsmcore.create_key_manager(config).initialize()
    async with opened(moved) as manager:
        await manager.sign(ordered(9))


@one_loop
@pytest.mark.parametrize("rules", [{"policy": {"kinds": ["block"]}}, {"keyRotation": {"overlapDays": 1}}])
async def test_with_require_state_nothing_empty_begins_by_itself(
    fresh_token, tmp_path, hsmcore_state, state_home, rules
):
    config = fresh_token().config(auditLogFile=str(tmp_path / "audit" / "audit.log"), requireState=True, **rules)
    store = load(config).key_manager.state_path
    (tmp_path / "config.json").write_text(json.dumps(config))

    async def begins():
        """The start is refused, and the command that it prints lets it begin."""
        for _ in range(2):
            with pytest.raises(
                hsmcore.StoreBehind, match="is empty, and the configuration has requireState"
            ) as refused:
                await hsmcore.create_key_manager(config).initialize()
            assert not store.exists()
        hint = str(refused.value.hint)
        command = re.search(r"hsmcore state begin ([0-9a-f]+) --reason TEXT$", hint)
        code, shown, _ = await asyncio.to_thread(hsmcore_state, "begin", command[1], "--reason", "its first start")
        assert (code, shown["formerStore"], shown["store"]) == (0, None, str(store))

    await begins()
    for _ in range(2):  # it has begun, though it keeps no promise yet
        shutil.rmtree(state_home, ignore_errors=True)
        async with opened(config):
            pass
    async with opened(config) as manager:
        if "policy" in rules:
            await manager.sign(ordered(7, b"A"))
        else:
            await manager.rotate_key()
    shutil.rmtree(state_home)  # the container's home; the store is on a volume
    async with opened(config):
        pass
    shutil.rmtree(state_home)
    shutil.rmtree(store.parent)  # another volume
    if "policy" in rules:
        await begins()


def test_require_state_is_of_a_store_that_is_kept(world):
    with pytest.raises(hsmcore.ConfigurationError, match="requireState, but keeps nothing in a state store"):
        load(world.config(requireState=True))


@one_loop
async def test_two_stores_that_began_at_once_do_not_both_bind(world, tmp_path):
    configs = [edited(policed(world, tmp_path / name), maxCacheSize=0) for name in ("a", "b")]
    async with opened(configs[0]) as first, opened(configs[1]) as second:
        await first.sign(ordered(7, b"A"))
        with pytest.raises(hsmcore.StoreBehind):
            await second.sign(ordered(7, b"B"))
        await first.sign(ordered(8, b"A"))


@one_loop
@pytest.mark.parametrize("broken", ["no folder", "not a folder"])
async def test_without_a_place_for_the_register_it_is_said_and_the_key_signs(
    world, tmp_path, monkeypatch, state_home, broken
):
    config = policed(world, tmp_path)
    if broken == "not a folder":
        state_home.parent.write_text("")
    else:
        monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError()))
        monkeypatch.delenv("XDG_STATE_HOME")
    with structlog.testing.capture_logs() as told:
        async with opened(config) as manager:
            await manager.sign(ordered(7, b"A"))
            with pytest.raises(DoubleSign):
                await manager.sign(ordered(7, b"B"))
    assert any("is not remembered" in line["event"] for line in told)
    [step] = [step for step in check_places(load(config)) if step.name == "state-register"]
    assert step.outcome == "warn"


@one_loop
async def test_an_entry_that_cannot_be_read_stops_what_it_may_speak_of(world, tmp_path, state_home):
    config = policed(world, tmp_path)
    async with opened(config) as manager:
        await manager.sign(ordered(7, b"A"))
    [entry] = (state_home / "stores").glob("*.json")
    entry.write_text("{}")
    with pytest.raises(StoreError, match="not of hsmcore's making"):
        await hsmcore.create_key_manager(config).initialize()
    async with opened(policed(world, tmp_path / "other")) as manager:  # which keeps nothing yet
        with pytest.raises(StoreError, match="not of hsmcore's making"):
            await manager.sign(ordered(7, b"B"))


@one_loop
@pytest.mark.parametrize("rules", [{"policy": {"kinds": ["block"]}}, {"keyRotation": {"overlapDays": 1}}])
async def test_the_log_knows_its_store_by_marks_and_an_older_copy_that_has_its_id(
    fresh_token, tmp_path, monkeypatch, rules
):
    """What no record and no checkpoint need say: which store is the log's."""
    log = {"auditLogFile": str(tmp_path / "log" / "audit.log"), **rules}
    config = fresh_token().config(**log, stateFile=str(tmp_path / "state.db"))
    monkeypatch.setattr("hsmcore.manager.recording.named_store", lambda *_: {})
    monkeypatch.setattr("hsmcore.manager.key_manager.named_store", lambda *_: {})
    message = ordered(7, b"A") if "policy" in rules else b"x"
    for number in range(2):
        if number:
            shutil.copyfile(tmp_path / "state.db", tmp_path / "older.db")
        async with opened(config) as manager:
            await manager.sign(message)
    assert b"state_store" not in (tmp_path / "log" / "audit.log").read_bytes()
    assert number_of(tmp_path / "older.db") == number_of(tmp_path / "state.db") != 0
    (tmp_path / "state.db").rename(tmp_path / "gone.db")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "other-home"))  # no register knows the key
    for store in ("older.db", "empty.db"):
        with pytest.raises(hsmcore.StoreBehind, match="the audit log goes on after it"):
            await hsmcore.create_key_manager(edited(config, stateFile=str(tmp_path / store))).initialize()
    async with opened(edited(config, stateFile=str(tmp_path / "gone.db"))) as manager:
        await manager.sign(message)
