"""An operator who switches a fleet's database over under a hold: what `hsmcore fleet hold` and `resume` do, from a host
that runs. The database that takes over has all, or lags since before the hold, or since an earlier hold that has ended.
The operator names the last mark, once, and nothing afterwards."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from tests.simulation.clock import SECOND
from tests.simulation.script import MS

from hsmcore.errors import HsmError
from hsmcore.recovery.hold import hold, resume
from hsmcore.state import Store

if TYPE_CHECKING:
    from tests.simulation.fleet import Fleet

_NAME: Final = "worlds"
_PATIENCE: Final = 5.0
"""Seconds for which a command is waited for."""
_AGAIN: Final = 0.2


async def switch_over(world: Fleet, lasts: int, rng: random.Random) -> None:
    """Hold, have the database switched over perhaps, and resume."""
    lags = rng.choice(("", "", "before", "earlier"))
    begun = world.clock.ns
    if lags == "before":
        world.server.lags()
        await asyncio.sleep(rng.randrange(SECOND) / SECOND)
    mark = await _operated(world, _hold)
    if mark and lags == "earlier":
        begun = world.clock.ns
        world.server.lags()
        await _operated(world, partial(_resume, mark))
        await asyncio.sleep(lasts / SECOND)
        mark = await _operated(world, _hold)
    await asyncio.sleep(lasts / SECOND)
    if lags or rng.random() < 0.7:
        world.server.stops()
        await asyncio.sleep((down := rng.randrange(100 * MS, 2 * SECOND)) / SECOND)
        world._starts(True, bool(lags))
        if lags:
            world.facts.losses.append((begun, begun + lasts + down + 2 * SECOND))
    else:
        world.changing = False
    while world.server.rows("SELECT 1 FROM fleet WHERE held IS NOT NULL") and world.clock.ns < world.facts.closing_ns:
        await _operated(world, partial(_resume, mark or ""))
        mark = ""
        await asyncio.sleep(_AGAIN)


def _hold(connection: Any, server: tuple[str, str]) -> str:
    return hold(connection, _NAME, "the script says so", server)


def _resume(mark: str, connection: Any, server: tuple[str, str]) -> int:
    return resume(connection, _NAME, mark, server)


async def _at(store: Store, work: Callable[[Any, tuple[str, str]], Any]) -> Any:
    return await store.run(lambda on: work(on, store.identity))


async def _operated(world: Fleet, work: Callable[[Any, tuple[str, str]], Any]) -> Any:
    """Return what a command returns; None: it is refused, or no host runs it to its end."""
    for host in world.hosts.values():
        fleet = None if host.manager is None else host.manager.fleet
        if fleet is None or host.process is None:
            continue
        running = world.loop.begin(host.process, _at(fleet._store, work))
        running.add_done_callback(lambda task: task.cancelled() or task.exception())  # also of one that is late
        done, _ = await asyncio.wait({running}, timeout=_PATIENCE)
        said = "has no answer" if not done else repr(running.exception() or running.result())
        world.tell("operator", f"at {host.name}: {said}")
        if done and not running.exception():
            return running.result()
        if done and not isinstance(running.exception(), HsmError):
            raise running.exception()
        return None
    return None
