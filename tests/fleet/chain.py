"""The chain, as a host of the fleet knows it: what another host has published arrives some time after that, in no
order, and now and then only when the host asks for what it lacks.

A block is published after its signature was handed out, with a line of the history of its host. So a block that was
bound, or signed, by a process that died before that is known to no other host.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from pathlib import Path
from typing import Final

from tests.fleet.history import lines_since

BUILDS: Final = 0.1
"""The longest time from a signature to its publication, in seconds."""
TRAVELS: Final = (0.01, 0.15)
LOST: Final = 0.15
"""How likely one host does not get a block."""
ASKS: Final = 1.0
"""Seconds between two questions for blocks that were lost."""
KNOWN: Final = 2 * ASKS
"""Seconds after which a published block is known everywhere, on a machine that has time for its processes."""
_LOOK: Final = 0.03


class Chain:
    """What one host has heard. `histories`: the folder in which each host has one. `own`: its own."""

    def __init__(self, histories: Path, own: Path, dice: random.Random) -> None:
        self._histories, self._own, self._dice = histories, own, dice
        self.high = -1
        """The highest block that was heard of; a node that has it has those before it."""

    def heard(self, position: int) -> None:
        """Know a block."""
        self.high = max(self.high, position)

    async def follow(self, over: asyncio.Event, told: Callable[[], None]) -> None:
        """Listen until it is over. `told`: called after each look."""
        loop = asyncio.get_running_loop()
        places: dict[Path, int] = {}
        coming: list[tuple[float, int]] = []
        while not over.is_set():
            for history in self._histories.glob("*/history"):
                lines, places[history] = lines_since(history, places.get(history, 0))
                for position in (line["position"] for line in lines if line["what"] == "published"):
                    late = ASKS if self._dice.random() < LOST else self._dice.uniform(*TRAVELS)
                    coming.append((loop.time() + (0.0 if history == self._own else late), position))
            for _, position in (arrived := [one for one in coming if one[0] <= loop.time()]):
                self.heard(position)
            coming = [one for one in coming if one not in arrived]
            told()
            await asyncio.sleep(_LOOK)
