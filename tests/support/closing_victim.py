"""Closes a key manager while one of its calls hangs, and says on standard output how many seconds that took.

Standard input has the configuration as one line of JSON, a line when the call may begin, and another when it hangs.
Exits without waiting for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import time

import hsmcore


def say(text: str) -> None:
    """Write a line."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


async def main(key: str | None) -> None:
    """With a key, its search hangs; without one, the start."""
    manager = hsmcore.create_key_manager(json.loads(sys.stdin.readline()))
    if key is not None:
        await manager.initialize()
    say("ready")
    sys.stdin.readline()
    hangs = asyncio.create_task(manager.initialize() if key is None else manager.set_current_key_id(key))
    await asyncio.to_thread(sys.stdin.readline)
    begun = time.monotonic()
    if key is None:
        hangs.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await hangs
    await manager.close()
    say(str(time.monotonic() - begun))
    os._exit(0)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:] or [None]))
