"""Three hosts of a fleet (Site) before one database: a signer process each, with a way of its own to the database, a
device of its own and, on request, a clock of its own.

Clocks are those of libfaketime. With FAKETIME_DONT_FAKE_MONOTONIC a process is shown another CLOCK_REALTIME and the
true MONOTONIC and BOOTTIME, as after a step of a real clock; this is how steps are made, by a file that is read again
each second. Without it all clocks are shown as REALTIME is, at the rate that was asked for; this is how rates are made,
for the life of the process. Waits in system calls are true in both (a relative wait of the C library is scaled).
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final
from urllib.parse import quote

import psycopg
from tests.fleet.checker import Row
from tests.fleet.history import Host, lines_since, true_boottime
from tests.fleet.nodes import DATABASE, Node, Process
from tests.fleet.proxy import Proxy
from tests.support.chaos import Chaos, wrap_noop
from tests.support.paths import ROOT
from tests.support.postgres import PASSWORD, USER, Bouncer, fleet
from tests.support.zygote import CLI, Forked, run

from hsmcore.state import Store

FLEET: Final = "campaign"
HOSTS: Final = ("x", "y", "z")
_SCHEMA: Final = f"hsmcore_{FLEET}"
_ROWS: Final = f"SELECT domain, position, digest, holder, pg_xact_commit_timestamp(xmin) FROM {_SCHEMA}.bound"  # noqa: S608
_FLOORS: Final = f"SELECT name, floor FROM {_SCHEMA}.watermark"  # noqa: S608
_HOLDER: Final = f"SELECT host FROM {_SCHEMA}.fleet"  # noqa: S608
CLONE: Final = "~"
"""Between the name of a host and the number of its clone."""
JITTER: Final = 0.1
"""Of a round trip, in each direction."""
LOOK: Final = 0.05
"""Seconds between two looks; each counts as so long, however late it is: what is late here is late there too."""
_LIBRARY: Final = "libfaketimeMT.so.1"


def faketime() -> Path | None:
    """libfaketime for programs with threads, or None."""
    return next(iter(sorted(Path("/usr/lib").glob(f"*/faketime/{_LIBRARY}"))), None)


class Signer:
    """One host. Its process may be killed, stopped and started again."""

    def __init__(self, name: str, folder: Path, way: Proxy, database: str, **spec: Any) -> None:
        self.name, self.folder, self.way, self._database = name, folder, way, database
        self.memory = folder / "memory"
        """What it had in memory when it was asked for that."""
        folder.mkdir()
        self.history, self.log = folder / "history", folder / "audit.log"
        self.chaos = Chaos(folder, wrap_noop())
        self.chaos.write()
        self.clock = folder / "clock"
        self.rate = 1.0
        self.stops: list[tuple[int, int]] = []
        self.process: Process | None = None
        self._started_at, self._is_open = 0, False
        self._stopped_at = 0
        self._spec = {"host": name, "memory": str(self.memory), "clone": False, **spec}

    def config(self, fleet: dict[str, Any]) -> dict[str, Any]:
        """The host's configuration."""
        url = f"postgresql://{USER}:{quote(PASSWORD, safe='')}@127.0.0.1:{self.way.port}/{self._database}"
        return self.chaos.config(
            settings={"verifySignatures": "always"},
            auditLogFile=str(self.log),
            policy={"kinds": ["block", "raw"]},
            fleet={"store": {"url": f"{url}?connect_timeout=5"}, "name": FLEET, "host": self._spec["host"], **fleet},
        )

    def start(self, fleet: dict[str, Any]) -> None:
        """Start a process, if none runs."""
        if self.process is not None and self.process.runs:
            return
        spec = {**self._spec, "config": self.config(fleet), "history": str(self.history)}
        for path, data in ((self.folder / "spec.json", spec), (self.config_file, spec["config"])):
            path.write_text(json.dumps(data))
            path.chmod(0o600)
        library, environment = faketime(), {**os.environ, "PYTHONPATH": f"{ROOT / 'core'}:{ROOT}"}
        environment["FAKETIME_DISABLE_SHM"] = "1"  # what it shares with children, a killed process leaves
        if library is not None and self.rate != 1.0:
            environment |= {"LD_PRELOAD": str(library), "FAKETIME": f"+0 x{self.rate}"}
        elif library is not None and self.clock.exists():
            environment |= {"LD_PRELOAD": str(library), "FAKETIME_TIMESTAMP_FILE": str(self.clock)}
            environment |= {"FAKETIME_DONT_FAKE_MONOTONIC": "1", "FAKETIME_CACHE_DURATION": "1"}
        self._started_at, self._is_open = self.history.stat().st_size if self.history.exists() else 0, False
        command, out = ["tests.fleet.signer", str(self.folder / "spec.json")], self.folder / "out"
        if "LD_PRELOAD" in environment:
            self.process = Process([sys.executable, "-m", *command], out, cwd=ROOT, env=environment)
        else:
            self.process = Process(command, out, Forked, cwd=ROOT, env=environment)

    def is_open(self) -> bool:
        """Whether its process has opened its key manager."""
        while not self._is_open:
            lines, self._started_at = lines_since(self.history, self._started_at)
            self._is_open = any(line["what"] == "open" for line in lines)
            if not lines:
                break
        return self._is_open and not self.ended()

    @property
    def config_file(self) -> Path:
        """Its configuration, once it was started: for the command line."""
        return self.folder / "config.json"

    def command(self, *arguments: str, seconds: float = 60.0) -> tuple[int, str]:
        """Run hsmcore's command line on this host. Returns the exit code and what it printed. Blocks."""
        try:
            done = run(CLI, *arguments, "--config", str(self.config_file), "--json", timeout=seconds, text=True)
        except subprocess.TimeoutExpired:
            return -1, "it takes too long"
        return done.returncode, str(done.stdout or done.stderr)

    def step_clock(self, seconds: int) -> None:
        """Set the clock that it is shown."""
        self.clock.write_text(f"{seconds:+d}s")

    def stop(self) -> None:
        """Stop it where it is."""
        if self.process is not None and not self._stopped_at:
            self.process.send(signal.SIGSTOP)
            self._stopped_at = true_boottime()

    def cont(self) -> None:
        """Let it go on."""
        if self.process is not None and self._stopped_at:
            self.stops.append((self._stopped_at, true_boottime()))
            self._stopped_at = 0
            self.process.send(signal.SIGCONT)

    def kill(self) -> None:
        """Kill it."""
        self._stopped_at = 0
        if self.process is not None:
            self.process.end()

    def ask_to_claim(self) -> None:
        """Have it claim the epoch by force."""
        if self.process is not None:
            self.process.send(signal.SIGUSR1)

    def ask_for_memory(self) -> None:
        """Have it write down what it has in memory."""
        if self.process is not None:
            self.process.send(signal.SIGUSR2)

    def ask_to_end(self) -> None:
        """Have it end in order."""
        if self.process is not None:
            self.process.send(signal.SIGTERM)

    def ended(self) -> bool:
        """Whether it has."""
        return self.process is None or not self.process.runs

    def said(self) -> str:
        """What it wrote to its output: nothing, unless it failed."""
        path = self.folder / "out"
        return path.read_text()[-300:] if path.exists() else ""

    def read(self) -> Host:
        """All that it has written down."""
        return Host.read(self.name, self.history, self.log, stops=self.stops, rate=self.rate)


