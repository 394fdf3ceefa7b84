"""A state store's way back: backups, restores, what is detected, and what is put back from the audit log."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
import re
import shutil
import signal
import sqlite3
import stat
import subprocess
import tempfile
import threading
import time
from contextlib import asynccontextmanager, closing

import orjson
import pytest
from tests.support.commands import commands
from tests.support.loops import one_loop
from tests.support.managers import becomes, cut_off, opened, until
from tests.support.policed import ordered
from tests.support.postgres import cluster
from tests.support.scrapes import Scrape
from tests.support.size import share
from tests.support.state_copies import backed_up as backed_up_whole
from tests.support.state_rollbacks import (
    Fleet,
    Life,
    config_of,
    conflicts,
    copy_by_hand,
    put_back_by_hand,
    refused,
    roll_back,
    roll_back_fleet,
)
from tests.support.zygote import CLI, Forked

import hsmcore
from hsmcore.audit import AuditLog
from hsmcore.config import load
from hsmcore.doctor.store import check_store
from hsmcore.errors import BadArgument, DoubleSign, HsmError, PolicyRefused
from hsmcore.failover.budget import Emergency, Limits
from hsmcore.recovery import marks as alone
from hsmcore.recovery import restore as recovery
from hsmcore.recovery import state_backup
from hsmcore.recovery.reconcile import reconcile
from hsmcore.recovery.state_backup import StateBackups
from hsmcore.state import Desired, Keys, Store, StoreBusy, StoreError, backup
from hsmcore.state.schema import EMERGENCY_EPISODE, MIGRATIONS
from hsmcore.state.sqlite import FileDatabase

pytestmark = pytest.mark.integration


def signed_before(config, count=5, first=0):
    """Have a signer sign some positions, and close."""
    life = Life(config, first)
    life.more(count)
    life.end(kill=False)
    return life.signed


async def backed_up(config):
    return (await backed_up_whole(load(config)))[1]


# ---- detection -------------------------------------------------------------------------------------------------------


@pytest.mark.slow("a process for each life of a store")
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("times", [share(8), pytest.param(200, marks=pytest.mark.deep)])
def test_each_older_store_is_detected_and_conflicts_with_nothing(tmp_path, times):
    counts = roll_back(tmp_path, times=times, seed=22)
    assert (counts["restores"], counts["detected"], counts["conflicts"]) == (times, times, 0)
    assert counts["positions"] > times


@pytest.mark.slow("a database that is put back, and leases that end")
@pytest.mark.timeout(6000)
@pytest.mark.parametrize("times", [1, pytest.param(200, marks=pytest.mark.deep)])
def test_each_older_database_is_detected_and_conflicts_with_nothing(tmp_path, times):
    with cluster() as server:
        counts = roll_back_fleet(tmp_path, server.database(), times=times, seed=22)
    assert (counts["restores"], counts["detected"], counts["conflicts"]) == (times, times, 0)
    assert counts["positions"] > times


@one_loop
@pytest.mark.parametrize("lost", ["state", "state and log", "log"])
async def test_what_is_lost_with_each_file(tmp_path, lost):
    """docs/RECOVERY.md: the state store, both, the audit log."""
    config = config_of(tmp_path)
    async with opened(config) as manager:
        await manager.sign(ordered(7))
    if "state" in lost:
        for path in tmp_path.glob("state.db*"):
            path.unlink()
    if "log" in lost:
        for path in tmp_path.glob("audit.log*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    if lost == "state":
        assert await refused(config)
        done = await reconcile(load(config), ring_compared=False)
        assert (done["added"], done["conflicts"]) == (1, [])
    async with opened(config) as manager:
        if lost == "state and log":
            assert await manager.sign(ordered(7, b"another"))  # nothing is left to know better
        else:
            with pytest.raises(DoubleSign):
                await manager.sign(ordered(7, b"another"))


@one_loop
async def test_a_store_of_before_the_last_start_is_detected_although_nothing_was_signed_since(tmp_path):
    config = config_of(tmp_path)
    async with opened(config):
        pass
    shutil.copy(tmp_path / "state.db", tmp_path / "copy.db")
    async with opened(config):
        pass
    async with opened(config):
        pass
    assert not await refused(config)
    put_back_by_hand(tmp_path, tmp_path / "copy.db")
    assert await refused(config)
    with pytest.raises(hsmcore.StoreBehind, match=r"Correct the token or stateFile .*hsmcore state reconcile"):
        await hsmcore.create_key_manager(config).initialize()
    log = AuditLog(str(tmp_path / "audit.log"))
    assert [record async for record in log.query(match={"operation": "state-behind"})]


def test_doctor_says_whether_the_log_goes_on_after_the_store(tmp_path):
    config = config_of(tmp_path)

    def found():
        [step] = [step for step in check_store(load(config)) if step.name == "state-behind"]
        return step

    signed_before(config)
    shutil.copy(tmp_path / "state.db", tmp_path / "copy.db")
    signed_before(config, first=100)
    assert found().outcome == "ok", found()
    put_back_by_hand(tmp_path, tmp_path / "copy.db")
    assert (found().outcome, "goes on after it" in found().found) == ("fail", True)
    assert "hsmcore state reconcile" in found().model_dump_json()
    with closing(sqlite3.connect(tmp_path / "state.db")) as connection, connection:
        connection.execute("DELETE FROM schema_version WHERE version = (SELECT max(version) FROM schema_version)")
    steps = [step for step in check_store(load(config)) if "an older version of hsmcore" in step.found]
    assert [step.name for step in steps] == ["state-store"], "once"


@one_loop
async def test_a_log_that_lies_behind_its_store_is_noticed(tmp_path):
    config = config_of(tmp_path)
    async with opened(config) as manager:
        await manager.sign(ordered(1))
    shutil.copytree(tmp_path, tmp_path / "copy", ignore=shutil.ignore_patterns("copy", "state.db*"))
    async with opened(config) as manager:
        await manager.sign(ordered(2))
    for path in (tmp_path / "audit.log", tmp_path / "audit.log.d"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.copytree(tmp_path / "copy", tmp_path, dirs_exist_ok=True)
    assert await refused(config)
    await reconcile(load(config), ring_compared=False)
    async with opened(config) as manager:
        with pytest.raises(DoubleSign):
            await manager.sign(ordered(2, b"another"))


@asynccontextmanager
async def crashed_alone(config):
    """A key manager's mark keeper without the rest, whose process ends without closing it."""
    whole = load(config)
    log = AuditLog.of(whole.key_manager)
    await log.open()
    found = await alone.Marks.open(whole, log)
    await found.begin()
    yield found, log
    await cut_off(found._scope)
    await found._store.close()
    await log.close()


