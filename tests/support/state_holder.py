"""Processes that hold a state store and do as they are told, so that a test can look beside them and kill them.

As a program: `python -m tests.support.state_holder store PATH` holds two Stores, `… manager CONFIG` a key manager.
Each line of standard input is a command, each line of standard output its answer as JSON; the first says that it is
open.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Self

from tests.support.told import Told

import hsmcore
from hsmcore.failover.events import Event
from hsmcore.failover.history import History
from hsmcore.state import Store

Answer = Callable[[str], Awaitable[Any]]


async def _obey(answer: Answer) -> None:
    sys.stdout.write("true\n")
    sys.stdout.flush()
    while line := await asyncio.to_thread(sys.stdin.readline):
        sys.stdout.write(json.dumps(await answer(line.strip())) + "\n")
        sys.stdout.flush()


async def _store(path: str) -> None:
    first = await Store.open(path)
    second = await Store.open(path)

    async def note(reason: str) -> bool:
        await History(first).note(Event("outage", reason=reason))
        return True

    await _obey(note)
    await second.close()
    await first.close()


async def _manager(path: str) -> None:
    async with hsmcore.create_key_manager(path) as manager:

        async def answer(command: str) -> str:
            verb, _, rest = command.partition(" ")
            if verb == "rotate":
                return await manager.rotate_key()
            if verb == "sign":
                await asyncio.gather(*(manager.sign(f"{rest} {n}".encode(), 20.0) for n in range(int(rest) - 1)))
                return (await manager.sign_with_receipt(rest.encode(), 20.0)).level
            return await manager.get_current_key_id()

        await _obey(answer)


class Holder(Told):
    """Such a process."""

    def __init__(self, kind: str, path: Path) -> None:
        super().__init__("tests.support.state_holder", kind, str(path))

    def __enter__(self) -> Self:
        super().__enter__()
        assert self.answer() is True
        return self

    def ask(self, command: str) -> Any:
        """The answer to a command."""
        self.write(command)
        return self.answer()

    def deleted(self) -> list[str]:
        """The files that it has open and that have no name any more."""
        links = [os.readlink(link) for link in Path(f"/proc/{self.process.pid}/fd").iterdir()]  # noqa: PTH115
        return [link for link in links if link.endswith("(deleted)") and "state.db" in link]


if __name__ == "__main__":
    asyncio.run({"store": _store, "manager": _manager}[sys.argv[1]](sys.argv[2]))
