"""The note on a key's token: a host that knows nothing of the key learns there which state store is the key's."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from contextlib import nullcontext
from pathlib import Path

import pytest
import structlog
from tests.support.commands import commands
from tests.support.loops import one_loop
from tests.support.managers import becomes, opened
from tests.support.nss import make_nss
from tests.support.policed import ordered
from tests.support.yubihsm import Capability
from tests.support.yubihsm.rig import DOMAIN, SIGNING

import hsmcore
from hsmcore.config import load
from hsmcore.errors import DoubleSign
from hsmcore.members.control import ControlPlane
from hsmcore.members.control.notes import ReadNotes, WriteNote
from hsmcore.recovery.own_store import OwnStore
from hsmcore.recovery.token_notes import _read
from hsmcore.state import Desired
from hsmcore.state.register import Entry, parsed
from hsmcore.state.sqlite import number_of

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("terminal")]
POLICY = {"policy": {"kinds": ["block"]}}
KEEPER = 0x0005


@pytest.fixture
def hsmcore_state(tmp_path, capfdbinary):
    with commands(tmp_path, capfdbinary, "state") as command:
        yield command


@pytest.fixture
def another_home(tmp_path, monkeypatch):
    """Go on as another user, or in a container whose home was lost."""

    def leave(name):
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / name))

    return leave


def on(token, folder, *, settings=None, **rules):
    """As of a module that keeps notes: SoftHSM's own quirks say that its token is as lasting as this host."""
    settings = {"quirks": "generic", "isolation": "process"} | (settings or {})
    return token.config(settings=settings, stateFile=str(folder / "state.db"), **(rules or POLICY))


@pytest.fixture
def do(world):
    """Run a verb on the token that a configuration names."""

    async def work(config, verb):
        settings = load(config).key_manager.config
        async with ControlPlane.for_settings(settings, log_in=True, isolated=True) as plane:
            return await plane.do(verb)

    return work


@pytest.fixture
def doctor(tmp_path, capfdbinary):
    """What `hsmcore doctor` finds of the note."""

    def found(config):
        (tmp_path / "config.json").write_text(json.dumps(config))
        with commands(tmp_path, capfdbinary, "doctor") as command:
            _, shown, _ = command()
        steps = [step for one in shown["providers"] for step in one["steps"] if step["name"] == "state-note"]
        return steps[0]["outcome"] if steps else None

    return found


async def noted(do, config, key):
    """What the token says, once it does."""
    found = []

    async def said():
        found[:] = await do(config, ReadNotes([key]))
        return bool(found)

    await becomes(said)
    [text] = found
    return parsed(text, key)


async def promised(do, config, position=7):
    """A block that is signed, and noted. Returns the public key."""
    async with opened(config) as manager:
        await manager.sign(ordered(position, b"A"))
        await noted(do, config, manager.public_key)
        return manager.public_key


@one_loop
async def test_a_host_that_knows_nothing_of_the_key_begins_no_second_store(fresh_token, do, tmp_path, another_home):
    token = fresh_token()
    config = on(token, tmp_path / "one")
    key = await promised(do, config)
    store = tmp_path / "one" / "state.db"
    entry = await noted(do, config, key)
    assert (entry.store, entry.id) == (store, number_of(store))
    another_home("other")
    elsewhere = on(token, tmp_path / "two")
    with pytest.raises(hsmcore.StoreBehind, match="says the key's token") as refused:
        await hsmcore.create_key_manager(elsewhere).initialize()
    assert str(store) in str(refused.value)
    assert str(tmp_path / "two" / "state.db") in str(refused.value)
    assert f"hsmcore state begin {key.hex()} --reason" in str(refused.value.hint)
    assert not (tmp_path / "two" / "state.db").exists()
    store.rename(tmp_path / "two" / "state.db")  # the volume of the first host
    async with opened(elsewhere) as manager:
        with pytest.raises(DoubleSign):
            await manager.sign(ordered(7, b"B"))


@one_loop
async def test_a_short_program_leaves_a_note(fresh_token, do, tmp_path, monkeypatch):
    monkeypatch.setattr("hsmcore.recovery.own_store.CLOSE_SECONDS", 300.0)
    config = on(fresh_token(), tmp_path)
    async with opened(config) as manager:
        key = manager.public_key
        with pytest.MonkeyPatch.context() as no_look:
            no_look.setattr(OwnStore, "look", lambda _: asyncio.sleep(0))  # as in its first second
            await manager.sign(ordered(7))
    assert len(await do(config, ReadNotes([key]))) == 1


@one_loop
async def test_a_volume_that_is_not_mounted_is_told_by_its_id(fresh_token, do, tmp_path, another_home):
    config = on(fresh_token(), tmp_path / "volume")
    await promised(do, config)
    store = tmp_path / "volume" / "state.db"
    number = number_of(store)
    store.rename(tmp_path / "away.db")
    another_home("other")
    with pytest.raises(hsmcore.StoreBehind, match=f"the one with id {number}, and this one has id none") as refused:
        await hsmcore.create_key_manager(config).initialize()
    assert "Put that one in its place" in str(refused.value.hint)
    (tmp_path / "away.db").rename(store)
    async with opened(config) as manager:
        await manager.sign(ordered(8))