async def marks(log):
    return [record["state"] async for record in log.query(match={"operation": alone.OPERATION})]


@one_loop
@pytest.mark.parametrize("change", ["ring", "budget"])
async def test_a_change_of_ring_or_budget_makes_the_store_of_before_an_older_one(tmp_path, monkeypatch, change):
    monkeypatch.setattr(alone, "_LOOK_SECONDS", 0.01)
    config = config_of(tmp_path)
    async with crashed_alone(config) as (found, log):
        copy_by_hand(tmp_path, tmp_path / "copy.db")
        before = await marks(log)
        if change == "ring":
            await Keys(found._store).begin("aa", b"k" * 32, "ed25519", "key", ["m"], "configured")
        else:
            await Emergency(found._store, Limits(10, 60)).begin()

        async def marked():
            return len(await marks(log)) > len(before)

        await becomes(marked)
    assert not await refused(config)
    put_back_by_hand(tmp_path, tmp_path / "copy.db")
    assert await refused(config)


@one_loop
async def test_a_mark_is_made_each_day_although_nothing_changes(tmp_path, monkeypatch):
    monkeypatch.setattr(alone, "_LOOK_SECONDS", 3600)
    async with crashed_alone(config_of(tmp_path)) as (found, log):
        before = await marks(log)
        await found._look()
        assert await marks(log) == before
        monkeypatch.setattr(alone, "_DAY_NS", 0)
        await found._look()
        assert len(await marks(log)) == len(before) + 1


@one_loop
async def test_a_crash_between_the_two_marks_is_no_older_store(tmp_path, monkeypatch):
    config = config_of(tmp_path)
    async with crashed_alone(config) as (found, _):
        monkeypatch.setattr(found._log, "note", lambda *_, **__: None)  # the process ends before the log has it
        await found._mark()
        await found._mark()
        monkeypatch.undo()
    assert not await refused(config)


@one_loop
async def test_orders_of_operators_make_no_older_store(tmp_path):
    config = config_of(tmp_path)
    async with opened(config):
        pass
    store = await Store.open(tmp_path / "state.db", load(config).state_secret)
    await Desired(store).set("drain:m", "yes", "by a command")
    await store.close()
    assert not await refused(config)


# ---- reconciliation --------------------------------------------------------------------------------------------------


@one_loop
async def test_a_reconciliation_counts_the_emergency_signatures_again_and_asks_for_the_ring(tmp_path):
    levels = {"emergencyModeEnabled": True, "primaryRetryIntervalMs": 500}
    config = config_of(tmp_path, failover=levels)
    async with opened(config) as manager:
        await manager.sign(ordered(1))
    shutil.copy(tmp_path / "state.db", tmp_path / "copy.db")
    log = AuditLog(str(tmp_path / "audit.log"))
    await log.open()
    for number in range(3):
        log.record("sign", message=b"%d" % number, result="ok", member="ephemeral", level="emergency")
    log.record("key-rotated", result="ok", key_id="bb", previous="aa")
    await log.flush()
    await log.close()
    async with opened(config):
        pass
    put_back_by_hand(tmp_path, tmp_path / "copy.db")
    assert await refused(config)
    with pytest.raises(BadArgument, match=r"the key ring changed 1 times since; last key-rotated"):
        await reconcile(load(config), ring_compared=False)
    assert await refused(config)
    done = await reconcile(load(config), ring_compared=True)
    assert (done["emergencySignatures"], done["ring"][0]["key_id"]) == (3, "bb")
    store = await Store.open(tmp_path / "state.db", load(config).state_secret)
    [row] = await store.rows(EMERGENCY_EPISODE.select())
    await store.close()
    assert row["reserved"] == 3
    again = await reconcile(load(config), ring_compared=False)
    assert (again["problem"], again["emergencySignatures"]) == ("", 0)
    assert not await refused(config)


