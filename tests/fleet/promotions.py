"""The asynchronous standby is promoted by force, again and again, each time with acknowledged positions lost.

    python -m tests.fleet.promotions --times 100

Two hosts without devices bind and record as the engine does. One of them has signed positions that the asynchronous
standby had not got when the other two nodes died. The other one, which knows nothing of them, must be refused with
FleetBehind until the first is back and has said what it knows; then no position may take another payload than the one
that was signed. The summary is JSON on standard output; the exit code is 1 if there was a fault.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import random
import sys
import tempfile
import time
from collections import Counter
from contextlib import AbstractAsyncContextManager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import structlog
import uvloop
from tests.fleet.cluster import Cluster, Template, cluster
from tests.fleet.proxy import Proxy
from tests.support.attending import Host, attending
from tests.support.postgres import PASSWORD, USER, fleet
from tests.support.run_folder import fast_folder

from hsmcore.errors import HsmError

TTL_MS = 1000
SECONDS = 60.0
"""The longest that anything takes."""
_PASSING = ("NotHolder", "FleetBehind", "StoreError", "StoreUnknown")
_PASSWORD = quote(PASSWORD, safe="")


class Promotion:
    """One of them, in a database of its own."""

    def __init__(self, database: Cluster, way: Proxy, folder: Path, number: int, faults: Counter[str]) -> None:
        self._database, self._way, self._folder, self._faults = database, way, folder, faults
        self._name = f"fleet{number}"
        self._dice = random.Random(number)
        self._signed: dict[int, set[str]] = {}
        folder.mkdir()

    def _host(self, name: str, **more: Any) -> AbstractAsyncContextManager[Host]:
        url = f"postgresql://{USER}:{_PASSWORD}@127.0.0.1:{self._way.port}/{self._name}?connect_timeout=2"
        return attending(fleet(url, host=name, ttlMs=TTL_MS, singleNode=False, **more), self._folder / name)

    async def run(self) -> None:
        """Lose positions, and see what comes of it."""
        database = self._database
        assert database.leader is not None
        await asyncio.to_thread(database.leader.execute, f"CREATE DATABASE {self._name} OWNER {USER}")
        async with self._host("b", claim="manual") as b:
            async with self._host("a") as a:
                await self._until_signed(a, 1)
                await database.streams(database.asynchronous)
                database.links[database.asynchronous.name].hold()
                lost = range(2, 3 + self._dice.randrange(4))
                for position in lost:
                    await self._until_signed(a, position)
            # It has given the epoch up, which is lost too.
            await database.lose()
            database.links[database.asynchronous.name].heal()
            self._way.cut()
            await self._refused(b, lost)
            async with self._host("a") as a:
                await self._healed(a, b, lost)
        if any(len(texts) > 1 for texts in self._signed.values()):
            self._faults["two payloads"] += 1

    async def _try(self, host: Host, position: int, text: str) -> str:
        found = await host.sign(position, text)
        if not found:
            await host.log.flush()
            self._signed.setdefault(position, set()).add(text)
        return found

    async def _until_signed(self, host: Host, position: int) -> None:
        async with asyncio.timeout(SECONDS):
            while await self._try(host, position, f"a {position}"):  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    async def _refused(self, host: Host, lost: range) -> None:
        """See that the host which knows nothing of them binds none of the positions that were lost, nor the next."""
        async with asyncio.timeout(SECONDS):
            while True:
                with suppress(HsmError):  # FleetBehind too, which is what it is refused with below
                    await host.member.claim(force=True, reason="the other host is gone")
                found = {await self._try(host, position, f"b {position}") for position in (*lost, lost.stop)}
                if "FleetBehind" in found:
                    break
                if "" in found:
                    self._faults["signed before the incident was answered"] += 1
                    return
                await asyncio.sleep(0.01)
        self._faults.update({"stopped with FleetBehind": 1})
        if "" in found:
            self._faults["signed before the incident was answered"] += 1

    async def _healed(self, first: Host, second: Host, lost: range) -> None:
        """See that each lost position takes its own payload only, and that the next one is signed."""
        async with asyncio.timeout(SECONDS):
            while await self._any(first, second, lost.stop + 1, "next"):
                for position in lost:
                    for host in (first, second):
                        await self._try(host, position, f"b {position}")
                await asyncio.sleep(0.01)
            for position in lost:
                while (found := await self._any(first, second, position, f"b {position}")) in _PASSING:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
                if found != "DoubleSign":
                    self._faults[f"a lost position was not put back: {found or 'bound'}"] += 1

    async def _any(self, first: Host, second: Host, position: int, text: str) -> str:
        """The answer of the host that holds the epoch."""
        found = await self._try(first, position, text)
        return await self._try(second, position, text) if found == "NotHolder" else found


async def promote(times: int) -> dict[str, Any]:
    """Do it so often, in one cluster. Returns the summary."""
    counts, began, slowest = Counter[str](), time.monotonic(), 0.0
    with tempfile.TemporaryDirectory(prefix="hsmcore-fleet-", dir=fast_folder()) as made:
        folder = Path(made)
        folder.chmod(0o755)  # noqa: ASYNC240
        template = await asyncio.to_thread(Template, folder / "template")
        async with cluster(template, folder / "nodes") as database:
            way = Proxy(database.port)
            await way.start()
            try:
                for number in range(times):
                    begun = time.monotonic()
                    await Promotion(database, way, folder / f"{number}", number, counts).run()
                    await database.rejoin()
                    slowest = max(slowest, time.monotonic() - begun)
                    sys.stderr.write(f"{number + 1} of {times}: {dict(counts)}, {time.monotonic() - begun:.1f} s\n")
            finally:
                await way.close()
    stopped = counts.pop("stopped with FleetBehind", 0)
    if stopped != times:
        counts["not stopped"] = times - stopped
    return {
        "promotions": times,
        "stopped with FleetBehind": stopped,
        "faults": dict(counts),
        "seconds": round(time.monotonic() - began, 1),
        "slowest": round(slowest, 1),
    }


def main() -> int:
    """Promote, and print the summary."""
    parser = argparse.ArgumentParser(description="Promotions of an asynchronous standby that lagged.")
    parser.add_argument("--times", type=int, default=100)
    times = parser.parse_args().times
    logging.disable(logging.CRITICAL)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        summary = runner.run(promote(times))
    sys.stdout.write(f"{json.dumps(summary, indent=1)}\n")
    return 1 if summary["faults"] else 0


if __name__ == "__main__":
    sys.exit(main())
