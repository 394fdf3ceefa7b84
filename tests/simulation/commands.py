"""The command line in a world: each command is the real one, from its words to its exit code, in a process of its own.

A command is written without coroutines and calls `asyncio.run` for what waits. So it runs in a greenlet; what it gives
to `asyncio.run` becomes a task of the world's loop, and the command goes on when that has ended. Between two turns of
the loop anything may happen to the host, as beside a real process.
"""

from __future__ import annotations

import asyncio
import io
import sys
from contextvars import copy_context
from pathlib import Path
from typing import Any, Final, NamedTuple

import orjson
from greenlet import GreenletExit, getcurrent, greenlet

_run: Final = asyncio.run
_shells: list[Shell] = []
"""Commands of the world that runs: one that is killed stays here until its end."""


class Done(NamedTuple):
    """How a command ended: its exit code, its result, and what it said on standard error."""

    code: int
    result: Any
    said: str


class Shell(greenlet):
    """One command."""

    def __init__(self, config: Path, words: tuple[str, ...]) -> None:
        super().__init__(self._main)
        self.gr_context = copy_context()
        self.killed = False
        """Whether nothing of it happens any more."""
        self._words = [*words, "--config", str(config), "--json"]
        self._out, self._err = io.StringIO(), io.StringIO()
        _shells.append(self)

    def _main(self) -> int:
        from hsmcore.cli import app

        app.configure = lambda **_options: None  # its own process has a log of its own
        return app.run(self._words)

    async def done(self) -> Done:
        """Run it to its end."""
        found = self._go_on(self.switch)
        while not self.dead:
            try:
                result = await asyncio.ensure_future(found)
            except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001  # it is the command's
                found = self._go_on(self.throw, error)
            else:
                found = self._go_on(self.switch, result)
        _shells.remove(self)
        out = self._out.getvalue()
        return Done(found, orjson.loads(out) if out.startswith(("{", "[")) else out, self._err.getvalue())

    def _go_on(self, how: Any, *given: Any) -> Any:
        printed = sys.stdout, sys.stderr
        sys.stdout, sys.stderr = self._out, self._err
        try:
            return how(*given)
        finally:
            sys.stdout, sys.stderr = printed

    def bury(self) -> None:
        """Let go of a command that was killed."""
        self.killed = True
        if not self.dead:
            self._go_on(self.throw, GreenletExit)


def bury() -> None:
    """Let go of what a world has left. What a killed command does at its end comes after all that was judged."""
    while _shells:
        _shells.pop().bury()


def _waited(coroutine: Any, **options: Any) -> Any:
    """In place of `asyncio.run`."""
    command = getcurrent()
    if not isinstance(command, Shell):
        return _run(coroutine, **options)
    if command.killed:
        coroutine.close()
        raise GreenletExit
    assert command.parent is not None
    return command.parent.switch(coroutine)


def install() -> None:
    """Once in a process."""
    asyncio.run = _waited
