"""Seeded random lives of processes that lead a rotation one after the other, each cut off at some point.

    python -m tests.chaos.rotation_model --seeds 0-999 --jobs 2

Applications with the handover, applications that register it late, processes without one, and followers take turns,
while nodes fail, transactions land late, a member is away or leaves the configuration, and people ask and abort. The
law: the authority on the chain and the signing key never part, and the key that the chain obeys is never destroyed. At
the end an application with the handover heals everything, and the key that the chain obeys signs.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.support.rotation_world import Broken, CutOff, Process, World
from tests.support.run_folder import fast_folder
from tests.support.seeds import added, parse, quiet, run_seeds

from hsmcore.errors import HsmError, KeyNotFound
from hsmcore.manager.rotation.machine import NAMES
from hsmcore.manager.rotation.service import ABORT, ROTATE
from hsmcore.manager.rotation.steps import handover
from hsmcore.manager.rotation.store import Rotations
from hsmcore.state import Keys

CHUNK = 50
CUTS = (*(f"do:{name}" for name in NAMES), *["do:handover", "undo:handover", "undo:generate"] * 3)
"""Steps to cut a process off in; the handover, and what undoes it, more often than the others."""
KINDS = ("application", "application", "late", "bare", "serve")
HOUR, DAY = 3_600_000_000_000, 86_400_000_000_000
MOST_TURNS = 120
"""Turns after which a rotation that does not end is stuck."""


async def together(world: World, process: Process) -> None:
    """The law between turns: the chain obeys the key of the ring, unless a handover may be under way."""
    current = await Keys(process.store).current()
    under_way = [r for r in await Rotations(process.store).open() if r.run.status in ("running", "undoing")]
    if current is not None and not under_way and world.obeyed() != {current.public_key}:
        raise Broken("no rotation is under way, and the chain obeys another key than the one that signs")
    if current is not None and under_way:
        new = next(key for key in await Keys(process.store).all() if key.version == under_way[0].new)
        if not world.obeyed() <= {current.public_key, new.public_key}:
            raise Broken("the chain obeys a third key")


async def life(world: World, kind: str) -> None:
    """One process, cut off at some tick, or closed."""
    process = Process(world, kind)
    await begin(process)
    world.counts[f"lives of {kind}"] += 1
    killed = False
    try:
        held = await handover.waiting(process.service.rotations) is not None
        if kind in ("late", "bare") and not world.required and not held:
            process.service._rotates = False  # it would rotate without the chain, as its configuration says
        world.counts["took over in a handover"] += held
        if world.random.random() < 0.8 and not held:
            await process.wish(ROTATE)
        if world.random.random() < 0.15:
            await process.wish(ABORT)
        arm(world)
        for turn in range(world.random.randint(1, 12)):
            if kind == "late" and turn == 2:
                process.register()
            await process.service.turn()
            await together(world, process)
            world.now += world.random.choice([0, 0, HOUR, 2 * DAY])
    except CutOff:
        killed = True
    finally:
        await process.end(killed=killed)


def arm(world: World) -> None:
    """Choose where the process is cut off: in a step, anywhere, or nowhere."""
    how = world.random.random()
    if how < 0.65:
        step = world.random.choice(CUTS)
        world.armed = step, world.random.randint(1, 25 if step.endswith("handover") else 6)
    elif how < 0.85:
        world.cut_at = world.random.randint(1, 130)


async def begin(process: Process) -> None:
    """Start a process; where its member is away, put the member back."""
    for device in process.world.devices:
        device.away = False
    if len(process.world.devices) > 1 and process.world.trouble and process.world.random.random() < 0.2:
        process.world.devices[1].away = True
    process.world.disarm()
    await process.begin()


async def heal(world: World) -> None:
    """The application with its handover ends what is open; people abort what waits for its chain."""
    world.trouble = False
    process = Process(world, "application")
    await begin(process)
    try:
        for turn in range(MOST_TURNS):
            await process.service.turn()
            await together(world, process)
            open_ = await process.service.rotations.open()
            if not open_:
                break
            if turn % 20 == 19 and open_[-1].run.status == "running":
                await process.wish(ABORT)
            world.now += DAY
        else:
            raise Broken(f"the rotation is stuck at {open_[0].run}")
        await process.signs()
        current, known = await process.service.keys.current(), await process.service.keys.all()
        if world.obeyed() != {current.public_key} or process.path.version.public_key != current.public_key:
            raise Broken("at the end another key signs than the one that the chain obeys")
        expected = {key.key_id for key in known if key.state != "destroyed"}
        for device in world.devices:
            if set(device.held) != expected:
                raise Broken(f"at the end {device.name} holds {sorted(device.held)}, not {sorted(expected)}")
        world.counts["rotations"] += len(await process.service.rotations.last(1000))
        for entry in await process.service.rotations.last(1000):
            world.counts[f"rotations {entry.run.status}"] += 1
    finally:
        await process.end(killed=False)


async def schedule(seed: int, folder: Path) -> World:
    """One world, from its first life to its end. Raises Broken."""
    world = World(seed, folder)
    world.now = time.time_ns()
    world.trouble = False
    first = Process(world, "serve")
    await begin(first)  # the ring begins, with every member
    await first.end(killed=False)
    world.trouble = True
    await life(world, "application")
    for _ in range(world.random.randint(1, 6)):
        await life(world, world.random.choice(KINDS))
    await heal(world)
    return world


def run_one(seed: int) -> dict[str, Any]:
    """Run one seed. Returns its verdict."""
    faults: dict[str, int] = {}
    notes, counts = [], {}
    with tempfile.TemporaryDirectory(dir=fast_folder()) as folder:
        try:
            counts = dict(asyncio.run(schedule(seed, Path(folder))).counts)
        except Broken as error:
            faults, notes = {"broken": 1}, [f"seed {seed}: {error}"]
        except (HsmError, KeyNotFound) as error:
            faults, notes = {"errors": 1}, [f"seed {seed}: {type(error).__name__}: {error}"]
    return {"schedules": 1, "faults": faults, "notes": notes, "counts": counts}


def main() -> int:
    """The command line."""
    asked = parse(__doc__ or "")
    if asked.chunk:
        quiet()
        [seeds] = json.load(sys.stdin)
        json.dump(added([run_one(seed) for seed in seeds]), sys.stdout)
        return 0
    return run_seeds(asked, "tests.chaos.rotation_model", CHUNK)


if __name__ == "__main__":
    sys.exit(main())
