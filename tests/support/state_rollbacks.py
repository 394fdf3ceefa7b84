"""Signers of blocks whose state store is put back to an older state, again and again."""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any

from tests.support.paths import ROOT
from tests.support.policed import ordered
from tests.support.state_copies import backed_up as backed_up_whole
from tests.support.zygote import Forked

import hsmcore
from hsmcore.audit import AuditLog
from hsmcore.config import load
from hsmcore.errors import DoubleSign, HsmError
from hsmcore.recovery import restore as recovery
from hsmcore.recovery.reconcile import reconcile
from hsmcore.state import Store
from hsmcore.state.backup import parse

SECRET = "s" * 32


def config_of(folder: Path, **more: Any) -> dict[str, Any]:
    """A configuration without any HSM: the key of each start is another one, which positions do not care for."""
    rules = {
        "type": "ephemeral",
        "config": {"allowEphemeralPrimary": True},
        "auditLogFile": str(folder / "audit.log"),
        "stateFile": str(folder / "state.db"),
        "policy": {"kinds": ["block"]},
        "maxCacheSize": 0,
        **more,
    }
    return {"sequencer": {"keyManager": rules, "stateSecret": SECRET}}


class Life:
    """A signer in a process of its own: it signs one position after another, and says which."""

    def __init__(self, config: dict[str, Any], first: int) -> None:
        # Not forked from here: a thread of this process may be within a lock, of libcrypto for one.
        self._said = tempfile.TemporaryFile()  # noqa: SIM115  # `end` closes it
        pipe = subprocess.PIPE
        self._process = Forked(["tests.support.state_rollbacks"], cwd=ROOT, stdin=pipe, stdout=pipe, stderr=self._said)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._stop, self._answers = self._process.stdin, self._process.stdout
        self._stop.write(json.dumps([config, first]).encode() + b"\n")
        self._stop.flush()
        self.signed: dict[int, bytes] = {}

    def more(self, count: int) -> None:
        """Read so many positions that were handed out."""
        for _ in range(count):
            line = self._answers.readline()
            assert line, f"the signer has ended: {self._last_words()}"
            self._note(line)

    def _last_words(self) -> str:
        self._said.seek(0)
        return self._said.read()[-3000:].decode(errors="replace")

    def _note(self, line: bytes) -> None:
        position, content = line.split()
        assert self.signed.setdefault(int(position), content) == content

    def end(self, *, kill: bool) -> None:
        """End it, and read the rest."""
        if kill:
            self._process.kill()
        self._stop.close()
        for line in self._answers:
            self._note(line)
        self._answers.close()
        self._said.close()
        self._process.wait()


async def _sign(config: dict[str, Any], first: int, writes: int, wait: int) -> None:
    chance, stopped = random.Random(), asyncio.Event()
    asyncio.get_running_loop().add_reader(wait, stopped.set)
    async with hsmcore.create_key_manager(config) as manager:
        position = first
        while not stopped.is_set():
            content = b"%d" % chance.getrandbits(60)
            try:
                await manager.sign(ordered(position, content))
            except hsmcore.NotHolder:
                await asyncio.sleep(0.01)  # another one holds the epoch for a moment
                continue
            except hsmcore.DoubleSign:
                pass  # a signer that was killed had bound it, and told nobody
            else:
                os.write(writes, b"%d %s\n" % (position, content))
            position += 1


def copy_by_hand(folder: Path, to: Path) -> None:
    """Copy the store while it is in use, as backup tools do."""
    with closing(sqlite3.connect(folder / "state.db")) as source, closing(sqlite3.connect(to)) as target:
        source.backup(target)


def put_back_by_hand(folder: Path, copy: Path) -> None:
    """Put a copy in the place of the store, which no process uses."""
    for end in ("-wal", "-shm"):
        (folder / f"state.db{end}").unlink(missing_ok=True)
    shutil.copy(copy, folder / "state.db")


def roll_back(folder: Path, *, times: int, seed: int) -> dict[str, int]:
    """Put the store back to a random older state, `times` times; after each one the key manager must refuse to start,
    and after its reconciliation give no position another payload. Returns counts."""
    chance, config = random.Random(seed), config_of(folder)
    signed: dict[int, bytes] = {}
    older: list[tuple[str, Any]] = []
    counts = {"restores": 0, "detected": 0, "conflicts": 0, "positions": 0}
    for trial in range(times):
        life = Life(config, max(signed, default=-1) + 1)
        life.more(chance.randrange(1, 12))
        if chance.random() < 0.5:
            older.append(("hand", folder / f"copy-{trial}.db"))
            copy_by_hand(folder, older[-1][1])
        else:
            older.append(("backup", asyncio.run(backed_up_whole(load(config)))[1]))
        life.more(chance.randrange(1, 12))
        life.end(kill=chance.random() < 0.5)
        signed |= life.signed
        how, what = chance.choice(older[-4:])
        if how == "hand":
            put_back_by_hand(folder, what)
        else:
            asyncio.run(recovery.restore(load(config), what, replace=True))
            for path in folder.glob("state.db.before-*"):
                path.unlink()
        counts["restores"] += 1
        counts["detected"] += asyncio.run(refused(config))
        asyncio.run(reconcile(load(config), ring_compared=False))
        counts["conflicts"] += asyncio.run(conflicts(config, signed, chance))
    counts["positions"] = len(signed)
    return counts