class Pooler:
    """A PgBouncer before the database, in transaction mode."""

    def __init__(self, behind: Proxy) -> None:
        self.behind = behind
        self.bouncer: Bouncer | None = None

    async def start(self) -> None:
        """Start it."""
        await self.behind.start()
        server: Any = SimpleNamespace(port=self.behind.port)
        self.bouncer = await asyncio.to_thread(Bouncer.make, server, "transaction")

    async def close(self) -> None:
        """End it."""
        if self.bouncer is not None:
            await asyncio.to_thread(self.bouncer.close)
        await self.behind.close()


class Site:
    """Three hosts, each with its way to the database, which may lead through a pooler. `database`: a Cluster, or what
    has its leader. `round_trip`: of each way, in seconds. `spec`: more for each signer. Belongs to one event loop."""

    def __init__(
        self,
        database: Any,
        folder: Path,
        fleet: dict[str, Any],
        *,
        pooled: bool = False,
        round_trip: float = 0.0,
        name: str = DATABASE,
        **spec: Any,
    ) -> None:
        self.database, self.folder, self.fleet, self._name, self._spec = database, folder, fleet, name, spec
        self.stale: set[str] = set()
        """Hosts that are still led to the primary that was left behind."""
        self.pooler = Pooler(Proxy(database.port)) if pooled else None
        self._round_trip = round_trip
        self.hosts = [self._host(host) for host in HOSTS]
        self.clones: list[Signer] = []

    def _host(self, name: str, **spec: Any) -> Signer:
        way = Proxy(lambda: self._way(name), self._round_trip, self._round_trip * JITTER)
        return Signer(name, self.folder / name, way, self._name, **self._spec, **spec)

    def _way(self, name: str) -> int | None:
        if self.pooler is not None and self.pooler.bouncer is not None:
            return self.pooler.bouncer.port
        if name in self.stale and self.database.old is not None:
            return int(self.database.old.port)
        return self.database.port()  # type: ignore[no-any-return]

    async def open(self) -> None:
        """Open the ways. No host is started."""
        if self.pooler is not None:
            await self.pooler.start()
        for host in self.hosts:
            await host.way.start()

    async def close(self) -> None:
        """Kill everything that still runs."""
        for host in (*self.hosts, *self.clones):
            await asyncio.to_thread(host.kill)
            await host.way.close()
        if self.pooler is not None:
            await self.pooler.close()

    async def clone(self, host: Signer) -> Signer:
        """Make a second process that will go on as the host, with a copy of its log, once it is there."""
        made = self._host(f"{host.name}{CLONE}{len(self.clones)}", host=host.name, memory=str(host.memory), clone=True)
        self.clones.append(made)
        await made.way.start()
        return made

    async def holder(self) -> Signer | None:
        """The host that holds the epoch, if the database says so."""
        leader = self.database.leader
        held = await asyncio.to_thread(holder_of, leader) if leader is not None else None
        return next((host for host in self.hosts if host.name == held), None)

    def cut(self) -> None:
        """Reset every connection of the hosts."""
        for host in self.hosts:
            host.way.cut()
        if self.pooler is not None:
            self.pooler.behind.cut()

    def heal(self) -> None:
        """Let everything pass, and every host run."""
        for host in self.hosts:
            host.way.heal()
            host.cont()
            host.chaos.write()
            host.start(self.fleet)

    async def opens(self, seconds: float) -> float | None:
        """After how many seconds each host is open, as `signs_blocks`."""
        async for passed in looks(seconds):
            if all(host.is_open() for host in self.hosts):
                return passed
        return None

    async def signs_blocks(self, seconds: float) -> float | None:
        """After how many seconds a block that is asked for from now on is released; None: not in time. Counted are the
        seconds of a machine that has time for this process."""
        begun = true_boottime()
        places = [host.history.stat().st_size if host.history.exists() else 0 for host in self.hosts]
        async for passed in looks(seconds):
            for number, host in enumerate(self.hosts):
                lines, places[number] = lines_since(host.history, places[number])
                for found in lines:
                    if found["what"] == "release" and found["position"] is not None and found["asked"] > begun:
                        return passed
        return None


