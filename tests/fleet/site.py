"""Three hosts of a fleet before one database: a signer process each, with a way of its own to the database, a device of
its own and, on request, a clock of its own.

Clocks are those of libfaketime. With FAKETIME_DONT_FAKE_MONOTONIC a process is shown another CLOCK_REALTIME and the
true MONOTONIC and BOOTTIME, as after a step of a real clock; this is how steps are made, by a file that is read again
each second. Without it all clocks are shown as REALTIME is, at the rate that was asked for; this is how rates are made,
for the life of the process. Waits in system calls are true in both (a relative wait of the C library is scaled).
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final
from urllib.parse import quote

import psycopg
from tests.fleet.checker import Row
from tests.fleet.history import Host, true_boottime
from tests.fleet.nodes import Node, Process
from tests.fleet.proxy import Proxy
from tests.support.chaos import Chaos, wrap_noop
from tests.support.paths import ROOT
from tests.support.postgres import PASSWORD, USER, Bouncer
from tests.support.zygote import Forked

FLEET: Final = "campaign"
HOSTS: Final = ("x", "y", "z")
_SCHEMA: Final = f"hsmcore_{FLEET}"
_ROWS: Final = f"SELECT domain, position, digest, holder, pg_xact_commit_timestamp(xmin) FROM {_SCHEMA}.bound"  # noqa: S608
_FLOORS: Final = f"SELECT name, floor FROM {_SCHEMA}.watermark"  # noqa: S608
_HOLDER: Final = f"SELECT host FROM {_SCHEMA}.fleet"  # noqa: S608
_LIBRARY: Final = "libfaketimeMT.so.1"


def faketime() -> Path | None:
    """libfaketime for programs with threads, or None."""
    return next(iter(sorted(Path("/usr/lib").glob(f"*/faketime/{_LIBRARY}"))), None)


class Signer:
    """One host. Its process may be killed, stopped and started again."""

    def __init__(self, name: str, folder: Path, way: Proxy, database: str, *, broken: str | None, seed: int) -> None:
        self.name, self.folder, self.way, self._database = name, folder, way, database
        folder.mkdir()
        self.history, self.log = folder / "history", folder / "audit.log"
        self.chaos = Chaos(folder, wrap_noop())
        self.chaos.write()
        self.clock = folder / "clock"
        self.rate = 1.0
        self.stops: list[tuple[int, int]] = []
        self.process: Process | None = None
        self._stopped_at = 0
        self._broken, self._seed = broken, seed

    def config(self, fleet: dict[str, Any]) -> dict[str, Any]:
        """The host's configuration."""
        url = f"postgresql://{USER}:{quote(PASSWORD, safe='')}@127.0.0.1:{self.way.port}/{self._database}"
        return self.chaos.config(
            settings={"verifySignatures": "always"},
            auditLogFile=str(self.log),
            policy={"kinds": ["block", "raw"]},
            fleet={"store": {"url": f"{url}?connect_timeout=5"}, "name": FLEET, "host": self.name, **fleet},
        )

    def start(self, fleet: dict[str, Any]) -> None:
        """Start a process, if none runs."""
        if self.process is not None and self.process.runs:
            return
        spec = {"host": self.name, "config": self.config(fleet), "history": str(self.history)}
        spec |= {"seed": self._seed, "broken": self._broken}
        path = self.folder / "spec.json"
        path.write_text(json.dumps(spec))
        path.chmod(0o600)
        library, environment = faketime(), {**os.environ, "PYTHONPATH": str(ROOT)}
        environment["FAKETIME_DISABLE_SHM"] = "1"  # what it shares with children, a killed process leaves
        if library is not None and self.rate != 1.0:
            environment |= {"LD_PRELOAD": str(library), "FAKETIME": f"+0 x{self.rate}"}
        elif library is not None and self.clock.exists():
            environment |= {"LD_PRELOAD": str(library), "FAKETIME_TIMESTAMP_FILE": str(self.clock)}
            environment |= {"FAKETIME_DONT_FAKE_MONOTONIC": "1", "FAKETIME_CACHE_DURATION": "1"}
        command, out = ["tests.fleet.signer", str(path)], self.folder / "out"
        if "LD_PRELOAD" in environment:
            self.process = Process([sys.executable, "-m", *command], out, cwd=ROOT, env=environment)
        else:
            self.process = Process(command, out, Forked, cwd=ROOT, env=environment)

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
