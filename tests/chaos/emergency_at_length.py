"""A busy machine does not make the emergency key sign, nor is a member told to be down that is well.

    python -m tests.chaos.emergency_at_length --slices 32 --seconds 6

One caller signs with a SoftHSM token that is well all the time, by each isolation, with `emergencyDelayMs` 0 and its
default. A slice presses on the machine: programs that only take processors, clients without a token that flood the
console, an event loop that is late now and then, or all of these. The table is on standard error, the summary is JSON
on standard output; the exit code is 1 if the emergency level was entered, or a member was told to be down.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import logging
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import structlog
from tests.support.managers import becomes
from tests.support.pressure import pressed
from tests.support.run_folder import fast_folder
from tests.support.softhsm import Folder, Token, find_module, make_token

import hsmcore
from hsmcore.serve import attached

PRESSURES = ("burners", "flood", "late loop", "all")
BLOCKED_SECONDS, PAUSE_SECONDS = 0.3, 0.7
"""How long the loop is held up, and how long it turns in between."""
FLOODS = 2


def programs_of(pressure: str, address: str) -> list[tuple[str, ...]]:
    """The programs that press on the machine."""
    burners = [("burn",)] * (os.cpu_count() or 1) if pressure in ("burners", "all") else []
    return burners + ([("flood", address)] * FLOODS if pressure in ("flood", "all") else [])


def config_of(token: Token, folder: Path, isolation: str, delay: int | None) -> dict[str, Any]:
    """One member, the emergency key behind it, and the console."""
    failover = {"emergencyModeEnabled": True} | ({} if delay is None else {"emergencyDelayMs": delay})
    state = folder / f"{isolation}-{delay}.db"
    settings, console = {"isolation": isolation}, {"listen": "127.0.0.1:0"}
    return token.config(settings=settings, maxCacheSize=0, stateFile=str(state), failover=failover, monitoring=console)


async def hold_up(until: float) -> None:
    """Make the event loop late now and then."""
    while time.monotonic() < until:
        await asyncio.sleep(PAUSE_SECONDS)
        time.sleep(BLOCKED_SECONDS)  # noqa: ASYNC251  # that is the point


async def slices(config: Mapping[str, Any], pressures: list[str], seconds: float) -> list[dict[str, Any]]:
    """One key manager under each of the pressures, one after the other."""
    found = []
    told: Counter[str] = Counter()
    async with hsmcore.create_key_manager(config) as manager, attached(manager) as site:
        manager.on("member-down", lambda _details: told.update(["member-down"]))
        manager.on("failover", lambda details: told.update([f"to {details['to_level']}"]))

        async def recovered() -> bool:
            with suppress(hsmcore.HsmError):
                return (await manager.sign_with_receipt(os.urandom(16))).level == "primary"
            return False

        for pressure in pressures:
            await becomes(recovered)
            told.clear()
            levels: Counter[str] = Counter()
            longest = 0
            with ExitStack() as stack:
                await asyncio.to_thread(stack.enter_context, pressed(*programs_of(pressure, site.address)))
                until = time.monotonic() + seconds
                holding = asyncio.create_task(hold_up(until)) if pressure in ("late loop", "all") else None
                while time.monotonic() < until:
                    try:
                        receipt = await manager.sign_with_receipt(os.urandom(16))
                    except hsmcore.HsmError as error:
                        levels[error.status] += 1
                        await asyncio.sleep(0.01)
                    else:
                        levels[receipt.level] += 1
                        longest = max(longest, receipt.latency_ns)
                if holding is not None:
                    await holding
            found.append({"answers": dict(levels), "longest_ms": round(longest / 1e6), "told": dict(told)})
    return found


def is_bad(one: Mapping[str, Any]) -> bool:
    """Whether the device, which was well, was taken for one that is not."""
    return bool(one["told"]) or "emergency" in one["answers"]


def main() -> int:
    """Run the slices."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--slices", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=6.0, help="of one slice")
    chosen = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    kinds = list(itertools.product(("process", "thread"), (0, None)))
    rounds = -(-chosen.slices // len(kinds))
    pressures = list(itertools.islice(itertools.cycle(PRESSURES), rounds))
    rows: list[dict[str, Any]] = []
    module, tokens = find_module(), Folder()
    assert module is not None, "SoftHSM is not installed"
    try:
        with tempfile.TemporaryDirectory(dir=fast_folder()) as folder:
            for isolation, delay in kinds:
                token = make_token(tokens, module, ({"name": "ed25519", "kind": "ed25519"},))
                config = config_of(token, Path(folder), isolation, delay)
                made = asyncio.run(slices(config, pressures, chosen.seconds))
                for pressure, one in zip(pressures, made, strict=True):
                    rows.append({"isolation": isolation, "emergencyDelayMs": delay, "pressure": pressure, **one})
                    sys.stderr.write(f"{json.dumps(rows[-1])}\n")
    finally:
        tokens.remove()
    bad = [one for one in rows if is_bad(one)]
    sys.stdout.write(f"{json.dumps({'slices': len(rows), 'bad': bad})}\n")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
