"""Lines that another writer appends to the audit log of a sealed store: they stop no start, and nothing that they say
gets into the store."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import sqlite3
import time
from contextlib import closing

import pytest
from tests.support.audit_logs import copy_of
from tests.support.fleet_hosts import BLOCKS, Host, copy, message, put_back
from tests.support.loops import one_loop
from tests.support.managers import opened
from tests.support.policed import ordered
from tests.support.state_rollbacks import Life, config_of, conflicts, copy_by_hand, put_back_by_hand

from hsmcore import StoreBehind, create_key_manager
from hsmcore.audit.check.verify import verify
from hsmcore.audit.layout import Layout
from hsmcore.config import load
from hsmcore.recovery.reconcile import reconcile
from hsmcore.state import Store
from hsmcore.tlog.checkpoint import Checkpoint

pytestmark = pytest.mark.integration


class Bytes:
    """The secret of a seal."""

    def resolve(self):
        return bytearray(b"a secret of more than 32 bytes, for tests only")


def forge(layout: Layout, **changes: object) -> None:
    """Append what a record of a signature would be, as the last one there is says it, with these changes."""
    lines = [json.loads(line) for line in layout.log.read_bytes().splitlines()]
    like = next(record for record in reversed(lines) if record["operation"] == "sign")
    whole = like | {"seq": lines[-1]["seq"] + 1, "time_ns": time.time_ns()} | changes
    with layout.log.open("ab") as file:
        file.write(json.dumps(whole, separators=(",", ":")).encode() + b"\n")


OTHER = hashlib.sha256(b"what nobody signed").hexdigest()
FORGED = [{"position": 1 << 62}, {"position": 4, "message_sha256": OTHER}, {"position": 2, "message_sha256": OTHER}]


@one_loop
@pytest.mark.parametrize("changes", FORGED, ids=["far-ahead", "next", "bound"])
@pytest.mark.parametrize("with_mac", [True, False])
async def test_a_line_that_was_appended_at_rest_counts_for_nothing(tmp_path, caplog, changes, with_mac):
    config, layout = config_of(tmp_path), Layout(tmp_path / "audit.log")
    async with opened(config) as manager:
        for position in (1, 2, 3):
            await manager.sign(ordered(position))
    more = {} if with_mac else {"mac": ""}
    forge(layout, **changes, **more)
    for first in (4, 6):  # the first start seals the line
        async with opened(config) as manager:
            assert "not vouched for" in caplog.text
            caplog.clear()
            await manager.sign(ordered(first))
        done = await reconcile(load(config), ring_compared=False)
        assert (done["added"], done["conflicts"], done["floors"]) == (0, [], {})
        async with opened(config) as manager:
            await manager.sign(ordered(first + 1))
        assert verify(layout).ok
        forge(layout, **changes, **more)


@one_loop
async def test_a_budget_or_a_binding_that_was_appended_is_not_put_back(tmp_path):
    config = config_of(tmp_path)
    async with opened(config) as manager:
        await manager.sign(ordered(1))
    forge(
        Layout(tmp_path / "audit.log"), result="error", error="DEADLINE_EXCEEDED", public_key="aa" * 32, position=None
    )
    assert (await reconcile(load(config), ring_compared=False))["keyBindings"] == 0


@one_loop
async def test_the_unsealed_end_of_a_killed_signer_s_log_still_is_a_witness(tmp_path):
    """No checkpoint covers it, but it has the MACs."""
    config = config_of(tmp_path, audit={"checkpointEverySeconds": 3600, "checkpointEveryRecords": 10**6})
    life = Life(config, 0)
    life.more(5)
    copy_by_hand(tmp_path, tmp_path / "older")
    with closing(sqlite3.connect(tmp_path / "older")) as older:
        [[copied]] = older.execute("SELECT max(position) FROM bound")
    while max(life.signed) < copied + 5:  # it signs on while it is copied, and before it is read
        life.more(1)
    life.end(kill=True)
    sealed = Checkpoint.parse(Layout(tmp_path / "audit.log").checkpoint.read_bytes()).size
    assert sealed == 0
    put_back_by_hand(tmp_path, tmp_path / "older")
    done = await reconcile(load(config), ring_compared=False)
    assert done["added"] >= 5
    assert await conflicts(config, life.signed, random.Random(1)) == 0


@one_loop
@pytest.mark.parametrize("sealed", [True, False])
async def test_records_of_before_there_were_macs_are_witnesses_if_a_checkpoint_covered_them(tmp_path, sealed):
    rules = {} if sealed else {"checkpointEverySeconds": 3600}
    layout = Layout(tmp_path / "a" / "audit.log")
    for first in (0, 10):
        if first:
            copy(tmp_path, "older")
        async with Host(tmp_path, "a", Bytes(), **rules) as host:
            await host.witness.attend()
            for position in range(first, first + 10):
                await host.sign(position, recorded=False)
                said = {"message": message(f"{BLOCKS} {position}"), "domain": BLOCKS, "position": position}
                host.log.record("sign", result="ok", **said)
            await host.log.flush()
            killed = copy_of(layout, tmp_path / f"killed-{first}")
    if not sealed:
        shutil.rmtree(layout.folder)
        shutil.copytree(killed.folder, layout.folder)
        shutil.copy(killed.log, layout.log)
    put_back(tmp_path, "older")
    async with Host(tmp_path, "a", Bytes(), **rules) as host:
        assert (await host.witness.attend()).number == (1 if sealed else 0)
        assert len(await host.digests()) == (20 if sealed else 10)


@one_loop
@pytest.mark.parametrize("which", ["first", "last"])
async def test_an_older_store_stays_one_whatever_is_appended_to_its_log(tmp_path, which):
    """The mark that the older store knows, copied to the log's end, vouches for nothing."""
    config = config_of(tmp_path, policy={"kinds": ["tx-v0"]}, failover={"emergencyModeEnabled": True})
    layout = Layout(tmp_path / "audit.log")
    async with opened(config):
        if which == "first":
            copy_by_hand(tmp_path, tmp_path / "older")
            known = marks_in(layout)[0]
    if which == "last":
        copy_by_hand(tmp_path, tmp_path / "older")
        known = marks_in(layout)[-1]
    async with opened(config):
        pass
    put_back_by_hand(tmp_path, tmp_path / "older")
    following = len(layout.log.read_bytes().splitlines()) + 1
    with layout.log.open("ab") as file:
        file.write(json.dumps(known | {"seq": following}, separators=(",", ":")).encode() + b"\n")
    with pytest.raises(StoreBehind, match="goes on after it"):
        await create_key_manager(config).initialize()


def marks_in(layout: Layout) -> list[dict[str, object]]:
    return [json.loads(line) for line in layout.log.read_bytes().splitlines() if b'"state-mark"' in line]


@one_loop
async def test_marks_of_before_there_were_macs_are_followed_by_some_that_have_one(tmp_path, monkeypatch, caplog):
    config = config_of(tmp_path, policy={"kinds": ["tx-v0"]}, failover={"emergencyModeEnabled": True})
    with monkeypatch.context() as earlier:
        earlier.setattr(Store, "attest", lambda *_: "")
        for _ in range(2):
            async with opened(config):
                pass
    for _ in range(3):
        async with opened(config):
            pass
    assert "not vouched for" not in caplog.text
    made = marks_in(Layout(tmp_path / "audit.log"))
    assert ["mac" in mark for mark in made] == [False] * 4 + [True] * 6
    assert [mark["previous"] for mark in made[4:]] == ["", *(mark["state"] for mark in made[4:-1])]
