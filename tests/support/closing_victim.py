"""Closes a key manager while one of its calls hangs, and says on standard output how many seconds that took.

The argument says what hangs: start, sign, generate, or search and the id of a key. Standard input has the configuration
as one line of JSON, a line when the call may begin, and another when it hangs. Exits at its end, without waiting for
the call.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Coroutine
from typing import Any

import hsmcore


def say(text: str) -> None:
    """Write a line."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


async def main(what: str, key: str = "") -> None:
    """Close while that hangs."""
    manager = hsmcore.create_key_manager(json.loads(sys.stdin.readline()))
    if what != "start":
        await manager.initialize()
    say("ready")
    sys.stdin.readline()
    calls: dict[str, Callable[[], Coroutine[Any, Any, object]]] = {
        "start": manager.initialize,
        "sign": lambda: manager.sign(b"hangs", 0.5),
        "generate": manager.generate_key,
        "search": lambda: manager.set_current_key_id(key),
    }
    hangs = asyncio.create_task(calls[what]())
    await asyncio.to_thread(sys.stdin.readline)
    begun = time.monotonic()
    if what == "start":
        hangs.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await hangs
    await manager.close()
    say(str(time.monotonic() - begun))
    await asyncio.to_thread(sys.stdin.readline)
    os._exit(0)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
