"""A process with an ephemeral key, to be looked at from outside. Answers each word on its input with a line of JSON.

Started with "unlocked", it may lock no memory.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import mmap
import os
import resource
import sys
from collections.abc import Callable, Coroutine
from typing import Any

import hsmcore
from hsmcore.members.control import locked

CONFIG = {"keyManager": {"type": "ephemeral", "config": {"allowEphemeralPrimary": True}}}
CAP_IPC_LOCK = 14  # capabilities(7): a process with it is not bound by RLIMIT_MEMLOCK


class Holder:
    """The key manager and its key."""

    def __init__(self, manager: hsmcore.KeyManager) -> None:
        self.manager = manager
        [held] = manager._path.member.control._held.values()  # type: ignore[union-attr]
        self.key: locked.LockedKey = held.key

    async def sign(self) -> dict[str, Any]:
        signature = await self.manager.sign(b"a message", timeout=5)
        return {"good": await self.manager.verify(b"a message", signature)}

    async def close(self) -> dict[str, Any]:
        await self.manager.close()
        return {"closed": True}

    async def deactivate(self) -> dict[str, Any]:
        events: list[Any] = []
        self.manager.on("key-deactivated", events.append)
        await self.manager.deactivate_key(await self.manager.get_current_key_id())
        return {"enforced": events[0]["enforced"]}

    async def wipe(self) -> dict[str, Any]:
        """What the page held when it was about to be given back."""
        seen: list[str] = []

        class Observed:
            def munlock(self, address: int, size: int) -> int:
                seen.append(ctypes.string_at(address, size).hex())
                return 0

        locked._libc = Observed()  # type: ignore[assignment,misc]
        await self.manager.close()
        return {"before_unmapping": seen[0]}

    async def fork(self) -> dict[str, Any]:
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            answer = {"bytes": ctypes.string_at(self.key.address, 64).hex()}
            for name, work in (
                ("error", lambda: self.manager._path.member.engine.submit(b"x")),  # type: ignore[union-attr]
                ("key_error", lambda: self.key.sign(b"x")),
            ):
                try:
                    work()
                except hsmcore.HsmError as error:
                    answer[name] = type(error).__name__
            os.write(writer, json.dumps(answer).encode())
            os._exit(0)
        os.waitpid(child, 0)  # noqa: ASYNC222  # nothing else is to be done
        os.close(writer)
        with os.fdopen(reader) as stream:
            content: dict[str, Any] = json.load(stream)
        return content


async def main() -> None:
    """Open, then answer until the input ends."""
    if "unlocked" in sys.argv:
        forbid_locking()
    manager = hsmcore.create_key_manager(CONFIG)
    try:
        await manager.initialize()
    except hsmcore.HsmError as error:
        say({"error": type(error).__name__, "text": str(error)})
        return
    holder = Holder(manager)
    say({"address": holder.key.address, "public_key": manager.public_key.hex(), "page": mmap.PAGESIZE})
    loop = asyncio.get_running_loop()
    while word := (await loop.run_in_executor(None, sys.stdin.readline)).strip():
        work: Callable[[], Coroutine[Any, Any, dict[str, Any]]] = getattr(holder, word)
        say(await work())
    await manager.close()


def forbid_locking() -> None:
    """Lock nothing from now on: a limit of 0, and not the capability that ignores it."""
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (0, 0))
    libc = ctypes.CDLL(None, use_errno=True)
    # capget(2): _LINUX_CAPABILITY_VERSION_3, this process; the first words are effective, permitted, inheritable.
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    data = (ctypes.c_uint32 * 6)()
    assert libc.capget(header, data) == 0
    for word in range(3):
        data[word] &= ~(1 << CAP_IPC_LOCK)
    assert libc.capset(header, data) == 0


def say(answer: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


asyncio.run(main())
