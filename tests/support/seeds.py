"""Command lines that run the schedules of a range of seeds, some at a time in a process of their own.

A process of its own because what runs in the caller's process can crash with the module.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import logging
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

import structlog
from tests.support.paths import ROOT

from hsmcore import _native

MOST_NOTES = 40


def seed_range(text: str) -> list[int]:
    """The seeds of "7", "0-999" or "3,20-29"."""
    ranges = [part.partition("-") for part in text.split(",")]
    return [seed for first, _, last in ranges for seed in range(int(first), int(last or first) + 1)]


def parse(description: str, arguments: list[str] | None = None, *own: argparse.ArgumentParser) -> argparse.Namespace:
    """The command line. `own`: the program's own options, for the help. With `chunk`, the process is the one that
    `run_seeds` starts: stdin says what to run."""
    parser = argparse.ArgumentParser(description=description, parents=own)
    parser.add_argument("--seeds", type=seed_range, default=seed_range("0-999"), help="such as 0-9999")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--stop-after", type=float, default=float("inf"), help="seconds: begin nothing after so long")
    parser.add_argument("--chunk", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def added(verdicts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The sum of verdicts, or of sums."""
    total: dict[str, Any] = {}
    for verdict in verdicts:
        for name, value in verdict.items():
            if name in ("latest", "slowest to heal"):
                total[name] = max(total.get(name, 0.0), value)
            elif isinstance(value, Mapping):
                total[name] = total.get(name, Counter()) + Counter(value)
            else:
                total[name] = total.get(name, type(value)()) + value
    return total


def quiet() -> None:
    """Log nothing."""
    logging.disable(logging.CRITICAL)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))


async def judged(schedule: Any, seconds: float) -> Any:
    """Run a schedule with a limit, and look at what it left. Returns its verdict."""
    verdict = schedule.verdict
    try:
        await asyncio.wait_for(schedule.run(), seconds)
    except TimeoutError:
        verdict.fault("hangs", f"longer than {seconds:.0f} s")
    gc.collect()
    left = {name: count for name, count in _native.leaks().items() if count}
    verdict.fault("leaks", str(left), len(left))
    return verdict


def _run_chunk(module: str, seeds: list[int], shared: tuple[Any, ...]) -> dict[str, Any]:
    command = [sys.executable, "-m", module, "--chunk"]
    done = subprocess.run(command, input=json.dumps([seeds, *shared]), stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode == 0:
        found: dict[str, Any] = json.loads(done.stdout)
        return found
    return {"faults": {"crashes": 1}, "notes": [f"seeds {seeds[0]}-{seeds[-1]}: ended with {done.returncode}"]}


def run_seeds(asked: argparse.Namespace, module: str, size: int, *shared: Any) -> int:
    """Run `python -m module --chunk` for `size` seeds at a time; it reads [seeds, *shared] and prints a verdict. Print
    the sum. Returns the exit code."""
    begun = time.monotonic()
    total: dict[str, Any] = {}
    chunks = [asked.seeds[i : i + size] for i in range(0, len(asked.seeds), size)]
    with ThreadPoolExecutor(asked.jobs) as pool:
        running = [pool.submit(_run_chunk, module, chunk, shared) for chunk in chunks]
        try:
            for future in as_completed(running):
                if future.cancelled():
                    continue
                for note in future.result().get("notes", []):
                    sys.stderr.write(f"\r{note}\n")
                total = added([total, future.result()])
                took = time.monotonic() - begun
                done = total.get("schedules", 0)
                sys.stderr.write(f"\r{done} schedules, {done / took:.1f}/s, {dict(total['faults'])} ")
                sys.stderr.flush()
                if took > asked.stop_after:
                    for other in running:
                        other.cancel()
        except KeyboardInterrupt:  # the sum of what has ended is printed
            total["interrupted"] = True
            pool.shutdown(wait=False, cancel_futures=True)
    seconds = time.monotonic() - begun
    total["notes"] = total.get("notes", [])[:MOST_NOTES]
    total |= {
        "requests": sum(total.get("answers", {}).values()),
        "seconds": round(seconds, 1),
        "schedules per second": round(total.get("schedules", 0) / seconds, 1),
    }
    sys.stderr.write("\n")
    json.dump(total, sys.stdout, indent=1)
    sys.stdout.write("\n")
    return 1 if total.get("faults") else 130 if "interrupted" in total else 0


def run_command(module: str, seeds: str, seconds: float) -> tuple[int, dict[str, Any]]:
    """Run the command line. Returns the exit code and the sum."""
    command = [sys.executable, "-m", module, "--seeds", seeds, "--jobs", "2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=seconds)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)
