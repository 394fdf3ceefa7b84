"""The clients of three languages, in turn, through a gateway whose module does nothing.

    python -m tests.gateway.clients [--open 256] [--connections 4] [--seconds 3] [--rounds 5] [--threads 4]

Prints signatures a second, latencies, and the processor time of the client alone, all threads. The client in Rust is
built with cargo, optimized.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from tempfile import TemporaryDirectory

import uvloop
from tests.support.paths import NOOP, ROOT
from tests.support.rust import TARGET, cargo

from hsmcore.gateway import Client
from hsmcore_bench.harness.gateway import gateway_process

BYTES = 200


async def _python(options: argparse.Namespace, address: str) -> str:
    delays: list[float] = []
    async with Client(address, connections=options.connections) as km:

        async def caller(name: int, end: float) -> None:
            number = 0
            while (began := time.perf_counter()) < end:
                await km.sign(b"%d %d" % (name, number) + bytes(BYTES - 20))
                delays.append(time.perf_counter() - began)
                number += 1

        for seconds in (0.5, options.seconds):
            delays.clear()
            used, began = time.process_time(), time.perf_counter()
            await asyncio.gather(*(caller(name, began + seconds) for name in range(options.open)))
            took, used = time.perf_counter() - began, time.process_time() - used
    p50, *_, p99 = (1e3 * statistics.quantiles(delays, n=100)[at] for at in (49, 98))
    count = len(delays)
    return f"{count / took:.0f}/s, p50 {p50:.3f} ms, p99 {p99:.3f} ms, {1e6 * used / count:.1f} µs CPU each"


def _said(command: list[object]) -> str:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)
    return [line for line in done.stdout.splitlines() if "CPU each" in line][-1].removeprefix("round 1: ")


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser()
    for name, number in (("open", 256), ("connections", 4), ("seconds", 3), ("rounds", 5), ("threads", 4)):
        parser.add_argument(f"--{name}", type=int, default=number)
    options = parser.parse_args()
    cargo("build", "--release", "--target-dir", TARGET, "--example", "probe")
    rust = TARGET / "release" / "examples" / "probe"
    node = ROOT / "clients" / "typescript" / "bench" / "throughput.mjs"
    numbers = [options.open, options.connections]
    with TemporaryDirectory() as folder:
        (pin := ROOT.joinpath(folder, "pin")).write_text("0000")
        pin.chmod(0o600)
        config = {"modulePath": str(NOOP), "tokenLabel": "noop", "keyLabel": "noop-key", "pin": {"file": str(pin)}}
        clients = {"test": {"uid": [os.getuid()], "keys": ["default"], "inFlight": 2 * options.open}}
        manager = {"type": "pkcs11", "config": config}
        with gateway_process({"keyManager": manager}, clients) as ([address], _):
            words = ["--address", address, "--open", options.open, "--connections", options.connections]
            turns: dict[str, Callable[[], str]] = {
                "rust": lambda: _said([rust, "bench", *numbers, options.threads, options.seconds, address]),
                "node": lambda: _said(["node", node, *words, "--rounds", 1, "--seconds", options.seconds]),
                "python": lambda: uvloop.run(_python(options, address)),
            }
            for number in range(options.rounds):
                for name, turn in turns.items():
                    load = os.getloadavg()[0]
                    sys.stdout.write(f"{number} {name}: {turn()} (load {load:.1f})\n")
                    sys.stdout.flush()


if __name__ == "__main__":
    main()
