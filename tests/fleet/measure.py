"""What a fleet costs: the same load on SQLite, under a lease and strict, in turn; a bind alone; a takeover. Last,
the load with a synchronous standby on the same machine.

    python -m tests.fleet.measure --rounds 15

Prints medians and spreads. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import logging
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import uvloop
from tests.integration.test_fleet import Hosts
from tests.support.paths import NOOP
from tests.support.policed import ordered
from tests.support.postgres import Cluster, cluster
from tests.support.softhsm import Folder, Token, find_module, make_token

import hsmcore

CALLERS, BLOCK_EVERY = 64, 100
SINGLE, TAKEOVERS = 300, 10
_NOOP = {"modulePath": str(NOOP), "tokenLabel": "noop", "keyLabel": "noop-key", "pin": "1234", "quirks": "softhsm",
         "sessions": 2}  # fmt: skip


def say(line: str) -> None:
    """Write a line of the result."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


class Way:
    """One key manager, and what it did."""

    def __init__(self, name: str, module: dict[str, Any], **rules: Any) -> None:
        own = {**module, "policy": {"kinds": ["block", "raw"]}, "maxCacheSize": 0, **rules}
        self.name, self.manager = name, hsmcore.create_key_manager({"sequencer": {"keyManager": own}})
        self.rates: list[float] = []
        self._positions, self._numbers = itertools.count(1), itertools.count(1)

    async def open(self) -> None:
        """Start, and hold the epoch."""
        await self.manager.initialize()
        while self.manager.fleet is not None and self.manager.fleet.state != "holder":  # noqa: ASYNC110
            await asyncio.sleep(0.01)

    async def slice(self, seconds: float) -> float:
        """Signatures a second, 1 % of them of blocks."""
        begun, done = time.perf_counter(), 0

        async def caller() -> None:
            nonlocal done
            while time.perf_counter() < begun + seconds:
                number = next(self._numbers)
                block = number % BLOCK_EVERY == 0
                await self.manager.sign(ordered(next(self._positions)) if block else b"hsmcore %064d" % number)
                done += 1

        await asyncio.gather(*(caller() for _ in range(CALLERS)))
        return done / (time.perf_counter() - begun)

    async def bind(self) -> list[float]:
        """Milliseconds of one block after the other."""
        took = []
        for _ in range(SINGLE):
            begun = time.perf_counter()
            await self.manager.sign(ordered(next(self._positions)))
            took.append((time.perf_counter() - begun) * 1e3)
        return sorted(took)


async def compare(
    label: str, module: dict[str, Any], server: Cluster, folder: Path, rounds: int, *, single: bool = True
) -> None:
    """Slices in turn, then single blocks."""
    fleet = {"store": {"url": server.database()}, "name": "measured", "singleNode": single}
    strict = {**fleet, "store": {"url": server.database()}, "unordered": "strict"}
    ways = [
        Way("SQLite", module, stateFile=str(folder / f"{label}.db")),
        Way("lease", module, fleet=fleet),
        Way("strict", module, fleet=strict),
    ]
    for way in ways:
        await way.open()
        await way.slice(0.5)
    for number in range(rounds):
        for way in ways[number % 3 :] + ways[: number % 3]:
            way.rates.append(await way.slice(2.0))
    for way in ways:
        ratios = sorted(own / base for own, base in zip(way.rates, ways[0].rates, strict=True))
        took = await way.bind()
        say(
            f"{label:8} {way.name:7} {statistics.median(way.rates):10,.0f}/s  {statistics.median(ratios):.3f} × SQLite "
            f"({ratios[0]:.2f} to {ratios[-1]:.2f})  a block alone: p50 {took[len(took) // 2]:.2f} ms, "
            f"p99 {took[len(took) * 99 // 100]:.2f} ms"
        )
        await way.manager.close()


def take_over(token: Token, server: Cluster, folder: Path) -> None:
    """Kill the holder, and wait for a signature of the next one."""
    hosts, took = Hosts(folder, token, server.database()), []
    holder = hosts.start("host-0", ttlMs=2000)
    holder.until("holder")
    for number in range(1, TAKEOVERS + 1):
        follower = hosts.start(f"host-{number}", ttlMs=2000)
        holder.until_signed(ordered(number))
        begun = time.monotonic()
        holder.kill()
        follower.until_signed(ordered(number + 1))
        took.append(time.monotonic() - begun)
        holder = follower
    hosts.close()
    say(f"takeover after kill -9, ttlMs 2000: median {statistics.median(took):.2f} s, slowest {max(took):.2f} s")


def tokens() -> Iterator[Token]:
    """A token with one Ed25519 key."""
    folder, module = Folder(), find_module()
    assert module is not None
    try:
        yield make_token(folder, module, ({"name": "ed25519", "kind": "ed25519"},))
    finally:
        folder.remove()


def main() -> None:
    """Measure everything."""
    parser = argparse.ArgumentParser(description="What a fleet costs.")
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    logging.disable(logging.CRITICAL)
    with cluster() as server, tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        os.environ["XDG_STATE_HOME"] = made  # what earlier runs have promised with the same keys counts for nothing
        for token in tokens():
            softhsm = token.config()["sequencer"]["keyManager"]
            uvloop.run(compare("SoftHSM", softhsm, server, folder, rounds))
            uvloop.run(compare("no-op", {"type": "pkcs11", "config": _NOOP}, server, folder, rounds))
            take_over(token, server, folder)
        server.standby()
        for token in tokens():
            softhsm = token.config()["sequencer"]["keyManager"]
            uvloop.run(compare("standby", softhsm, server, folder, rounds, single=False))


if __name__ == "__main__":
    main()
