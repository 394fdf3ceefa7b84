"""What one key may have signed no other key signs, also after a restart: by the state store, and by the audit log's end
where the process was killed."""

from __future__ import annotations

import asyncio
import hashlib
import json
import sqlite3
import time
from contextlib import closing
from typing import Any

import pytest
from tests.support.levels import OTHER, SAME, Site
from tests.support.loops import one_loop
from tests.support.managers import opened, start, until
from tests.support.signing_kills import run_and_kill

import hsmcore
from hsmcore.failover import bindings
from hsmcore.failover.bindings import BINDING_NS, BindingRow, KeyBindings, StoredBindings
from hsmcore.failover.errors import AllLevelsFailed
from hsmcore.state.errors import StoreError
from hsmcore.state.store import Store

pytestmark = [pytest.mark.integration]

LEVELS = {"acceptOtherKeys": ["secondary"]}
HANGS = {"every": 1, "forever": True}


@pytest.fixture
def place(tmp_path, fresh_token):
    """A secondary level with another key."""
    return Site(tmp_path, fresh_token, SAME, OTHER)


def configured(place: Site, **rules: Any) -> dict[str, Any]:
    return place.config(failover=LEVELS, **rules)


async def secondary_signs(manager: hsmcore.KeyManager) -> None:
    service = manager._path
    await service.health._desired.set(f"drain:{service.endpoints[0].name}", "yes", "a test")
    await service.health._follow()
    assert service.levels.active == 1


async def assert_bound(manager: hsmcore.KeyManager, messages: list[bytes]) -> None:
    """The secondary level signs none of them, and others."""
    await secondary_signs(manager)
    answers = await asyncio.gather(*(manager.sign(m, 0.5) for m in messages), return_exceptions=True)
    assert {type(answer) for answer in answers} == {AllLevelsFailed}
    assert all("allow_other_key" in str(answer) for answer in answers)
    assert (await manager.sign_with_receipt(b"another", 5)).level == "secondary"


def rows(place: Site) -> list[tuple[str, str, int]]:
    with closing(sqlite3.connect(place.folder / "state.db")) as connection:
        return connection.execute("SELECT digest, public_key, until_ns FROM key_binding").fetchall()


async def abandon(place: Site, manager: hsmcore.KeyManager, message: bytes) -> None:
    """Its caller goes away while the first member signs it."""
    place.members[0].fault("C_Sign", "hang", **HANGS)
    asked = start(manager.sign(message, 20))
    await until(lambda: place.members[0].stats()["hung"] == 1)
    asked.cancel()
    await asyncio.gather(asked, return_exceptions=True)
    place.members[0].clear()
    place.members[0].release()


@one_loop
async def test_a_binding_outlives_the_process(place):
    async with opened(configured(place)) as manager:
        await abandon(place, manager, b"m")
    assert [digest for digest, _, _ in rows(place)] == [hashlib.sha256(b"m").hexdigest()]
    async with opened(configured(place)) as manager:
        assert (await manager.sign_with_receipt(b"m", 5)).level == "primary"
        await assert_bound(manager, [b"m"])
        assert (await manager.sign_with_receipt(b"m", 5, allow_other_key=True)).level == "secondary"


@one_loop
async def test_what_the_store_refuses_is_written_later(place, monkeypatch):
    monkeypatch.setattr(bindings, "RETRY_NS", 1)
    keep, refused = StoredBindings.keep, []

    async def refuses(stored: StoredBindings, some: list[bindings.BindingRow]) -> None:
        if len(refused) < 3:
            refused.append(some)
            raise StoreError("the disk is full")
        await keep(stored, some)

    monkeypatch.setattr(StoredBindings, "keep", refuses)
    async with opened(configured(place)) as manager:
        await abandon(place, manager, b"m")
        await until(lambda: len(rows(place)) == 1)
    assert len(refused) == 3


