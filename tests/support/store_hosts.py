"""Processes that share a fleet's store, as its hosts do; a test tells them what to do, stops and kills them.

As a program: the first line of standard input is the fleet's configuration, each later one a command as a JSON list;
each line of standard output is an answer. So the database's password is in no argument.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from contextlib import AsyncExitStack
from functools import partial
from typing import Any, Self

from sqlalchemy import Connection, select
from tests.support.chaos import send_signal
from tests.support.told import Told

from hsmcore.config.fleet import Fleet
from hsmcore.errors import HsmError
from hsmcore.failover.budget import Emergency, Limits
from hsmcore.failover.events import Event
from hsmcore.failover.history import History
from hsmcore.manager.rotation.machine import Run
from hsmcore.manager.rotation.store import Rotations
from hsmcore.state import Keys, Store
from hsmcore.state.keys import activate_key
from hsmcore.state.schema import SNAPSHOT, replace_row


def add_one(connection: Connection) -> int:
    """Add one to a number in the store, as all code of the store changes rows: read, then write."""
    found = connection.execute(select(SNAPSHOT.c.value).where(SNAPSHOT.c.name == "sum")).scalar()
    number = int(found or "0") + 1
    replace_row(connection, SNAPSHOT, "sum", value=f"{number}", written_ns=0)
    return number


class _Commands:
    def __init__(self, store: Store) -> None:
        self._store = store
        self._roles = AsyncExitStack()
        self._budget: Emergency | None = None

    async def add(self, times: int) -> int:
        last = 0
        for _ in range(times):
            last = await self._store.run(add_one)
        return last

    async def note(self, reason: str) -> None:
        await History(self._store).note(Event("outage", reason=reason))

    async def take(self, role: str) -> None:
        await self._roles.enter_async_context(self._store.exclusively(role))

    async def give(self) -> None:
        await self._roles.aclose()

    async def rotate(self, label: str, old: int) -> int:
        """Begin a rotation of a version, if no other process has; then make its key the one that signs."""
        rotations, keys = Rotations(self._store), Keys(self._store)
        begun = await rotations.begin("manual", old, label, None)
        await keys.change(begun.new, key_id=label, public_key=begun.new.to_bytes(32))
        run, now = Run("done", "destroy"), time.time_ns()
        signs = partial(activate_key, version=begun.new, now_ns=now, base_ns=now, retire_ns=now)
        await rotations.record(begun.id, run, "destroy", "done", {}, also=signs)
        return begun.new

    async def spend(self, most: int, units: int) -> bool:
        """Spend so many units of an emergency budget of `most`, and write a line for each."""
        if self._budget is None:
            self._budget = Emergency(self._store, Limits(most, 3600))
        for _ in range(units):
            await self._budget.spend()
            os.write(1, b"1\n")
        return True

    async def close(self) -> None:
        await self._roles.aclose()
        await self._store.close()


async def _obey(store: Store) -> None:
    commands = _Commands(store)
    sys.stdout.write("true\n")
    sys.stdout.flush()
    while line := await asyncio.to_thread(sys.stdin.readline):
        verb, *arguments = json.loads(line)
        try:
            answer = await getattr(commands, verb)(*arguments)
        except HsmError as error:
            answer = type(error).__name__
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
    await commands.close()


async def _main() -> None:
    await _obey(await Store.open(Fleet.model_validate(json.loads(sys.stdin.readline()))))


class Host(Told):
    """Such a process."""

    def __init__(self, url: str, **fields: Any) -> None:
        super().__init__("tests.support.store_hosts")
        self._config = {"store": {"url": url}, "name": "tests", "singleNode": True, "ttlMs": 200} | fields

    def __enter__(self) -> Self:
        super().__enter__()
        self.write(json.dumps(self._config))
        return self

    def await_open(self) -> Self:
        """Wait until it has opened the store."""
        assert self.answer() is True
        return self

    def tell(self, *command: Any) -> None:
        """Give a command, whose answer comes later."""
        self.write(json.dumps(command))

    def ask(self, *command: Any) -> Any:
        """Give a command. Returns its answer, or the name of its error's class."""
        self.tell(*command)
        return self.answer()

    def spent(self) -> tuple[int, Any]:
        """How many units a `spend` has spent, and its answer; None: it was killed."""
        assert self.process.stdout is not None
        units = 0
        while line := self.process.stdout.readline():
            if line != "1\n":
                return units, json.loads(line)
            units += 1
        return units, None

    def stop(self) -> None:
        """Stop it where it is: SIGSTOP."""
        send_signal(self.process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        send_signal(self.process.pid, signal.SIGCONT)


if __name__ == "__main__":
    asyncio.run(_main())