@one_loop
async def test_what_was_signed_on_both_sides_of_a_rollback_is_signed_by_neither(tmp_path):
    """The store went back and was used without its log: the log has another payload for a position."""
    config = config_of(tmp_path)
    async with opened(config) as manager:
        await manager.sign(ordered(1))
    shutil.copy(tmp_path / "state.db", tmp_path / "copy.db")
    async with opened(config) as manager:
        await manager.sign(ordered(2, b"one"))
    put_back_by_hand(tmp_path, tmp_path / "copy.db")
    without = json.loads(json.dumps(config))
    del without["sequencer"]["keyManager"]["auditLogFile"]
    async with opened(without) as manager:
        await manager.sign(ordered(2, b"other"))
    assert await refused(config)
    done = await reconcile(load(config), ring_compared=False)
    assert [row["position"] for row in done["conflicts"]] == [2]
    async with opened(config) as manager:
        for content in (b"one", b"other"):
            with pytest.raises(PolicyRefused):
                await manager.sign(ordered(2, content))
        await manager.sign(ordered(3))


@one_loop
async def test_what_lies_further_back_than_is_read_is_given_up(tmp_path, monkeypatch):
    config = config_of(tmp_path, audit={"rotateBytes": 65536})
    async with opened(config) as manager:
        await asyncio.gather(*(manager.sign(ordered(at)) for at in range(3000)))
    for path in tmp_path.glob("state.db*"):
        path.unlink()
    monkeypatch.setattr(alone, "MOST_BYTES", 1000)
    done = await reconcile(load(config), ring_compared=False)
    assert done["floors"] == {"default/block": 2999}
    async with opened(config) as manager:
        for position in (0, 1500, 2999):
            with pytest.raises(PolicyRefused):
                await manager.sign(ordered(position, b"another"))
        await manager.sign(ordered(3000))


