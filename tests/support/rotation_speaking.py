"""Key managers that are killed while they rotate and sign: each message that is handed out is noted with the time, the
key, and the newest set of keys before and after. A life of tests.support.rotation, on a clock that is `ahead`, so that
an overlap of a day ends in the life after.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from typing import Any

from tests.support.rotation import Chain

import hsmcore
from hsmcore.base import steady
from hsmcore.errors import HsmError
from hsmcore.manager import key_sets
from hsmcore.manager.rotation import service
from hsmcore.manager.rotation.service import RotationService


def _move_clock(ahead: float) -> None:
    """For this process, which ends soon."""
    real, real_ns = time.time, time.time_ns
    time.time = lambda: real() + ahead
    time.time_ns = lambda: real_ns() + int(ahead * 1_000_000_000)
    RotationService.clock = staticmethod(lambda: time.time_ns())  # noqa: PLW0108  # it was bound to the real one
    boot = steady.boottime
    RotationService.boot = staticmethod(lambda: boot() + int(ahead * 1_000_000_000))


def _serial(manager: Any) -> int:
    note = manager.key_set()
    return int(note.split(b"\n")[2]) if note else -1


async def _talk(manager: Any, path: str) -> None:
    """Sign one message after the other; a line of the file is what a verifier gets."""
    number, file = 0, os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    while True:
        before, number = _serial(manager), number + 1
        message = b"%d %d" % (os.getpid(), number)
        try:
            receipt = await manager.sign_with_receipt(message)
        except HsmError:
            await asyncio.sleep(0.01)
            continue
        if before >= 0:  # until there is a set, no verifier begins
            fields = (time.time(), receipt.public_key.hex(), message.hex(), receipt.signature.hex())
            os.write(file, " ".join(map(str, (*fields, before, _serial(manager)))).encode() + b"\n")
        await asyncio.sleep(0.002)


async def _is_settled(rotation: RotationService) -> bool:
    """Whether nothing is under way but overlaps that are not over."""
    now = time.time_ns()
    return all(
        run.status == "overlap" and run.wait_ns > now for run in [e.run for e in await rotation.rotations.open()]
    )


async def speak(request: dict[str, Any]) -> None:
    """Open, finish what the life before left, rotate; sign all the while."""
    kill, delay, fails = request["kill"], request.get("delay", 0.0), request["fails"]

    def trace(point: str) -> None:
        if point == kill:
            if delay:
                threading.Timer(delay, os.kill, (os.getpid(), signal.SIGKILL)).start()
            else:
                os.kill(os.getpid(), signal.SIGKILL)

    _move_clock(request["ahead"])
    service.LOOK_SECONDS = key_sets.LOOK_SECONDS = 0.02
    RotationService.trace = staticmethod(trace)
    manager = hsmcore.create_key_manager(request["config"])
    chain = Chain(request["chain"], False)
    manager.on_rotation(chain)
    async with manager:
        if not os.path.exists(chain.path):  # noqa: PTH110, ASYNC240
            chain._set(await manager.get_current_key_id())
        talking = asyncio.ensure_future(_talk(manager, request["said"]))
        rotation = manager._background.rotation
        while not await _is_settled(rotation):  # noqa: ASYNC110  # as its service looks
            await asyncio.sleep(0.005)
        chain.fails = fails
        try:
            await manager.rotate_key()
        except HsmError:
            assert fails
        while not await _is_settled(rotation):  # noqa: ASYNC110  # as its service looks
            await asyncio.sleep(0.005)
        await asyncio.sleep(0.05 + delay)
        talking.cancel()
        await asyncio.wait({talking})
        assert talking.cancelled(), talking.exception()