async def looks(seconds: float) -> AsyncIterator[float]:
    """Yield how much time has passed, until it is over, as far as this process has had its share of it."""
    for look in range(math.ceil(seconds / LOOK)):
        yield look * LOOK
        await asyncio.sleep(LOOK)


def prepare(node: Node) -> None:
    """Make the fleet's tables, so that no schedule waits for that. Blocks."""

    async def made() -> None:
        store = await Store.open(fleet(f"postgresql://{USER}@127.0.0.1:{node.port}/{node.database}", name=FLEET))
        await store.close()

    asyncio.run(made())


def rows_of(node: Node) -> list[Row]:
    """The bound positions that a database has. Blocks."""
    return [Row(*row) for row in node.ask(_ROWS)]


def latest_epoch(node: Node) -> int:
    """The latest epoch under which a position is bound. Blocks."""
    return max((row.epoch for row in rows_of(node)), default=0)


def floors_of(node: Node) -> dict[str, int]:
    """At and below what nothing is signed any more, by domain. Blocks."""
    return {str(name): int(floor) for name, floor in node.ask(_FLOORS)}


def holder_of(node: Node) -> str | None:
    """The host that holds the epoch as that database says, if any. Blocks."""
    try:
        found = node.ask(_HOLDER)
    except psycopg.Error:
        return None
    return str(found[0][0]) if found else None
