"""A signer with a console in a process that may open few files. It signs, and counts what that costs, until stdin ends.

python -m tests.support.console_victim CONFIG.json LEFT LOOP

LEFT: how many of its descriptors are free when it begins to sign. It says where the console listens, and in the end a
line of JSON: as `Account`.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import resource
import sys
import threading
import time
from pathlib import Path
from typing import Any

from tests.support.loops import FACTORIES
from tests.support.size import FULL

import hsmcore
from hsmcore.serve import attached

DESCRIPTORS = 1024
"""The usual limit."""
CALLERS = 8


@dataclasses.dataclass
class Account:
    """What happened."""

    seconds: dict[int, int] = dataclasses.field(default_factory=dict)
    """Signatures in each second."""
    failed: dict[str, int] = dataclasses.field(default_factory=dict)
    """Requests that failed, by their error."""
    fewest: int = DESCRIPTORS
    """Descriptors that were free."""
    refused: int = 0
    """How often a file could not be opened."""


def unused() -> int:
    """How many descriptors are free."""
    return DESCRIPTORS - (len(os.listdir("/proc/self/fd")) - 1)  # noqa: PTH208  # less the one that lists them


def watch(account: Account, end: threading.Event) -> None:
    """Open a file every few milliseconds, as a signer must be able to."""
    while not end.wait(0.002):
        try:
            free = unused()
        except OSError:
            account.refused += 1
        else:
            account.fewest = min(account.fewest, free)


async def main(config: dict[str, Any], left: int) -> Account:
    """Sign until stdin ends."""
    account, over, end = Account(), asyncio.Event(), threading.Event()
    watcher = threading.Thread(target=watch, args=(account, end))

    async def caller() -> None:
        while not over.is_set():
            try:
                await manager.sign(os.urandom(32))
                await asyncio.sleep(0.0 if FULL else 0.004)  # at full speed it costs `make test` a processor
            except hsmcore.HsmError as error:
                name = type(error).__name__
                account.failed[name] = account.failed.get(name, 0) + 1
                await asyncio.sleep(0.01)
            else:
                second = int(time.monotonic() - begun)
                account.seconds[second] = account.seconds.get(second, 0) + 1

    async with hsmcore.create_key_manager(config) as manager, attached(manager) as site:
        await manager.sign(b"everything is open")
        ballast = [os.open(os.devnull, os.O_RDONLY) for _ in range(unused() - left)]
        begun = time.monotonic()
        callers = [asyncio.create_task(caller()) for _ in range(CALLERS)]
        watcher.start()
        sys.stdout.write(f"{site.address}\n")
        sys.stdout.flush()
        await asyncio.to_thread(sys.stdin.read)
        over.set()
        await asyncio.gather(*callers)
        end.set()
        watcher.join()
        for each in ballast:
            os.close(each)
    return account


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_NOFILE, (DESCRIPTORS, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    # The console's thread makes its loop of this kind, as under `uvloop.install()`.
    asyncio.events.new_event_loop = FACTORIES[sys.argv[3]]
    with asyncio.Runner() as runner:
        found = runner.run(main(json.loads(Path(sys.argv[1]).read_text()), int(sys.argv[2])))
    sys.stdout.write(json.dumps(dataclasses.asdict(found)))
