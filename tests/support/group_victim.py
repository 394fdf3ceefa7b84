"""A program that signs in a host process until it is told to stop, and then ends in order: it asks for nothing more,
waits for what is on its way, closes, and prints what became of its requests.

    python -m tests.support.group_victim < configuration
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys

from tests.support.chaos import supervisor_of
from tests.support.managers import until

import hsmcore

CALLERS = 32
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


async def main() -> None:
    """Sign until a signal comes."""
    over = asyncio.Event()
    for number in SIGNALS:
        asyncio.get_running_loop().add_signal_handler(number, over.set)
    signed, errors = 0, []
    async with hsmcore.create_key_manager(json.load(sys.stdin)) as manager:

        async def caller(number: int) -> None:
            nonlocal signed
            while not over.is_set():
                try:
                    await manager.sign(b"%d %d" % (number, signed), 5.0)
                except hsmcore.HsmError as error:
                    errors.append(str(error))
                else:
                    signed += 1

        callers = [asyncio.ensure_future(caller(number)) for number in range(CALLERS)]
        await until(lambda: signed >= CALLERS)
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        await asyncio.gather(*callers)
        await asyncio.sleep(0.2)  # for as long as a host that the signal ended takes to be noticed
        supervisor = supervisor_of(manager)
        restarts = supervisor.restarts + (supervisor._restarting is not None)
    sys.stdout.write(json.dumps({"signed": signed, "errors": errors, "restarts": restarts}) + "\n")


if __name__ == "__main__":
    asyncio.run(main())
