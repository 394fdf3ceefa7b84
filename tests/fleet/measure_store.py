"""What a fleet's store of many positions costs: its backup, the check and the restoration of that backup, and a floor
that is raised over all rows but the last 1,000. A holder signs blocks and messages throughout, and a connection of its
own commits one small row at the blocks' pace: what that one waits for, the server or its disk makes everybody wait for.

    python -m tests.fleet.measure_store --rows 5000000

Prints seconds and peak memory of each command, and the holder's longest pause meanwhile.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import uvloop
from tests.fleet.measure import say, tokens
from tests.support.policed import ordered
from tests.support.postgres import Cluster, cluster, fleet

import hsmcore
from hsmcore.errors import HsmError
from hsmcore.state import Store
from hsmcore.state.mark import Mark
from hsmcore.state.positions import set_mark

BLOCKS, KEPT, EVERY = "default/block", 1000, 0.1
ROWS = f"""INSERT INTO hsmcore_measured.bound SELECT '{BLOCKS}', i,
    md5(i::text) || md5((-i)::text), 'signer-1:4711#1', 1800000000000000000 + i, %s FROM generate_series(0, %s) i"""  # noqa: S608


class Holder:
    """A key manager that signs without a pause, and how long it was between two signatures, and between two commits
    of a connection that has nothing to do with it."""

    def __init__(self, config: dict[str, Any], begin: int) -> None:
        self.manager = hsmcore.create_key_manager(config)
        self._positions, self._numbers = itertools.count(begin), itertools.count()
        self._pauses: dict[str, list[float]] = {}
        self.refused = 0

    def said(self) -> str:
        """The pauses since the last call, in words."""
        pauses, self._pauses = self._pauses, {}
        return f"refused so far {self.refused}" + "".join(
            f"; {name}: {len(found)}, longest pause {max(found):.0f} ms, over 50 ms {sum(one > 50 for one in found)}"
            for name, found in sorted(pauses.items())
        )

    async def blocks(self) -> None:
        """A block each 100 ms."""
        await self._sign("blocks", lambda: ordered(next(self._positions)), EVERY)

    async def messages(self) -> None:
        """A message each 5 ms."""
        await self._sign("messages", lambda: b"hsmcore %064d" % next(self._numbers), 0.005)

    async def commits(self, server: Cluster) -> None:
        """A row of a table that nobody else uses, each 100 ms."""
        with server.connect() as on:
            on.execute("CREATE TABLE control (number bigint)")
            while True:
                begun = time.perf_counter()
                await asyncio.to_thread(on.execute, "INSERT INTO control VALUES (1)")
                self._pauses.setdefault("plain commits", []).append((time.perf_counter() - begun) * 1e3)
                await asyncio.sleep(EVERY)

    async def _sign(self, name: str, payload: Callable[[], bytes], every: float) -> None:
        last = time.perf_counter()
        while True:
            try:
                await self.manager.sign(payload(), timeout=60)
            except HsmError:
                self.refused += 1
            else:
                now = time.perf_counter()
                self._pauses.setdefault(name, []).append((now - last) * 1e3)
                last = now + every
            await asyncio.sleep(every)


def run(*words: str) -> tuple[float, float, int]:
    """Run a command: seconds, those of its processor, peak memory in MB."""
    begun = time.perf_counter()
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        assert process.stdout is not None
        printed = process.stdout.read().decode()
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, printed
    return time.perf_counter() - begun, used.ru_utime + used.ru_stime, used.ru_maxrss >> 10


async def measure(server: Cluster, folder: Path, token: Any, rows: int, *, sealed: bool = False) -> int:
    """Measure everything. Returns how many signatures were refused."""

    def config(url: str) -> dict[str, Any]:
        made = token.config(
            policy={"kinds": ["block", "raw"]}, maxCacheSize=0, auditLogFile=str(folder / "audit.log"),
            fleet={"store": {"url": url}, "name": "measured", "host": "a", "singleNode": True},
        )  # fmt: skip
        made["sequencer"] |= {"stateSecret": "s" * 32} if sealed else {}
        return dict(made)

    url = server.database()
    first = hsmcore.config.load(config(url))
    store = await Store.open(fleet(url, "measured"), first.state_secret)
    begun = time.perf_counter()
    with server.connect(url.rpartition("/")[2]) as on:
        on.execute(ROWS.encode(), ["b" * 64 if sealed else "", rows - 1])
        on.execute("ANALYZE hsmcore_measured.bound")
    await store.run(lambda on: set_mark(on, BLOCKS, Mark(-1, rows - 1, 1, "")))
    await store.close()
    say(f"{rows:,} rows made in {time.perf_counter() - begun:.0f} s")
    paths = {name: folder / f"{name}.json" for name in ("here", "there")}
    paths["here"].write_text(json.dumps(config(url)))
    paths["there"].write_text(json.dumps(config(server.database())))
    backup = folder / "backup.hsmstate"
    holder = Holder(config(url), rows)
    await holder.manager.initialize()
    while holder.manager.fleet is None or holder.manager.fleet.state != "holder":  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    tasks = [asyncio.ensure_future(each) for each in (holder.blocks(), holder.messages(), holder.commits(server))]

    async def timed(name: str, where: str, *words: str) -> None:
        program = (f"{sys.prefix}/bin/hsmcore", *words, "--config", str(paths[where]))
        seconds, busy, memory = await asyncio.to_thread(run, *program)
        size = f", {backup.stat().st_size >> 20} MB" if name == "backup" else ""
        say(f"{name:8} {seconds:7.1f} s, of its processor {busy:.1f} s, {memory:5} MB of memory{size}; {holder.said()}")

    await asyncio.sleep(1)
    holder.said()
    await asyncio.sleep(min(30.0, rows / 1e5))
    say(f"idle: {holder.said()}")
    await timed("backup", "here", "state", "backup", "--to", str(backup))
    await timed("verify", "here", "state", "verify", str(backup))
    await timed("restore", "there", "state", "restore", str(backup), "--reason", "measured")
    await timed("floor", "here", "policy", "floor", "set", "block", str(rows - KEPT), "--reason", "measured")
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await holder.manager.close()
    return holder.refused


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=5_000_000)
    parser.add_argument("--sealed", action="store_true")
    given = parser.parse_args()
    logging.disable(logging.CRITICAL)
    with cluster(max_wal_size="1GB") as server, tempfile.TemporaryDirectory() as made:
        for token in tokens():
            uvloop.run(measure(server, Path(made), token, given.rows, sealed=given.sealed))


if __name__ == "__main__":
    main()