@one_loop
async def test_a_writer_of_the_store_can_delay_and_no_more(place):
    """Rows that are no bindings are left out; one from the future ends like any other."""
    async with opened(configured(place)):
        pass
    digest, key, year = hashlib.sha256(b"m").hexdigest(), "ab" * 32, 365 * 86400 * 10**9
    forged = [
        ("no digest", key, 1 << 62),
        ("ab", key, 1 << 62),
        (digest[:-2] + "00", "no key", 1 << 62),
        (digest[:-2] + "01", "", 1 << 62),
        (digest[:-2] + "02", "ab" * 10**6, 1 << 62),
        (digest[:-2] + "03", key, "a text"),
        (digest, key, time.time_ns() + year),
    ]
    with closing(sqlite3.connect(place.folder / "state.db")) as connection, connection:
        connection.executemany("INSERT INTO key_binding VALUES (?, ?, ?)", forged)
    async with opened(configured(place)) as manager:
        found = manager._path.bindings._keys
        assert list(found) == [hashlib.sha256(b"m").digest()]
        assert all(until_ns <= time.monotonic_ns() + BINDING_NS for _, until_ns in found.values())
        with pytest.raises(AllLevelsFailed):
            await manager.sign(b"m", 0.5)
        assert await manager.sign(b"another", 5)


def test_what_a_killed_process_has_signed_no_other_key_signs(place, run):
    """Of a message whose answer got out, or whose record did, the caller may ask again, with the first key away."""
    log = place.folder / "audit.log"
    config = configured(place, auditLogFile=str(log))
    path = place.folder / "config.json"
    path.write_text(json.dumps(config))
    answered = [message for message, _ in run_and_kill(path, 300)]

    async def after() -> None:
        async with opened(config) as manager:
            records = [r async for r in manager.audit.query(match={"operation": "sign"}) if "signature" in r]
            service = manager._path
            newest = records[-1]["time_ns"] - bindings.HANDING_OUT_NS
            signed = {bytes.fromhex(r["message_sha256"]) for r in records if r["time_ns"] >= newest}
            assert signed == service.bindings._keys.keys()
            assert {hashlib.sha256(m).hexdigest() for m in answered} <= {r["message_sha256"] for r in records}
            await service.bindings.close()
            assert len(rows(place)) == len(signed)
            late = [m for m in answered if hashlib.sha256(m).digest() in signed]
            await assert_bound(manager, late[-50:])
        async with opened(config) as manager:  # it was closed: only what was taken over binds still
            assert manager._path.bindings._keys.keys() == signed

    run(after())


@one_loop
async def test_what_a_closed_process_has_answered_binds_nothing(place):
    config = configured(place, auditLogFile=str(place.folder / "audit.log"))
    async with opened(config) as manager:
        await manager.sign(b"m")
    async with opened(config) as manager:
        assert not manager._path.bindings
        await secondary_signs(manager)
        assert (await manager.sign_with_receipt(b"m", 5)).level == "secondary"


@one_loop
async def test_each_write_takes_away_the_rows_whose_time_is_over_and_no_others(tmp_path):
    store = await Store.open(tmp_path / "state.db")
    stored, now = StoredBindings(store), time.time_ns()
    over = BindingRow(bytes(32), b"key", now)
    lasts = BindingRow(bytes([1]) * 32, b"key", now + 3600 * 10**9)
    await stored.keep([over, lasts])
    assert await stored.load() == [over, lasts]
    await stored.keep([])
    assert await stored.load() == [lasts]
    await store.close()


def test_so_many_messages_are_bound_and_no_more(monkeypatch):
    monkeypatch.setattr(bindings, "BINDINGS_MAX", 3)
    kept = KeyBindings()
    for number in range(5):
        kept.add(b"%d" % number, b"key", number)
        assert [kept.get(b"%d" % one) for one in range(number + 1)][-3:] == [b"key"] * min(number + 1, 3)
    assert [kept.get(b"%d" % one) for one in range(5)] == [None, None, b"key", b"key", b"key"]