async def refused(config: dict[str, Any]) -> bool:
    """Whether a key manager refuses to start since the store is behind."""
    try:
        async with hsmcore.create_key_manager(config):
            return False
    except hsmcore.StoreBehind:
        return True


async def _held(manager: hsmcore.KeyManager, payload: bytes) -> bytes:
    """Sign, once no host that the database has forgotten can have a lease."""
    while True:
        try:
            return await manager.sign(payload)
        except hsmcore.NotHolder:
            await asyncio.sleep(0.01)


async def conflicts(config: dict[str, Any], signed: dict[int, bytes], chance: random.Random) -> int:
    """Ask for another payload at positions that were handed out: the newest, and some others. Returns how many are
    signed."""
    asked = sorted(signed)[-40:] + chance.sample(sorted(signed), min(len(signed), 20))
    wrong = 0
    async with hsmcore.create_key_manager(config) as manager:
        if manager.fleet is not None:
            await manager.fleet.claim(force=True, reason="a test")
        for position in asked:
            try:
                await _held(manager, ordered(position, b"another"))
            except DoubleSign:
                assert await _held(manager, ordered(position, signed[position]))
            except HsmError:
                continue
            else:
                wrong += 1
    return wrong


class Fleet:
    """A fleet of one host whose database is put back."""

    def __init__(self, folder: Path, url: str) -> None:
        block = {"store": {"url": url}, "name": "tests", "host": "one", "singleNode": True, "ttlMs": 1500}
        self.config = config_of(folder, fleet=block)
        del self.config["sequencer"]["keyManager"]["stateFile"]
        self._audit = folder / "audit.log"

    def live(self, count: int, first: int = 0, *, kill: bool = False) -> dict[int, bytes]:
        """Have the host sign so many positions at least."""
        life = Life(self.config, first)
        life.more(count)
        life.end(kill=kill)
        return life.signed

    def incidents(self) -> int:
        """How many incidents the host has answered."""

        async def count() -> int:
            log = AuditLog(str(self._audit))
            return len([record async for record in log.query(match={"operation": "fleet-answer"})])

        return asyncio.run(count())

    async def put_back(self, copy: Path) -> None:
        """Put rows of an older moment into the database, as tools do that know nothing of hsmcore."""
        rules = load(self.config).key_manager.fleet
        assert rules is not None
        store = await Store.open(rules, load(self.config).state_secret, shows=True)
        try:
            await store.replace_all(copy, "")
        finally:
            await store.close()


def roll_back_fleet(folder: Path, url: str, *, times: int, seed: int) -> dict[str, int]:
    """As `roll_back`, of a fleet's database. What is older is an incident, which the host answers when it starts."""
    chance, fleet = random.Random(seed), Fleet(folder, url)
    signed: dict[int, bytes] = {}
    older: list[bytes] = []
    counts = {"restores": 0, "detected": 0, "conflicts": 0, "positions": 0}
    for _ in range(times):
        life = Life(fleet.config, max(signed, default=-1) + 1)
        life.more(chance.randrange(1, 12))
        older.append(asyncio.run(backed_up_whole(load(fleet.config)))[1])
        life.more(chance.randrange(1, 12))
        life.end(kill=False)
        signed |= life.signed
        data = chance.choice(older[-4:])
        if chance.random() < 0.5:
            copy = folder / "copy.db"
            copy.write_bytes(parse(data, load(fleet.config).state_secret)[1])
            asyncio.run(fleet.put_back(copy))
        else:
            asyncio.run(recovery.restore(load(fleet.config), data, replace=True))
        before = fleet.incidents()
        counts["restores"] += 1
        counts["conflicts"] += asyncio.run(conflicts(fleet.config, signed, chance))
        counts["detected"] += fleet.incidents() > before
    counts["positions"] = len(signed)
    return counts


if __name__ == "__main__":
    asyncio.run(_sign(*json.loads(sys.stdin.buffer.raw.readline()), sys.stdout.fileno(), sys.stdin.fileno()))
