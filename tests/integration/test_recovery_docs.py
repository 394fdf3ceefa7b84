"""docs/RECOVERY.md, row by row: the commands of each way back, from the document, run after such a loss."""

from __future__ import annotations

import asyncio
import json
import random
import re
import shlex
import shutil

import pytest
from tests.integration.test_rotation import rules
from tests.support.commands import commands
from tests.support.managers import opened
from tests.support.paths import ROOT
from tests.support.policed import ordered
from tests.support.state_rollbacks import config_of, conflicts, copy_by_hand, put_back_by_hand, refused

import hsmcore

pytestmark = pytest.mark.integration
_COMMAND = re.compile(r"`(?:hsmcore )?((?:state|policy|rotate|fleet|backup) [^`]+)`")


def ways_back():
    """What is lost, and the commands of its way back, as they stand in the table."""
    text = (ROOT / "docs" / "RECOVERY.md").read_text()
    table = text.partition("## What is lost with what")[2].partition("\n## ")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("| ")]
    return {row[0]: _COMMAND.findall(row[2]) for row in rows[1:]}


WAYS = ways_back()


class Loss:
    """A host that has signed, was backed up, has signed on, and loses something."""

    def __init__(self, folder, command, config=None):
        self.folder, self.command = folder, command
        self.config = config or config_of(folder)
        self.write(self.config)
        self.values = {"BACKUP": str(folder / "a.hsmstate"), "TEXT": "'the disk is gone'", "KIND": "block"}
        self.values["FILE"] = str(folder / "positions.json")
        self.signed = {}

    def write(self, config):
        (self.folder / "config.json").write_text(json.dumps(config))

    def sign(self, count):
        asyncio.run(self._sign(count))

    async def _sign(self, count):
        async with opened(self.config) as manager:
            for position in range(len(self.signed), len(self.signed) + count):
                await manager.sign(ordered(position, b"%d" % position))
                self.signed[position] = b"%d" % position
        self.values["HEAD"] = str(max(self.signed))

    def back_up(self):
        made = self.done("state backup --to BACKUP")
        self.values["NAME"] = made["subject"]
        self.done("state export --output FILE")
        copy_by_hand(self.folder, self.folder / "copy.db")

    def prepare(self):
        self.sign(3)
        self.back_up()
        self.sign(3)

    def lose(self, *names):
        for name in names:
            for path in [*self.folder.glob(f"{name}*")]:
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def start_in_vain(self):
        """As a service manager does before anybody looks: a start that is refused leaves no store in the way."""
        assert all(asyncio.run(refused(self.config)) for _ in range(10))
        assert not (self.folder / "state.db").exists()

    def run(self, line):
        """A command as the document has it, with its words in capitals replaced."""
        line = re.sub(r"\b[A-Z]{4,}\b", lambda found: self.values.get(found[0], found[0]), line)
        return self.command(*shlex.split(line))

    def done(self, line):
        code, out, err = self.run(line)
        assert code == 0, (line, err)
        return out

    def whole(self):
        """No position that was handed out is signed for another payload."""
        assert asyncio.run(conflicts(self.config, self.signed, random.Random(1))) == 0


@pytest.fixture
def run(tmp_path, capfdbinary):
    (tmp_path / "config.json").write_text("{}")
    with commands(tmp_path, capfdbinary) as command:
        yield command


@pytest.fixture
def loss(tmp_path, run):
    return Loss(tmp_path, run)


def test_each_row_with_commands_is_played():
    here = {
        "the state store",
        "the newest state: an older copy was put back by hand",
        "the newest part of the audit log",
        "both, and a backup is left",
        "both, and an export is left",
        "`stateSecret`",
    }
    elsewhere = {  # what needs a fleet's database, or a key's backup
        "the fleet's database": "test_state_recovery.py",
        "a host of a fleet": "test_fleet_orders.py",
        "the token, or the key on it": "test_rotation_backup.py",
    }
    assert {name for name, found in WAYS.items() if found} == here | set(elsewhere)
    assert all((ROOT / "tests/integration" / place).exists() for place in elsewhere.values())


def test_the_state_store(loss):
    loss.prepare()
    restore, reconcile, status = WAYS["the state store"]
    for line in (restore, reconcile):
        loss.lose("state.db")
        loss.start_in_vain()
        loss.done(line)
        loss.whole()
    assert status == "rotate status"  # with a ring: below


def test_an_older_copy(loss):
    loss.prepare()
    put_back_by_hand(loss.folder, loss.folder / "copy.db")
    assert asyncio.run(refused(loss.config))
    [reconcile] = WAYS["the newest state: an older copy was put back by hand"]
    loss.done(reconcile)
    loss.whole()


