"""A host that goes on twice, as a virtual machine that was copied with its memory.

A process cannot be copied with its threads and connections. So its copy is a second process of hsmcore that starts like
any other one, waits where it would enter the fleet, and takes up there all that the first one has in memory of the
fleet: who it is, which epoch it holds, until when, how often it was renewed, what it has bound. Its process id counts
as that of the first one. Its log is a copy, its connections are its own, and the clock is the same: both take the lease
for as old as it is.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

from tests.fleet.history import Writer

import hsmcore

ASLEEP: Final = "asleep"
"""What a clone that is ready to take up a memory writes into its history."""
_SECONDS: Final = 60.0


def write(manager: hsmcore.KeyManager, place: Path) -> None:
    """Write down what a process has in memory of its fleet."""
    fleet = manager.fleet
    if fleet is None or fleet._witness is None:
        return
    memory = {
        "pid": os.getpid(),
        "machine": vars(fleet._machine),
        "gate": {"words": fleet._gate.words, "caught": fleet._gate.caught},
        "witness": {"_bound": fleet._witness._bound, "_highest": fleet._witness._highest},
    }
    whole = place.with_suffix(".new")
    whole.write_bytes(pickle.dumps(memory))
    whole.replace(place)


def awake(place: Path, history: Path) -> None:
    """Have this process take up that memory, once it is there, instead of entering the fleet."""
    from hsmcore.fleet import membership
    from hsmcore.fleet.machine import Machine
    from hsmcore.manager.policy import watermark

    watch_over, memory = membership.Membership.watch_over, dict[str, Any]()

    async def enter(*given: Any) -> None:
        Writer(history).write(ASLEEP)
        end = time.monotonic() + _SECONDS
        while not place.exists():  # noqa: ASYNC240
            assert time.monotonic() < end, "there is no memory"
            await asyncio.sleep(0.002)
        memory.update(pickle.loads(place.read_bytes()))  # noqa: ASYNC240, S301  # of a process of this test
        for machine in (one for one in given if isinstance(one, Machine)):
            vars(machine).update(memory["machine"])
        watermark.os = SimpleNamespace(getpid=lambda: memory["pid"])  # type: ignore[attr-defined]

    async def and_remember(self: Any, log: Any) -> None:
        vars(self._gate).update(memory["gate"])
        await watch_over(self, log)
        for name, found in memory["witness"].items():
            getattr(self._witness, name).update(found)

    membership.enter = enter  # type: ignore[attr-defined]
    membership.Membership.watch_over = and_remember  # type: ignore[method-assign]
