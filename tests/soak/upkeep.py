"""What the upkeep of a large state store costs the event loop and its callers: backup, drill, looks, retention.

    python -m tests.soak.upkeep [--positions N] [--events N] [--steps N] [--sealed] [--most-ms MS] [--json]

One caller has blocks signed on SoftHSM, one after the other, while the loop beats every millisecond. `pauseMs` is the
longest pause between two beats, `ownMs` the longest without its wait for a processor, `signatureMs` the slowest
signature, `turnCpuMs` the most processor time that the loop's thread took for one callback. A busy machine changes the
last one least: `--most-ms` is compared with it.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import logging
import os
import sys
import tempfile
import threading
import time
from asyncio.events import Handle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO
from unittest import mock

from sqlalchemy import Connection, insert
from tests.support.policed import ordered
from tests.support.softhsm import Folder, Token, find_module, make_token

import hsmcore
from hsmcore.config import Config, load
from hsmcore.failover.history import LEAST
from hsmcore.state import Store, positions
from hsmcore.state.mark import WINDOW, Mark
from hsmcore.state.schema import FAILOVER_EVENT, ROTATION, ROTATION_STEP

DOMAIN = "default/block"
BEAT_S = 0.001
STEPS_OF_ONE = 10
OF_THIS_LIFE = 1000
"""Events at most."""


class Turns:
    """The longest turns of an event loop, by phase."""

    def __init__(self) -> None:
        self.beat = self.own = self.signature = self.cpu = 0.0
        self.what = ""

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Time each callback of the loop."""
        run = Handle._run

        def timed(handle: Handle) -> None:
            begun = time.thread_time()
            run(handle)
            taken = time.thread_time() - begun
            if taken > self.cpu:
                self.cpu, self.what = taken, repr(handle)[:160]

        with mock.patch.object(Handle, "_run", timed):
            yield

    async def beats(self) -> None:
        """Measure pauses until cancelled."""
        with Path(f"/proc/self/task/{threading.get_native_id()}/schedstat").open("rb") as file:  # noqa: ASYNC230
            before, waited = time.perf_counter(), _waited(file)
            while True:
                await asyncio.sleep(BEAT_S)
                now, waits = time.perf_counter(), _waited(file)
                pause = now - before - BEAT_S
                self.beat, self.own = max(self.beat, pause), max(self.own, pause - (waits - waited))
                before, waited = now, waits

    def taken(self) -> dict[str, Any]:
        """Return what was seen since the last call."""
        names = ("pauseMs", "ownMs", "signatureMs", "turnCpuMs")
        seconds = (self.beat, self.own, self.signature, self.cpu)
        found: dict[str, Any] = dict(zip(names, (round(each * 1e3, 1) for each in seconds), strict=True))
        found["turn"] = self.what
        self.__init__()  # type: ignore[misc]
        return found


def _waited(file: BinaryIO) -> float:
    """Return the seconds for which a thread has waited for a processor."""
    return int(os.pread(file.fileno(), 64, 0).split()[1]) / 1e9


def config_of(token: Token, folder: Path, *, sealed: bool, **rules: Any) -> Config:
    """A key manager with everything that upkeep is done for."""
    policy = {"kinds": ["block"], "maxAhead": WINDOW, **rules.pop("policy", {})}
    files = {"stateFile": str(folder / "state.db"), "auditLogFile": str(folder / "audit.log")}
    made = token.config(maxCacheSize=0, policy=policy, failover={"emergencyModeEnabled": True}, **files, **rules)
    if sealed:
        made["sequencer"]["stateSecret"] = "s" * 32
    return load(made)


