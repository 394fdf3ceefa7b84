"""What metrics cost: signing with and without a scrape each second, by turns in one process.

    python -m tests.soak.scrape_cost [--members N] [--pairs N] [--json]

One member is SoftHSM; more are copies of the no-op module in one level, which sign far faster than any device and so
leave a scrape the least room. Ratios are medians over pairs of neighbouring windows; on a busy machine only those of
processor time mean anything.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import uvloop
from tests.support.chaos import copy_of, wrap_noop
from tests.support.softhsm import Folder, find_module, make_token

import hsmcore
from hsmcore.metrics import render

IN_FLIGHT = 64
WINDOW_S = 1.0
Window = tuple[float, float, float]
"""Signatures per second, processor seconds per signature, 99.9th percentile in seconds."""


def noops(folder: Path, count: int) -> dict[str, Any]:
    """A level of so many members."""
    wrapped = wrap_noop()
    providers = []
    for number in range(count):
        (folder / str(number)).mkdir()
        module = copy_of(Path(wrapped.module), folder / str(number))
        config = {**wrapped.settings, "modulePath": str(module), "sessions": 2}
        providers.append({"name": f"member-{number}", "type": "pkcs11", "config": config})
    rules = {"maxCacheSize": 0, "stateFile": str(folder / "state.db"), "failover": {"primary": providers[1:]}}
    return {"keyManager": {**providers[0], **rules}}


class Scraper:
    """A thread that scrapes when it is told to."""

    def __init__(self, manager: hsmcore.KeyManager) -> None:
        self._manager = manager
        self.go = threading.Event()
        self.wall: list[float] = []
        self.cpu: list[float] = []
        self.lines = 0
        self._ended = False
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while self.go.wait() and not self._ended:
            self.go.clear()
            wall, cpu = time.perf_counter(), time.thread_time()
            body, _ = render(self._manager)
            self.wall.append(time.perf_counter() - wall)
            self.cpu.append(time.thread_time() - cpu)
            self.lines = body.count(b"\n")

    def end(self) -> None:
        self._ended = True
        self.go.set()
        self._thread.join()


async def measure(config: dict[str, Any], pairs: int) -> dict[str, Any]:
    """All windows."""
    async with hsmcore.create_key_manager(config) as manager:
        latencies: list[float] = []
        ended = False

        async def caller(number: int) -> None:
            count = 0
            while not ended:
                begun = time.perf_counter()
                await manager.sign(b"hsmcore %d %d" % (number, count))
                latencies.append(time.perf_counter() - begun)
                count += 1

        async def window(*, scraped: bool) -> Window:
            latencies.clear()
            wall, cpu = time.perf_counter(), time.process_time()
            await asyncio.sleep(WINDOW_S / 2)
            if scraped:
                scraper.go.set()
            await asyncio.sleep(WINDOW_S / 2)
            found = sorted(latencies)
            cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
            return len(found) / wall, cpu / len(found), found[len(found) * 999 // 1000]

        callers = [asyncio.ensure_future(caller(number)) for number in range(IN_FLIGHT)]
        scraper = Scraper(manager)
        await asyncio.sleep(WINDOW_S)
        ratios = []
        for number in range(pairs):
            first = await window(scraped=number % 2 == 0)
            second = await window(scraped=number % 2 == 1)
            on, off = (first, second) if number % 2 == 0 else (second, first)
            ratios.append([a / b for a, b in zip(on, off, strict=True)])
        ended = True
        scraper.end()
        await asyncio.gather(*callers)
    throughput, cpu, tail = (statistics.median(column) for column in zip(*ratios, strict=True))
    return {
        "pairs": pairs,
        "scrapeLines": scraper.lines,
        "scrapeMs": round(statistics.median(scraper.wall) * 1e3, 3),
        "scrapeMaxMs": round(max(scraper.wall) * 1e3, 3),
        "scrapeCpuMs": round(statistics.median(scraper.cpu) * 1e3, 3),
        "throughputRatio": round(throughput, 4),
        "cpuPerSignatureRatio": round(cpu, 4),
        "p999Ratio": round(tail, 4),
    }


def main() -> None:
    """Print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--members", type=int, default=1)
    parser.add_argument("--pairs", type=int, default=30)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    logging.disable(logging.CRITICAL)
    tokens = Folder()
    try:
        with tempfile.TemporaryDirectory() as folder:
            if asked.members > 1:
                config = noops(Path(folder), asked.members)
            else:
                module = find_module()
                assert module is not None, "SoftHSM is not installed"
                config = make_token(tokens, module, ({"name": "ed25519", "kind": "ed25519"},)).config(maxCacheSize=0)
            found = {"members": asked.members, **uvloop.run(measure(config, asked.pairs))}
    finally:
        tokens.remove()
    text = json.dumps(found) if asked.json else "\n".join(f"{name}: {value}" for name, value in found.items())
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    main()