def test_the_newest_part_of_the_log(loss):
    loss.prepare()
    kept = loss.folder / "kept"
    kept.mkdir()
    for path in loss.folder.glob("audit.log*"):
        shutil.copytree(path, kept / path.name) if path.is_dir() else shutil.copy(path, kept)
    loss.sign(2)
    loss.lose("audit.log")
    shutil.copytree(kept, loss.folder, dirs_exist_ok=True)
    assert asyncio.run(refused(loss.config))
    [reconcile] = WAYS["the newest part of the audit log"]
    loss.done(reconcile)
    loss.whole()


@pytest.mark.parametrize("left", ["a backup", "an export"])
def test_both_store_and_log(loss, left):
    loss.prepare()
    found = WAYS[f"both, and {left} is left"]
    assert any(line.startswith("policy floor set") for line in found)
    loss.lose("state.db", "audit.log")
    for line in found:
        loss.done(line)
    loss.whole()


@pytest.mark.parametrize("left", ["a backup", "an export"])
def test_both_after_starts_in_vain(fresh_token, tmp_path, run, left):
    """This host remembers the store by the key."""
    kept = {"auditLogFile": str(tmp_path / "audit.log"), "stateFile": str(tmp_path / "state.db"), "maxCacheSize": 0}
    loss = Loss(tmp_path, run, fresh_token().config(policy={"kinds": ["block"]}, **kept))
    loss.prepare()
    loss.lose("state.db", "audit.log")
    loss.start_in_vain()
    for line in WAYS[f"both, and {left} is left"]:
        loss.done(line)
    if left == "an export":
        with pytest.raises(hsmcore.StoreBehind) as error:
            asyncio.run(_current(loss.config))
        loss.done(re.search(r"hsmcore (state begin .*)", str(error.value.hint))[1])
    loss.whole()


def test_the_secret(loss):
    loss.prepare()
    show, adopt = WAYS["`stateSecret`"]
    loss.config["sequencer"]["stateSecret"] = "another secret of 32 bytes or more"
    loss.write(loss.config)
    code, shown, _ = loss.run(show)
    assert code == 1
    loss.values["DIGEST"] = shown["digest"]
    loss.done(adopt)
    loss.sign(1)
    loss.whole()


def test_a_ring_that_was_rotated_since(fresh_token, tmp_path, run):
    """The key that signs is known to the token and the chain; the backup, and an empty store, know another one."""
    token = fresh_token()
    beside = rules(tmp_path, overlapDays=1) | {"auditLogFile": str(tmp_path / "audit.log"), "requestTimeoutMs": 30_000}
    loss = Loss(tmp_path, run, token.config(**beside))
    first, second = asyncio.run(_rotated(loss))
    assert first != second
    restore, reconcile, status = WAYS["the state store"]
    compared = next(line for line in ring_commands() if "--ring-compared" in line)
    adopt = next(line for line in ring_commands() if line == "rotate adopt")
    loss.lose("state.db")
    loss.start_in_vain()
    code, _, err = loss.run(restore)
    assert (code, "the key ring changed" in err) == (1, True), err
    assert [key["id"] for key in loss.done(status)["keys"] if key["state"] == "active"] == [first]
    loss.config["sequencer"]["keyManager"]["config"] = _naming(loss, second)
    loss.write(loss.config)
    loss.done(adopt)
    loss.done(compared)
    assert asyncio.run(_current(loss.config)) == second
    loss.lose("state.db")  # and no backup: the ring begins again with the key that the configuration names
    assert loss.run(reconcile)[0] == 1
    loss.done(compared)
    assert asyncio.run(_current(loss.config)) == second


def ring_commands():
    text = (ROOT / "docs" / "RECOVERY.md").read_text()
    return _COMMAND.findall(text.partition("- *key ring*")[2].partition("\n\n")[0])


async def _rotated(loss):
    async with opened(loss.config) as manager:
        first = await manager.get_current_key_id()
        await manager.sign(b"m")
    code, made, err = await asyncio.to_thread(loss.run, "state backup --to BACKUP")
    assert code == 0, (made, err)
    async with opened(loss.config) as manager:
        second = await manager.rotate_key()
        await manager.sign(b"m")
    return first, second


def _naming(loss, key_id):
    block = loss.config["sequencer"]["keyManager"]["config"]
    return {name: value for name, value in block.items() if name not in ("keyLabel", "keyId")} | {"keyId": key_id}


async def _current(config):
    async with hsmcore.create_key_manager(config) as manager:
        signature = await manager.sign(b"m")
        assert await manager.verify(b"m", signature)
        return await manager.get_current_key_id()