async def fill(config: Config, count: int, events: int, steps: int) -> None:
    """Make the rows. Unsealed rows of `bound` lie behind what is read, so their MACs are as long and mean nothing."""
    mac = "b" * 64 if config.state_secret is not None else ""
    store = await Store.open(config.key_manager.state_place, config.state_secret)
    numbers = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {})"
    bound = f"{numbers.format(count)} SELECT '{DOMAIN}', i, '{'a' * 64}', 'host:1', 1, '{mac}' FROM n"  # noqa: S608
    past = f"{numbers.format(max(events, 1))} SELECT i, 'member-down', 'primary', 'm', 'why', '{{}}' FROM n"  # noqa: S608
    columns = "time_ns, kind, level_from, member, reason, details"
    now = time.time_ns()
    text = {"cause": "manual", "reason": "", "error": "", "step": "destroy", "status": "done"}
    numeric = dict.fromkeys(("old_version", "new_version", "step_begun", "wait_ns", "tries", "aborted"), 0)
    rotation = {**text, **numeric, "begun_ns": now, "ended_ns": now}
    step = {"time_ns": now, "step": "generate", "outcome": "done", "details": "{}"}

    def work(connection: Connection) -> None:
        connection.exec_driver_sql(f"INSERT INTO bound {bound}")
        positions.set_mark(connection, DOMAIN, Mark(-1, count, (1 << WINDOW) - 1))
        if events:
            connection.exec_driver_sql(f"INSERT INTO {FAILOVER_EVENT.name} ({columns}) {past}")
        if steps:
            connection.execute(insert(ROTATION), [rotation] * (steps // STEPS_OF_ONE))
            connection.execute(
                insert(ROTATION_STEP), [{"rotation_id": 1 + each // STEPS_OF_ONE, **step} for each in range(steps)]
            )

    try:
        await store.run(work)
    finally:
        await store.close()


async def measure(config: Config, count: int, quiet: float) -> dict[str, Any]:
    """The phases: quiet; a backup and its drill; retention, if the policy has one."""
    found: dict[str, Any] = {}
    turns = Turns()
    with turns.watched():
        async with hsmcore.create_key_manager(config) as manager:
            signed = 0
            gc.collect()
            gc.freeze()  # as OPERATIONS advises an application
            await asyncio.sleep(0)
            turns.taken()  # the start, in the turn before this one, is not upkeep

            async def caller() -> None:
                nonlocal signed
                while True:
                    begun = time.perf_counter()
                    await manager.sign(ordered(count + 1 + signed), kind="block")
                    turns.signature = max(turns.signature, time.perf_counter() - begun)
                    signed += 1

            tasks = [asyncio.ensure_future(caller()), asyncio.ensure_future(turns.beats())]
            begun = time.perf_counter()
            backups = manager._background.state_backups
            if backups is not None:
                while not backups.seen.drill:
                    assert not backups.seen.failing, "the backup fails"
                    await asyncio.sleep(0.1)
                found["backup"] = turns.taken() | {"seconds": round(time.perf_counter() - begun, 1)}
            kept = config.key_manager.policy.keep_positions
            if kept is not None:
                found["retention"] = await _retained(config, count, kept, turns)
            await asyncio.sleep(quiet)
            found["quiet"] = turns.taken()
            found["signed"] = signed
            for task in tasks:
                task.cancel()
            for result in await asyncio.gather(*tasks, return_exceptions=True):
                if not isinstance(result, asyncio.CancelledError):
                    raise result
    return found


async def _retained(config: Config, count: int, kept: int, turns: Turns) -> dict[str, Any]:
    """Wait until what is too much is gone."""
    begun = time.perf_counter()
    least = f"SELECT min(position) FROM bound WHERE domain = '{DOMAIN}'"  # noqa: S608
    events = f"SELECT count(*) FROM {FAILOVER_EVENT.name}"  # noqa: S608
    store = await Store.open_to_read(config.key_manager.state_place)

    async def ask(query: str) -> int:
        return await store.run(lambda on: int(on.exec_driver_sql(query).scalar_one()), shows=True)

    try:
        while await ask(least) < count - kept or await ask(events) > LEAST + OF_THIS_LIFE:  # noqa: ASYNC110
            await asyncio.sleep(0.2)
        return turns.taken() | {"seconds": round(time.perf_counter() - begun, 1)}
    finally:
        await store.close()


def run(token: Token, folder: Path, asked: argparse.Namespace) -> dict[str, Any]:
    """Backup with everything in the store; then retention."""
    backups = {"stateBackup": {"location": str(folder / "backups")}}
    config = config_of(token, folder, sealed=asked.sealed, **backups)
    asyncio.run(fill(config, asked.positions, asked.events, asked.steps))
    size = config.key_manager.state_path.stat().st_size
    found = asyncio.run(measure(config, asked.positions, asked.quiet))
    asked.positions += found["signed"]
    kept = {"keepPositions": max(WINDOW, asked.positions // 5)}
    config = config_of(token, folder, sealed=asked.sealed, policy=kept)
    return {"megabytes": size >> 20, "first": found, "then": asyncio.run(measure(config, asked.positions, asked.quiet))}


def options(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--positions", type=int, default=5_000_000)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--quiet", type=float, default=5.0, help="seconds without upkeep, to compare with")
    parser.add_argument("--sealed", action="store_true")
    parser.add_argument("--most-ms", type=float, default=0.0, help="fail beyond it; 0: only report")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    """Print what was measured."""
    asked = options(arguments)
    logging.disable(logging.CRITICAL)
    tokens = Folder()
    try:
        module = find_module()
        assert module is not None, "SoftHSM is not installed"
        token = make_token(tokens, module, ({"name": "ed25519", "kind": "ed25519"},))
        with (
            tempfile.TemporaryDirectory() as folder,
            mock.patch.dict(os.environ, {"XDG_STATE_HOME": f"{folder}/state", "TMPDIR": folder}),
        ):
            found = {"sealed": asked.sealed, **run(token, Path(folder), asked)}
    finally:
        tokens.remove()
    sys.stdout.write((json.dumps(found) if asked.json else json.dumps(found, indent=2)) + "\n")
    phases = [phase for part in ("first", "then") for phase in found[part].values() if isinstance(phase, dict)]
    most = max(phase["turnCpuMs"] for phase in phases)
    return int(bool(asked.most_ms) and most > asked.most_ms)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