@one_loop
async def test_the_command_lets_another_store_begin_without_a_home_that_lasts(
    fresh_token, do, tmp_path, another_home, hsmcore_state
):
    token = fresh_token()
    first, other = on(token, tmp_path / "one"), on(token, tmp_path / "two")
    key = await promised(do, first)
    (tmp_path / "config.json").write_text(json.dumps(other))
    another_home("of-the-command")
    code, _, said = await asyncio.to_thread(hsmcore_state, "begin", "ab" * 32, "--reason", "r")
    assert (code, "no store is known" in said) == (1, True)
    code, shown, _ = await asyncio.to_thread(hsmcore_state, "begin", key.hex(), "--reason", "the disk is gone")
    assert (code, shown["formerStore"]) == (0, str(tmp_path / "one" / "state.db"))
    another_home("of-the-signer")
    async with opened(other) as manager:
        await manager.sign(ordered(8))
        entry = None
        while entry is None or entry.id != number_of(tmp_path / "two" / "state.db"):
            entry = await noted(do, other, key)
    another_home("of-the-next")
    with pytest.raises(hsmcore.StoreBehind):  # the former one no longer counts
        await hsmcore.create_key_manager(first).initialize()


@one_loop
async def test_a_rotation_s_new_key_has_a_note_and_a_destroyed_key_has_none(fresh_token, do, tmp_path, another_home):
    token = fresh_token()
    rules = {"keyRotation": {"overlapDays": 1}}
    config = on(token, tmp_path / "one", **rules)
    async with opened(config) as manager:
        old = manager.public_key
        await manager.rotate_key()
        new, identity = manager.public_key, manager.members()[0].key_id
        await noted(do, config, old)
        await noted(do, config, new)
    another_home("other")
    fresh = on(token, tmp_path / "two", **rules)
    with pytest.raises(hsmcore.StoreBehind, match=old.hex()):
        await hsmcore.create_key_manager(fresh).initialize()
    del fresh["sequencer"]["keyManager"]["config"]["keyLabel"]
    fresh["sequencer"]["keyManager"]["config"]["keyId"] = identity
    with pytest.raises(hsmcore.StoreBehind, match=new.hex()):
        await hsmcore.create_key_manager(fresh).initialize()
    async with ControlPlane.for_settings(load(config).key_manager.config, log_in=True, isolated=True) as plane:
        await plane.destroy(identity)
        assert await plane.do(ReadNotes([new])) == []
        assert len(await plane.do(ReadNotes([old]))) == 1


UNNOTED = {
    "what is a host's own": ({}, {"failover": {"emergencyModeEnabled": True}}),
    "a token in files of this host": ({"quirks": "softhsm"}, POLICY),
    "a module in the process that signs": ({"isolation": "thread"}, POLICY),
}


@one_loop
@pytest.mark.parametrize("case", UNNOTED)
async def test_nothing_is_noted_of(fresh_token, do, tmp_path, case):
    settings, rules = UNNOTED[case]
    token = fresh_token()
    async with opened(on(token, tmp_path, settings=settings, **rules)) as manager:
        await manager.sign(ordered(1))
        if rules is not POLICY:
            await Desired(manager._background._own.store).set("drain:softhsm:gone", "1", "this host's own")
        await looked(manager)
        key = manager.public_key
    assert await do(on(token, tmp_path), ReadNotes([key])) == []


JUNK = {
    "no text of ours": lambda _: b"\xff\0",
    "another key's": lambda entry: dataclasses.replace(entry, public_key=b"\1" * 32).to_bytes(),
    "a control character": lambda entry: dataclasses.replace(entry, store=entry.store / "\x1b[2J").to_bytes(),
    "a time beyond all clocks": lambda entry: dataclasses.replace(entry, noted_ns=1 << 63).to_bytes(),
    "longer than is read": lambda entry: entry.to_bytes() + b" " * 3000,
}


@one_loop
@pytest.mark.parametrize("junk", JUNK)
async def test_what_is_not_of_our_making_is_told_and_counts_for_nothing(fresh_token, do, tmp_path, another_home, junk):
    token = fresh_token()
    config = on(token, tmp_path / "one")
    key = await promised(do, config)
    entry = await noted(do, config, key)
    await do(config, WriteNote(key, JUNK[junk](entry)))
    another_home("other")
    with structlog.testing.capture_logs() as said:
        async with opened(on(token, tmp_path / "two")) as manager:
            await manager.sign(ordered(7, b"A"))
    assert [line["log_level"] for line in said if "not of hsmcore's making" in line["event"]] == ["warning"]


