"""Three nodes under Patroni and etcd, which decide for themselves who is primary: strict synchronous mode, and the
shortest times that Patroni allows. Clients are led to the node that says at its REST interface that it is the primary,
as HAProxy would; a node may be cut off from etcd and from the others.

A cluster serves many schedules, each with a database of its own: it mends itself in between.
"""

from __future__ import annotations

import asyncio
import json
import signal
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import psycopg
from tests.fleet.cluster import CANCEL, NAMES
from tests.fleet.nodes import ADMIN, BASE, Node, Process, give, unprivileged
from tests.fleet.proxy import Proxy
from tests.support.chaos import send_signal
from tests.support.postgres import USER, free_port, newest

TTL = 20
"""Seconds; Patroni allows no less."""
_READY = 300.0


class PatroniNode(Node):
    """One Patroni with its PostgreSQL. `way`: by which the others reach its database; `etcd`: by which it reaches
    etcd."""

    def __init__(self, name: str, folder: Path, etcd_port: int) -> None:
        super().__init__(name, folder)
        give(folder)
        self.database = "postgres"
        self.rest = free_port()
        self.way = Proxy(lambda: self.port)
        self.etcd = Proxy(lambda: etcd_port)

    def settings(self) -> dict[str, Any]:
        """Patroni's configuration. JSON is YAML."""
        parameters = {name: value for name, value in BASE.items() if name != "listen_addresses"}
        trust = ["host all all 127.0.0.1/32 trust", "host replication all 127.0.0.1/32 trust"]
        times = {"ttl": TTL, "loop_wait": 1, "retry_timeout": 3, "primary_start_timeout": 0}
        return {
            "scope": "hsmcore",
            "name": self.name,
            "restapi": {"listen": f"127.0.0.1:{self.rest}", "connect_address": f"127.0.0.1:{self.rest}"},
            "etcd3": {"hosts": [f"127.0.0.1:{self.etcd.port}"]},
            "bootstrap": {
                "dcs": {
                    **times,
                    "synchronous_mode": True,
                    "synchronous_mode_strict": True,
                    "maximum_lag_on_failover": 1 << 20,
                    "postgresql": {"use_pg_rewind": True, "use_slots": False, "parameters": parameters},
                },
                "initdb": [{"encoding": "UTF8"}, {"locale": "C"}, {"wal-segsize": "1"}, "no-sync"],
            },
            "postgresql": {
                "listen": f"127.0.0.1:{self.port}",
                "connect_address": f"127.0.0.1:{self.way.port}",
                "data_dir": str(self.data),
                "bin_dir": str(newest()),
                "pgpass": str(self.folder / "pgpass"),
                "authentication": {"superuser": {"username": ADMIN}, "replication": {"username": ADMIN}},
                "pg_hba": trust,
            },
        }

    def start(self, seconds: float = 0.0) -> None:
        """Start Patroni; it starts the database when it may."""
        if self.process is None or not self.process.runs:
            path = self.folder / "patroni.json"
            path.write_text(json.dumps(self.settings()))
            self.process = Process(["/usr/bin/patroni", str(path)], self.log, cwd="/", **unprivileged())

    def says(self) -> dict[str, Any]:
        """What it says of itself; empty: nothing. Blocks."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.rest}/patroni", timeout=1.0) as answer:
                found: dict[str, Any] = json.load(answer)
        except (OSError, ValueError):
            return {}
        return found

    def postmaster(self) -> int | None:
        """The process id of the database server."""
        try:
            return int((self.data / "postmaster.pid").read_text().split()[0])
        except (OSError, ValueError, IndexError):
            return None

    def crash(self) -> None:
        """Kill the database and leave Patroni."""
        pid = self.postmaster()
        if pid is not None:
            send_signal(pid, signal.SIGKILL)

    def end(self, number: int = signal.SIGKILL) -> None:
        """Kill both."""
        super().end(number)
        self.crash()


class PatroniCluster:
    """Three nodes and an etcd. Belongs to one event loop."""

    def __init__(self, folder: Path) -> None:
        self.folder = give(folder)
        self.etcd_port = free_port()
        self._etcd: Process | None = None
        self.nodes = [PatroniNode(name, folder / name, self.etcd_port) for name in NAMES]
        self.leader: Node | None = None
        self.old: Node | None = None
        self._watching: asyncio.Task[None] | None = None

    def port(self) -> int | None:
        """Where clients are led to."""
        return None if self.leader is None else self.leader.port

    async def start(self) -> None:
        """Start all, and wait until there is a primary with a synchronous standby and another one."""
        peer = free_port()
        client, data = f"http://127.0.0.1:{self.etcd_port}", self.folder / "etcd"
        command = ["/usr/bin/etcd", "--name", "e", "--data-dir", str(data), "--log-level", "error", "--unsafe-no-fsync"]
        command += ["--listen-client-urls", client, "--advertise-client-urls", client]
        command += ["--listen-peer-urls", f"http://127.0.0.1:{peer}"]
        command += ["--initial-advertise-peer-urls", f"http://127.0.0.1:{peer}"]
        command += ["--initial-cluster", f"e=http://127.0.0.1:{peer}"]
        self._etcd = Process(command, self.folder / "etcd.log", cwd="/", **unprivileged())
        for node in self.nodes:
            await node.way.start()
            await node.etcd.start()
            node.start()
        self._watching = asyncio.ensure_future(self._watch())
        await self.ready()

    async def _watch(self) -> None:
        while True:
            said = await asyncio.gather(*(asyncio.to_thread(node.says) for node in self.nodes))
            primaries = [
                (one.get("timeline", 0), node)
                for node, one in zip(self.nodes, said, strict=True)
                if one.get("role") in ("primary", "master")
            ]
            # Of two, the one that was promoted last; the other one does not know yet.
            self.leader = max(primaries, key=lambda found: found[0])[1] if primaries else None
            await asyncio.sleep(0.1)

    async def ready(self) -> None:
        """Wait until the cluster is whole. Raises TimeoutError."""
        question = """SELECT count(*) FILTER (WHERE state = 'streaming'), count(*) FILTER (WHERE sync_state = 'sync')
            FROM pg_stat_replication"""
        async with asyncio.timeout(_READY):
            while True:
                with suppress(psycopg.Error):
                    if self.leader is not None and await asyncio.to_thread(self.leader.ask, question) == [(2, 1)]:
                        return
                await asyncio.sleep(0.2)

    async def use(self, database: str) -> None:
        """Make a database, which the nodes' `ask` is for from now on."""
        assert self.leader is not None
        self.leader.database = "postgres"
        if not await asyncio.to_thread(self.leader.ask, "SELECT FROM pg_roles WHERE rolname = %s", USER):
            await asyncio.to_thread(self.leader.execute, f"CREATE ROLE {USER} LOGIN")
        await asyncio.to_thread(self.leader.execute, f"CREATE DATABASE {database} OWNER {USER}")
        for node in self.nodes:
            node.database = database

    async def close(self) -> None:
        """End everything."""
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        for node in self.nodes:
            await asyncio.to_thread(node.end)
            await node.way.close()
            await node.etcd.close()
        if self._etcd is not None:
            await asyncio.to_thread(self._etcd.end)

    async def cancel_waiting_commit(self) -> int:
        """Cancel every commit that waits for the synchronous standby, on whichever node. Returns how many."""
        count = 0
        for node in self.nodes:
            with suppress(psycopg.Error):
                count += len(await asyncio.to_thread(node.ask, CANCEL))
        return count

    # ---- what goes wrong ----

    async def crash(self) -> None:
        """The primary's database dies; its Patroni gives the role away."""
        if isinstance(self.leader, PatroniNode):
            self.leader.crash()

    async def kill(self) -> Node | None:
        """The primary's machine dies: others wait for the end of its key in etcd. Returns it, to be started again."""
        dead = self.leader
        if dead is not None:
            await asyncio.to_thread(dead.end)
        return dead

    def isolate(self) -> PatroniNode | None:
        """The primary is cut off from etcd and from its standbys; clients that are connected still reach it. Returns
        it, to be joined again."""
        node = self.leader
        if not isinstance(node, PatroniNode):
            return None
        node.etcd.hold()
        node.way.hold()
        return node

    def join(self, node: PatroniNode) -> None:
        """The end of `isolate`."""
        node.etcd.heal()
        node.way.heal()
        node.way.cut()

    def hold_standbys(self, *, held: bool) -> None:
        """Keep the primary's log from its standbys, or let it pass again."""
        if isinstance(self.leader, PatroniNode):
            (self.leader.way.hold if held else self.leader.way.heal)()


@asynccontextmanager
async def patroni(folder: Path) -> AsyncIterator[PatroniCluster]:
    """A cluster that runs, and is ended."""
    made = PatroniCluster(folder)
    try:
        await made.start()
        yield made
    finally:
        await made.close()
