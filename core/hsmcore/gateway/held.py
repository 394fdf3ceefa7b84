"""Requests of a client that has as many open at a key manager as it may: they wait for room, and are not refused."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from hsmcore.errors import BadArgument

AT_ONCE: Final = 16
"""Requests that begin in a turn of the event loop, at most."""


@dataclass(slots=True, eq=False)
class Held:
    """A request that waits."""

    cost: int
    """Messages."""
    size: int
    """Bytes of memory."""
    until: float
    """Its deadline, as the event loop's time."""
    begin: Callable[[Held], None]
    """Is called once there is room for it."""


class Line:
    """Those of one account, in their order. Belongs to one event loop."""

    def __init__(self, has_room: Callable[[int], bool]) -> None:
        self._has_room = has_room
        self._held: OrderedDict[Held, None] = OrderedDict()
        self._going_on = False

    def __len__(self) -> int:
        return len(self._held)

    def add(self, held: Held) -> None:
        """Let a request wait."""
        self._held[held] = None

    def remove(self, held: Held) -> None:
        """It waits no more."""
        del self._held[held]
        self.go_on()

    def go_on(self) -> None:
        """There may be room: let requests begin in the next turn of the event loop."""
        if self._held and not self._going_on:
            self._going_on = True
            asyncio.get_running_loop().call_soon(self._go_on)

    def _go_on(self) -> None:
        self._going_on = False
        for _ in range(AT_ONCE):
            first = next(iter(self._held), None)
            if first is None or not self._has_room(first.cost):
                return
            del self._held[first]
            first.begin(first)
        self.go_on()


class Overflow:
    """Those of one connection, by their numbers."""

    def __init__(self) -> None:
        self._held: dict[int, tuple[Held, Line, object]] = {}
        self.size = 0
        """Bytes of memory."""

    def add(self, number: int, held: Held, line: Line, contents: object) -> None:
        """Let a request wait in a line. Idempotent; raises BadArgument for a number that waits with other contents."""
        known = self._held.get(number)
        if known is None:
            self._held[number] = held, line, contents
            self.size += held.size
            line.add(held)
        elif known[2] != contents:
            raise BadArgument(f"request {number} waits, and was another one: each number means one request")

    def begun(self, number: int) -> None:
        """One that waited for its turn in the line has it."""
        self.size -= self._held.pop(number)[0].size

    def withdraw(self, number: int) -> bool:
        """Let one wait no more. Returns whether it did."""
        known = self._held.pop(number, None)
        if known is None:
            return False
        self.size -= known[0].size
        known[1].remove(known[0])
        return True

    def due(self, before: float) -> list[int]:
        """Return those with deadlines before this time."""
        return [number for number, (held, _, _) in self._held.items() if held.until < before]