@pytest.mark.parametrize(
    ("strange", "last"),
    [
        ({"audit_log": "/\x1b[2J"}, {"audit_log": "/a log"}),
        ({"noted_ns": 1 << 62}, {"noted_ns": (1 << 62) - 1}),
        ({"noted_ns": -1}, {"noted_ns": 0}),
        ({"id": 1 << 31}, {"id": (1 << 31) - 1}),
        ({"id": -1}, {"id": 0}),
        ({"store": Path("state.db")}, {"store": Path("/state.db")}),
    ],
)
def test_an_entry_that_no_register_has_is_no_note(strange, last):
    entry = Entry(bytes(32), Path("/store/state.db"), 7, "/audit.log", 8)
    assert _read(dataclasses.replace(entry, **strange).to_bytes(), entry.public_key) is None
    good = dataclasses.replace(entry, **last)
    assert _read(good.to_bytes(), entry.public_key) == dataclasses.replace(good, by_token=True)


@one_loop
async def test_a_forged_note_stops_a_start_and_is_replaced_where_the_host_knows_better(
    fresh_token, do, tmp_path, another_home
):
    token = fresh_token()
    config = on(token, tmp_path / "one")
    key = await promised(do, config)
    entry = await noted(do, config, key)
    forged = dataclasses.replace(entry, store=tmp_path / "forged.db", id=entry.id ^ 1, noted_ns=entry.noted_ns + 10**18)
    await do(config, WriteNote(key, forged.to_bytes()))
    async with opened(config) as manager:  # the register of this host knows
        await manager.sign(ordered(8))
        found = forged
        while found.id != entry.id:
            found = await noted(do, config, key)
    await do(config, WriteNote(key, forged.to_bytes()))
    another_home("other")
    with pytest.raises(hsmcore.StoreBehind, match=r"forged\.db"):
        await hsmcore.create_key_manager(config).initialize()


async def looked(manager):
    """Have what is due be written, and wait for it."""
    own = manager._background._own
    await own.look()
    await own._scope.finish()
    assert own._keeper.noted


@pytest.mark.slow("doctor runs twice")
@one_loop
async def test_a_token_that_takes_no_data_object_signs_as_before(tmp_path, another_home, doctor):
    token = make_nss(tmp_path)
    config = token.config("ed25519", isolation="process")
    config["sequencer"]["keyManager"] |= {"stateFile": str(tmp_path / "one.db"), **POLICY}
    with structlog.testing.capture_logs() as said:
        async with opened(config) as manager:
            await manager.sign(ordered(7, b"A"))
            await looked(manager)
            await looked(manager)
    told = [line for line in said if line["event"] == "a token does not say which state store is the key's"]
    assert [(line["log_level"], "ATTRIBUTE_VALUE_INVALID" in line["error"]) for line in told] == [("info", True)]
    assert await asyncio.to_thread(doctor, config) == "warn"
    another_home("other")  # which knows nothing, and is told nothing
    config["sequencer"]["keyManager"]["stateFile"] = str(tmp_path / "two.db")
    assert await asyncio.to_thread(doctor, config) is None
    async with opened(config) as manager:
        await manager.sign(ordered(7, b"A"))


@one_loop
@pytest.mark.parametrize("may", [True, False], ids=["may keep objects", "may only sign"])
async def test_a_yubihsm_keeps_the_note_as_an_opaque_object(yubihsm, tmp_path, another_home, doctor, may):
    rig = yubihsm()
    if may:
        opaque = Capability.GET_OPAQUE | Capability.PUT_OPAQUE | Capability.DELETE_OPAQUE
        rig.device.put_user(KEEPER, "keeper-password", capabilities=SIGNING | opaque, delegated=0, domains=DOMAIN)
    user = {"authKeyId": KEEPER, "password": {"file": rig.password_file("keeper-password")}} if may else {}
    config = rig.config(settings=user, stateFile=str(tmp_path / "one.db"), **POLICY)
    async with opened(config) as manager:
        await manager.sign(ordered(7, b"A"))
        await looked(manager)
    assert await asyncio.to_thread(doctor, config) == ("ok" if may else "warn")
    another_home("other")
    config["keyManager"]["stateFile"] = str(tmp_path / "two.db")
    with pytest.raises(hsmcore.StoreBehind, match=r"one\.db") if may else nullcontext():
        async with opened(config) as manager:
            await manager.sign(ordered(7, b"A"))
    if may:
        config = rig.config(stateFile=str(tmp_path / "one.db"), **POLICY)  # who may not read the note signs beside it
        async with opened(config) as manager:
            await manager.sign(ordered(8))


@one_loop
async def test_a_backup_that_is_restored_on_a_new_host_is_the_store_of_the_note(
    fresh_token, do, tmp_path, another_home, hsmcore_state
):
    token = fresh_token()
    config, other = on(token, tmp_path / "one"), on(token, tmp_path / "two")
    await promised(do, config)
    (tmp_path / "config.json").write_text(json.dumps(config))
    code, made, _ = await asyncio.to_thread(hsmcore_state, "backup", "--to", f"{tmp_path}/")
    assert code == 0
    (tmp_path / "one").rename(tmp_path / "the former host's disk")
    another_home("other")
    (tmp_path / "config.json").write_text(json.dumps(other))
    code, _, _ = await asyncio.to_thread(hsmcore_state, "restore", f"{tmp_path}/{made['name']}", "--reason", "r")
    assert code == 0
    async with opened(other) as manager:
        with pytest.raises(DoubleSign):
            await manager.sign(ordered(7, b"B"))