# ---- backups ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("secret", [True, pytest.param(False, marks=pytest.mark.deep)], ids=["sealed", "plain"])
def test_a_backup_under_write_load_is_one_moment(tmp_path, secret):
    config = config_of(tmp_path)
    if not secret:
        del config["sequencer"]["stateSecret"]
    life = Life(config, 0)
    highest = [0]
    for number in range(12):
        life.more(highest[-1] - len(life.signed) + 3)  # beyond the last backup; a pipe that is full stops the signer
        _, data = asyncio.run(backed_up_whole(load(config)))
        checked = asyncio.run(recovery.check(load(config), data))
        assert (checked.statement.sealed, checked.records is not None) == (secret, True)
        statement, body = backup.parse(data, load(config).state_secret)
        (tmp_path / f"{number}.db").write_bytes(body)
        with closing(sqlite3.connect(tmp_path / f"{number}.db")) as raw:
            positions = [row[0] for row in raw.execute("SELECT position FROM bound ORDER BY 1")]
            [(high, bits)] = raw.execute("SELECT high, bits FROM watermark")
        assert positions == list(range(high + 1)), "rows and watermark are of two moments"
        assert int(bits, 16).bit_count() == min(high + 1, 1024)
        assert statement.highest["default/block"] <= high
        highest.append(high)
    life.end(kill=False)
    assert len(set(highest)) == 13, "the signer signed on"


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A folder with a store, and a backup of it."""
    folder = tmp_path_factory.mktemp("good")
    config = config_of(folder)
    signed_before(config)
    return folder, config, asyncio.run(backed_up(config))


def test_a_truncated_or_torn_backup_is_refused(good):
    _, config, data = good
    chance = random.Random(1)
    cuts = [0, 1, 20, len(data) - 1, *(chance.randrange(len(data)) for _ in range(60))]
    for cut in cuts:
        for broken in (data[:cut], data[:cut] + bytes(len(data) - cut), data + bytes(cut + 1)):
            if broken != data:
                with pytest.raises(backup.BackupUnusable, match=r"cut off|changed|no backup"):
                    backup.parse(broken, load(config).state_secret)


def test_each_flipped_bit_is_found(good):
    _, config, data = good
    chance = random.Random(2)
    head = data.index(b"\n", data.index(b"\n") + 1)
    places = [*range(head), *(chance.randrange(len(data)) for _ in range(300))]
    for place in places:
        broken = bytearray(data)
        broken[place] ^= 1 << chance.randrange(8)
        with pytest.raises(backup.BackupUnusable):
            backup.parse(bytes(broken), load(config).state_secret)


def rewritten(data, **changed):
    """A backup whose first line says something else, as one without the secret can make it."""
    line, vouched, body = data.split(b"\n", 2)
    line = orjson.dumps(orjson.loads(line) | changed, option=orjson.OPT_SORT_KEYS)
    return b"\n".join((line, hashlib.sha256(line).hexdigest().encode() + b" -", body)), vouched


@one_loop
async def test_other_backups_are_refused_by_name(good, tmp_path):
    folder, config, data = good
    other = config_of(tmp_path)
    async with opened(other):
        pass
    whole, stranger = load(config), load(other)
    with pytest.raises(backup.BackupUnusable, match=r"the backup is of .*hsmcore-audit.*--from"):
        await recovery.restore(stranger, data, replace=True)
    with pytest.raises(backup.BackupUnusable, match=r"key manager ledger"):
        await recovery.check(load(unsealed(config)), rewritten(data, manager="ledger")[0])
    with pytest.raises(backup.BackupUnusable, match=r"newer version of hsmcore has made it \(schema 999"):
        await recovery.check(load(unsealed(config)), rewritten(data, schema=999)[0])
    with pytest.raises(backup.BackupUnusable, match=r"has no seal, and the configuration has a stateSecret"):
        await recovery.check(whole, rewritten(data)[0])
    foreign = json.loads(json.dumps(config))
    foreign["sequencer"]["stateSecret"] = "t" * 32
    with pytest.raises(backup.BackupUnusable, match=r"sealed with another stateSecret"):
        await recovery.check(load(foreign), data)
    trigger = "CREATE TRIGGER t AFTER INSERT ON bound BEGIN DELETE FROM bound; END"
    for statement, said in (("DROP TABLE bound", "lack of"), (trigger, "trigger t"), ("CREATE TABLE x (y)", "")):
        found = await changed_inside(config, data, tmp_path, statement)
        assert found.startswith(said) if said else found == ""
    assert (folder / "state.db").exists()


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """As `good`, of a store without a seal: whoever can write a backup can write its first line."""
    folder = tmp_path_factory.mktemp("plain")
    config = unsealed(config_of(folder))
    signed_before(config)
    data = asyncio.run(backed_up(config))
    return folder, config, data, orjson.loads(data.partition(b"\n")[0])["audit"]


def as_note(audit, **changed):
    """An audit checkpoint that says something else in each place, under the signature of before."""
    audit = audit | changed
    _, _, signature = audit["note"].rpartition("\n\n")
    return audit | {"note": f"{audit['origin']}\n{audit['size']}\n{audit['root']}\n\n{signature}"}


FORGED = {
    "root": (lambda audit: audit | {"root": "A" * 43 + "="}, "says other things"),
    "root and note": (lambda audit: as_note(audit, root="A" * 43 + "="), "is forged: the signature of"),
    "note": (lambda audit: audit | {"note": "nonsense"}, "is none: no blank line"),
    "no text": (lambda audit: audit | {"note": "\ud800"}, "not made by hsmcore|is none"),
    "size": (lambda audit: audit | {"size": 1_000_000}, "says other things"),
    "size and note": (lambda audit: as_note(audit, size=1_000_000), "is forged"),
    "more records than there can be": (lambda audit: as_note(audit, size=(1 << 63)), "no log has so many"),
    "negative": (lambda audit: as_note(audit, size=-1), "is none"),
    "a size that is none": (lambda audit: audit | {"size": True}, "says other things"),
    "a field more": (lambda audit: audit | {"more": 1}, "says other things"),
    "no object": (lambda audit: [], "says other things"),
    "another origin": (lambda audit: audit | {"origin": "other"}, "says other things"),
    "without a signature of the log": (
        lambda audit: audit | {"note": audit["note"].rpartition("\u2014")[0] + "\u2014 other AAAAAAAAAAAA\n"},
        "signed by no key",
    ),
}


@pytest.mark.parametrize("what", FORGED)
def test_a_forged_checkpoint_in_a_backup_is_refused(plain, what):
    _, config, data, audit = plain
    change, said = FORGED[what]
    forged = orjson.dumps(change(audit)) if what != "no text" else None
    if forged is None:
        line, _, rest = data.partition(b"\n")
        line = line.replace(orjson.dumps(audit["note"]), b'"\\ud800"')
        body = rest.partition(b"\n")[2]
        made = b"\n".join((line, hashlib.sha256(line).hexdigest().encode() + b" -", body))
    else:
        made = rewritten(data, audit=orjson.loads(forged))[0]
    for work in (recovery.check(load(config), made), recovery.restore(load(config), made, replace=True)):
        with pytest.raises(backup.BackupUnusable, match=said):
            asyncio.run(work)
    with pytest.raises(backup.BackupUnusable, match=said):
        asyncio.run(recovery.check(load(config), made, backup.parse(made, None)[0].subject))


def test_values_in_a_backup_that_are_none_are_refused(plain):
    for changed in (
        {"madeNs": 1 << 63}, {"madeNs": -1}, {"madeNs": "x"}, {"schema": True}, {"bytes": 1.5}, {"subject": None},
        {"manager": 1}, {"sealed": 1}, {"sha256": None}, {"highest": []}, {"highest": {"a": "b"}},
    ):  # fmt: skip
        with pytest.raises(backup.BackupUnusable, match="not made by hsmcore"):
            backup.parse(rewritten(plain[2], **changed)[0], None)


@one_loop
async def test_a_log_that_is_not_the_backups_is_noticed(tmp_path):
    """Cut behind the backup's checkpoint, or gone on from an earlier place with other records."""
    config = config_of(tmp_path)
    async with opened(config):
        pass
    early = shutil.ignore_patterns("early", "cut", "state.db*", "*.hsmstate")
    shutil.copytree(tmp_path, tmp_path / "early", ignore=early)
    async with opened(config) as manager:
        await manager.sign(ordered(1))
    data = await backed_up(config)

    def put_back():
        for path in (tmp_path / "audit.log", tmp_path / "audit.log.d"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        shutil.copytree(tmp_path / "early", tmp_path, dirs_exist_ok=True)

    assert (await recovery.check(load(config), data)).records >= 0
    put_back()
    with pytest.raises(backup.BackupUnusable, match=r"shorter than the backup says.*it was cut, or is another one"):
        await recovery.check(load(config), data)
    with pytest.raises(backup.BackupUnusable, match="shorter") as error:
        await recovery.restore(load(config), data, replace=True)
    assert "--from" in error.value.hint
    (tmp_path / "state.db").unlink()
    log = AuditLog(str(tmp_path / "audit.log"))
    await log.open()
    for number in range(20):
        log.record("login", result="ok", member=f"m{number}")
    await log.close()
    with pytest.raises(backup.BackupUnusable, match="are not those of the backup's checkpoint"):
        await recovery.restore(load(config), data, replace=True)
    whose = backup.parse(data, load(config).state_secret)[0].subject
    assert (await recovery.check(load(config), data, whose)).problem  # an operator's word
    await recovery.restore(load(config), data, replace=True, source=whose)
    assert await refused(config)


def unsealed(config):
    """The configuration without its secret."""
    plain = json.loads(json.dumps(config))
    del plain["sequencer"]["stateSecret"]
    return plain


async def changed_inside(config, data, folder, statement):
    """Check a backup of which every digest is right and whose store was changed; return what is said of it."""
    line, _, body = data.split(b"\n", 2)
    path = folder / "inside.db"
    path.write_bytes(body)
    with closing(sqlite3.connect(path)) as raw, raw:
        raw.execute("DELETE FROM seal")
        raw.execute(statement)
    body = path.read_bytes()
    line = orjson.dumps(
        orjson.loads(line) | {"bytes": len(body), "sha256": hashlib.sha256(body).hexdigest()},
        option=orjson.OPT_SORT_KEYS,
    )
    made = b"\n".join((line, hashlib.sha256(line).hexdigest().encode() + b" -", body))
    try:
        await recovery.check(load(unsealed(config)), made)
    except backup.BackupUnusable as error:
        return str(error).partition("another schema: ")[2].partition(" is not")[0].removeprefix("the ")
    return ""


@one_loop
async def test_a_backup_of_an_earlier_version_is_brought_up_to_date(tmp_path):
    """A store of before the marks (schema 7) is migrated; its backup is restored and reconciled."""
    config = unsealed(config_of(tmp_path))
    async with opened(config) as manager:
        await manager.sign(ordered(1))
    data = await backed_up(config)
    line, _, body = data.split(b"\n", 2)
    path = tmp_path / "older.db"
    path.write_bytes(body)
    with closing(sqlite3.connect(path)) as raw, raw:
        for statement in [one for migration in MIGRATIONS[:6:-1] for one in reversed(migration.statements)]:
            if made := re.match(r"CREATE TABLE (\w+)", statement):
                raw.execute(f"DROP TABLE {made[1]}")
            elif added := re.match(r"ALTER TABLE (\w+) ADD COLUMN (\w+)", statement):
                raw.execute(f"ALTER TABLE {added[1]} DROP COLUMN {added[2]}")
        raw.execute("DELETE FROM schema_version WHERE version > 7")
    body = path.read_bytes()
    changed = {"bytes": len(body), "sha256": hashlib.sha256(body).hexdigest(), "schema": 7}
    line = orjson.dumps(orjson.loads(line) | changed, option=orjson.OPT_SORT_KEYS)
    older = b"\n".join((line, hashlib.sha256(line).hexdigest().encode() + b" -", body))
    await recovery.restore(load(config), older, replace=True)
    assert await refused(config)
    await reconcile(load(config), ring_compared=False)
    put_back_by_hand(tmp_path, path)  # by hand, it is an older store too
    assert await refused(config)


@one_loop
async def test_a_restore_keeps_the_former_store_and_waits_for_nobody(tmp_path):
    config = config_of(tmp_path)
    async with opened(config) as manager:
        await manager.sign(ordered(1))
        data = await backed_up(config)
        await manager.sign(ordered(2))
        with pytest.raises(StoreBusy, match="a process uses it"):
            await recovery.restore(load(config), data, replace=True)
    before = (tmp_path / "state.db").stat().st_ino
    with pytest.raises(StoreError, match="there is one"):
        await recovery.restore(load(config), data, replace=False)
    assert (tmp_path / "state.db").stat().st_ino == before
    _, aside = await recovery.restore(load(config), data, replace=True)
    assert os.stat(aside).st_ino == before  # noqa: PTH116
    assert stat.S_IMODE((tmp_path / "state.db").stat().st_mode) == 0o600
    with pytest.raises(hsmcore.StoreBehind, match=r"it was restored \(from a backup of"):
        await hsmcore.create_key_manager(config).initialize()
    done = await reconcile(load(config), ring_compared=False)
    assert done["added"] == 1
    async with opened(config) as manager:
        with pytest.raises(DoubleSign):
            await manager.sign(ordered(2, b"another"))


@one_loop
async def test_a_restored_store_is_refused_also_if_nothing_was_signed_since(tmp_path):
    config = config_of(tmp_path)
    async with opened(config):
        pass
    await recovery.restore(load(config), await backed_up(config), replace=True)
    assert await refused(config)


@one_loop
@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes files for others")
async def test_a_store_that_root_restores_belongs_to_the_folders_owner(tmp_path):
    place = tmp_path / "service"
    place.mkdir()
    config = config_of(place)
    async with opened(config):
        pass
    data = await backed_up(config)
    for path in [place, *place.rglob("*")]:
        os.chown(path, 65534, 65534)
    await recovery.restore(load(config), data, replace=True)
    owners = {path.name: path.stat().st_uid for path in place.iterdir() if path.name.startswith(("state", ".state"))}
    assert owners.keys() > {"state.db"}
    assert set(owners.values()) == {65534}


@one_loop
async def test_a_damaged_store_is_replaced(tmp_path):
    config = config_of(tmp_path)
    async with opened(config) as manager:
        await manager.sign(ordered(1))
    data = await backed_up(config)
    (tmp_path / "state.db").write_bytes(b"rubbish" * 1000)
    await recovery.restore(load(config), data, replace=True)
    await reconcile(load(config), ring_compared=False)
    assert not await refused(config)


@pytest.mark.slow("a process for each kill")
def test_a_kill_in_the_middle_of_a_backup_or_a_restore_leaves_no_half(tmp_path):
    config = config_of(tmp_path)
    signed = signed_before(config, 200)
    (tmp_path / "config.json").write_text(json.dumps(config))
    data = asyncio.run(backed_up(config))
    (tmp_path / "good.hsmstate").write_bytes(data)
    chance, places = random.Random(3), tmp_path / "places"
    backup_ = ["state", "backup", "--to", f"{places}/"]
    restore = ["state", "restore", str(tmp_path / "good.hsmstate"), "--replace", "--reason", "x"]
    killed = 0
    for trial in range(10):
        command = [*(backup_ if trial % 2 else restore), "--config", str(tmp_path / "config.json")]
        child = Forked([CLI, *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        before = set(tmp_path.iterdir())
        while child.poll() is None and chance.random() > (0.0005 if set(tmp_path.iterdir()) == before else 0.02):
            pass
        killed += child.poll() is None
        child.send_signal(signal.SIGKILL)
        child.wait()
        for path in places.glob("*.hsmstate"):
            backup.parse(path.read_bytes(), load(config).state_secret)
        with closing(sqlite3.connect(tmp_path / "state.db")) as raw:
            assert raw.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            assert raw.execute("SELECT count(*) FROM bound").fetchone()[0] >= 200
    assert killed, "no command was killed"
    asyncio.run(reconcile(load(config), ring_compared=False))
    assert asyncio.run(conflicts(config, signed, chance)) == 0


# ---- commands and schedule -------------------------------------------------------------------------------------------


@pytest.fixture
def command(tmp_path, capfdbinary):
    (tmp_path / "config.json").write_text(json.dumps(config_of(tmp_path)))
    with commands(tmp_path, capfdbinary) as command:
        yield command


def test_the_commands_of_a_way_back(command, tmp_path):
    config = config_of(tmp_path)
    signed = signed_before(config)
    (tmp_path / "backups").mkdir()
    code, made, _ = command("state", "backup", "--to", str(tmp_path / "backups"))
    assert (code, made["sealed"], made["highest"]["default/block"] + 1) == (0, True, len(signed))
    [path] = (tmp_path / "backups").iterdir()
    assert (path.name, stat.S_IMODE(path.stat().st_mode)) == (made["name"], 0o600)
    assert made["audit"]["size"] > 0
    code, found, _ = command("state", "verify", str(path))
    assert (code, found["older"], found["missingPositions"], found["recordsBehind"]) == (0, False, 0, 1)
    signed |= signed_before(config, 4, len(signed))
    code, found, _ = command("state", "verify", str(path))
    assert (code, found["older"]) == (0, True)
    assert found["missingPositions"] == len(signed) - made["highest"]["default/block"] - 1
    assert found["recordsBehind"] > 4
    assert "older than the audit log" in command("state", "verify", str(path), plain=True)[1]
    assert command("state", "restore", str(path), "--reason", "x")[0] == 1  # there is a store
    assert command("state", "restore", str(path), "--replace")[0] == 2  # no reason
    code, done, _ = command("state", "restore", str(path), "--replace", "--reconcile", "--reason", "a test")
    assert (code, done["reconciled"]["added"]) == (0, found["missingPositions"])
    assert asyncio.run(conflicts(config, signed, random.Random(1))) == 0
    code, done, _ = command("state", "reconcile", "--reason", "again")
    assert (code, done["problem"], done["added"]) == (0, "", 0)
    assert command("state", "verify", str(tmp_path / "none"))[0] == 2

    async def records():
        log = AuditLog(str(tmp_path / "audit.log"))
        return [record["command"] async for record in log.query(match={"operation": "command", "result": "ok"})]

    assert asyncio.run(records()) == ["state backup", "state restore", "state reconcile", "state reconcile"]


RAW = {"policy": {"kinds": ["raw"]}}
LEVELS = {"failover": {"emergencyModeEnabled": True, "primaryRetryIntervalMs": 500}}
NOTICES = {"notices": {"targets": ["jsons://127.0.0.1:9/nowhere"]}}


@pytest.mark.parametrize("kept", [LEVELS, NOTICES], ids=["levels", "notices"])
def test_an_older_store_without_positions_is_refused_too_and_the_advice_works(command, tmp_path, kept):
    """What it holds is the ring, the budget, orders: no kind of the policy has a position."""
    config, path = config_of(tmp_path, **RAW, **kept), str(tmp_path / "a.hsmstate")
    (tmp_path / "config.json").write_text(json.dumps(config))
    asyncio.run(once(config_of(tmp_path, **RAW)))  # a log from before anything was kept: it has no marks
    asyncio.run(once(config))
    assert command("state", "backup", "--to", path)[0] == 0
    copy_by_hand(tmp_path, tmp_path / "copy.db")
    asyncio.run(once(config))
    code, found, _ = command("state", "verify", path)
    assert (code, found["older"], "goes on after it" in found["why"]) == (0, True, True)

    def a_way_back():
        with pytest.raises(hsmcore.StoreBehind) as error:
            asyncio.run(once(config))
        assert "hsmcore state reconcile --reason TEXT" in error.value.hint
        assert command("state", "reconcile", "--reason", "a test")[0] == 0
        asyncio.run(once(config))

    put_back_by_hand(tmp_path, tmp_path / "copy.db")
    a_way_back()
    shutil.move(tmp_path / "state.db", tmp_path / "moved.db")  # lost; a new one beside an old log
    a_way_back()
    code, _, said = command("state", "restore", path, "--replace", "--reason", "a test", plain=True)
    assert (code, "next: hsmcore state reconcile --reason" in said) == (0, True)
    a_way_back()


async def once(config):
    """A key manager's life."""
    async with opened(config) as manager:
        await manager.sign(b"m")


def test_a_restore_without_an_audit_log_says_what_is_left(command, tmp_path):
    config, path = config_of(tmp_path), str(tmp_path / "a.hsmstate")
    del config["sequencer"]["keyManager"]["auditLogFile"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    signed_before(config, 1)
    assert command("state", "backup", "--to", path)[0] == 0
    arguments = ("state", "restore", path, "--replace", "--reason", "x")
    assert command(*arguments, "--reconcile")[0] == 2
    code, _, said = command(*arguments, plain=True)
    assert (code, "no audit log" in said, "reconcile" in said) == (0, True, False)


def test_what_a_backup_lacks_when_the_log_is_lost_too_is_given_up(command, tmp_path):
    """docs/RECOVERY.md: state store and audit log are lost, and a backup is not; the chain says how far it is."""
    config = config_of(tmp_path)
    signed = signed_before(config)
    path = str(tmp_path / "a.hsmstate")
    made = command("state", "backup", "--to", path)[1]
    signed |= signed_before(config, 4, len(signed))
    for lost in [*tmp_path.glob("state.db*"), *tmp_path.glob("audit.log*")]:
        shutil.rmtree(lost) if lost.is_dir() else lost.unlink()
    assert command("state", "restore", path, "--reason", "x")[0] == 1  # the new log has another name
    arguments = ("state", "restore", path, "--reason", "the disk is gone", "--from", made["subject"], "--reconcile")
    assert command(*arguments)[0] == 0
    assert command("policy", "floor", "set", "block", str(max(signed)), "--reason", "the chain is there")[0] == 0
    assert asyncio.run(conflicts(config, signed, random.Random(1))) == 0


@one_loop
async def test_a_lost_secret_is_replaced_and_the_store_adopted(tmp_path):
    """docs/RECOVERY.md: stateSecret."""
    config = config_of(tmp_path)
    async with opened(config) as manager:
        await manager.sign(ordered(1))
    data = await backed_up(config)
    config["sequencer"]["stateSecret"] = "another secret of 32 bytes or more"
    async with opened(config) as manager:
        with pytest.raises(hsmcore.StoreNotGenuine):
            await manager.sign(ordered(1, b"another"))
    with pytest.raises(backup.BackupUnusable, match="sealed with another stateSecret"):
        await recovery.check(load(config), data)
    store = await Store.open(tmp_path / "state.db", load(config).state_secret, shows=True)
    await store.adopt((await store.seal_status()).digest)
    await store.close()
    async with opened(config) as manager:
        with pytest.raises(DoubleSign):
            await manager.sign(ordered(1, b"another"))
        assert await manager.sign(ordered(2))
    assert (await recovery.check(load(config), await backed_up(config))).problem == ""


@one_loop
async def test_a_configuration_that_is_written_again_is_known_by_its_digest(tmp_path):
    """docs/RECOVERY.md: the configuration."""
    config = config_of(tmp_path)
    async with opened(config) as manager:
        await manager.sign(ordered(1))
    again = config_of(tmp_path)
    log = AuditLog(str(tmp_path / "audit.log"))
    loads = [record async for record in log.query(match={"operation": "configuration-load"})]
    assert load(again).sha256() == loads[-1]["config_sha256"]
    assert load(config_of(tmp_path, queueSize=7)).sha256() != loads[-1]["config_sha256"]
    assert not await refused(again)


def test_positions_go_from_one_store_to_another(command, tmp_path):
    """docs/RECOVERY.md: both the state store and the audit log are lost, and an export is not."""
    config = config_of(tmp_path)
    signed = signed_before(config)
    assert command("state", "export", "--output", str(tmp_path / "positions.json"))[0] == 0
    for path in [*tmp_path.glob("state.db*"), *tmp_path.glob("audit.log*")]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    code, done, _ = command("state", "import", str(tmp_path / "positions.json"))
    assert (code, done["added"]) == (0, len(signed))
    assert command("fleet", "import", str(tmp_path / "positions.json"))[1]["added"] == 0
    assert asyncio.run(conflicts(config, signed, random.Random(1))) == 0


@one_loop
async def test_backups_on_schedule_and_their_drill(tmp_path):
    place = tmp_path / "backups"
    config = config_of(tmp_path, stateBackup={"location": str(place), "everyHours": 1})
    async with opened(config) as manager:
        await until(lambda: Scrape.of(manager)("hsmcore_state_drill_timestamp_seconds") > 0)
        [made] = place.glob("*.hsmstate")
        scrape = Scrape.of(manager)
        assert scrape("hsmcore_state_backup_failing") == 0
        due = scrape("hsmcore_state_backup_due_timestamp_seconds")
        assert due == scrape("hsmcore_state_backup_timestamp_seconds") + 3600
        service = manager._background.state_backups
        begun = StateBackups(load(config))  # one whose place hangs never gets further
        assert 0 < begun.due <= time.time() < due
        await service.look()  # it is not time yet
        assert list(place.glob("*.hsmstate")) == [made]
        log, digest = manager.audit, hashlib.sha256(made.read_bytes().split(b"\n", 2)[2]).hexdigest()
        for operation in ("state-backup", "state-drill"):
            [record] = [found async for found in log.query(match={"operation": operation})]
            assert (record["result"], record["file"], record["sha256"]) == ("ok", made.name, digest)
    made.rename(place / made.name.replace(made.name.split(".")[-3], "20200101T000000Z"))
    async with opened(config) as manager:
        await until(lambda: Scrape.of(manager)("hsmcore_state_drill_timestamp_seconds") > 0)
        assert len(list(place.glob("*.hsmstate"))) == 2


@one_loop
async def test_two_backups_of_one_second_and_state_are_one(tmp_path, monkeypatch):
    """The key manager's and a command's; a name that a person chose is not taken twice."""
    place = tmp_path / "beside"  # the key manager has its own of another second
    config = config_of(tmp_path, stateBackup={"location": str(tmp_path / "backups")})
    async with opened(config):
        pass
    now = time.time_ns()
    monkeypatch.setattr("hsmcore.state.backup.time.time_ns", lambda: now)
    loaded = load(config)
    target = state_backup.place_of(loaded, str(place))
    for _ in range(2):
        async with recovery.back_up(loaded) as (statement, *parts):
            await state_backup.put(target, state_backup.name_of(loaded, statement), statement, *parts)
    assert len(list(place.iterdir())) == 1
    await state_backup.put(target, "mine.hsmstate", statement, b"one")
    with pytest.raises(HsmError, match="File exists"):
        await state_backup.put(target, "mine.hsmstate", statement, b"other")


@one_loop
async def test_a_backup_that_does_not_come_back_fails_its_drill(tmp_path):
    place = tmp_path / "backups"
    config = config_of(tmp_path, stateBackup={"location": str(place)})
    async with opened(config):
        pass
    service = StateBackups(load(config))
    await service.look()
    [made] = place.glob("*.hsmstate")
    made.write_bytes(made.read_bytes()[:-1])
    again = StateBackups(load(config))
    with pytest.raises(HsmError, match="cut off"):
        await again.look()
    async with opened(config) as manager:
        await until(lambda: Scrape.of(manager)("hsmcore_state_backup_failing") == 1)
        found = [record async for record in manager.audit.query(match={"operation": "state-drill"})]
        assert [(record["result"], record.get("file")) for record in found if record["result"] == "error"] == [
            ("error", made.name)
        ]


@one_loop
@pytest.mark.parametrize("what", ["copy", "write", "open"])
async def test_one_that_is_cancelled_leaves_no_copy_behind(tmp_path, monkeypatch, what):
    """The work is another thread's, which goes on: what it writes is removed when it has ended."""
    config = config_of(tmp_path, stateBackup={"location": str(tmp_path / "backups")})
    async with opened(config):
        pass
    loaded, beside = load(config), tmp_path / "beside"
    data = await backed_up(config)
    beside.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(beside))
    begun = threading.Event()

    def slowly(function):
        def slow(*arguments):
            begun.set()
            time.sleep(0.1)
            return function(*arguments)

        return slow

    place, name = {
        "copy": (FileDatabase, "copy_to"),
        "write": (backup, "_write"),
        "open": (FileDatabase, "open"),
    }[what]
    monkeypatch.setattr(place, name, slowly(getattr(place, name)))
    working = asyncio.ensure_future(backed_up_whole(loaded) if what == "copy" else recovery.check(loaded, data))
    await until(begun.is_set)
    working.cancel()
    with pytest.raises(asyncio.CancelledError):
        await working
    assert list(beside.iterdir()) == []


@one_loop
async def test_a_disk_without_room_is_a_failure_that_is_told_and_tried_again(tmp_path, monkeypatch):
    config = config_of(tmp_path, stateBackup={"location": str(tmp_path / "backups")})
    monkeypatch.setattr(state_backup, "_RETRY_SECONDS", 0.01)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "absent"))
    async with opened(config) as manager:
        await until(lambda: Scrape.of(manager)("hsmcore_state_backup_failing") == 1)
        (tmp_path / "absent").mkdir()
        await until(lambda: Scrape.of(manager)("hsmcore_state_backup_failing") == 0)
        assert len(list((tmp_path / "backups").glob("*.hsmstate"))) == 1


# ---- a fleet ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow("a process for each life of a store")
def test_a_fleets_database_is_backed_up_and_restored_into_a_new_one(tmp_path):
    """docs/RECOVERY.md: the fleet's database."""
    with cluster() as server:
        fleet = Fleet(tmp_path, server.database())
        signed = fleet.live(5)
        data = asyncio.run(backed_up(fleet.config))
        statement = asyncio.run(recovery.check(load(fleet.config), data)).statement
        assert (statement.subject, statement.sealed) == ("tests", True)
        signed |= fleet.live(5, max(signed) + 1)
        moved = Fleet(tmp_path, server.database("elsewhere"))
        asyncio.run(recovery.restore(load(moved.config), data, replace=False))
        incidents = moved.incidents()
        assert asyncio.run(conflicts(moved.config, signed, random.Random(1))) == 0
        assert moved.incidents() > incidents
        signed |= moved.live(3, max(signed) + 1)  # ids go on behind those that were put in
        stranger = json.loads(json.dumps(moved.config))
        stranger["sequencer"]["keyManager"]["fleet"]["name"] = "others"
        with pytest.raises(backup.BackupUnusable, match="the backup is of tests"):
            asyncio.run(recovery.restore(load(stranger), data, replace=True))
        with pytest.raises(StoreError, match="there are rows"):
            asyncio.run(recovery.restore(load(moved.config), data, replace=False))
        life = Life(moved.config, max(signed) + 1)
        life.more(1)
        with pytest.raises(StoreBusy, match="one use it"):
            asyncio.run(recovery.restore(load(moved.config), data, replace=True))
        life.end(kill=False)
