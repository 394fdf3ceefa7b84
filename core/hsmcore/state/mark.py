"""How far the positions of a domain are bound, and up to where nothing is signed any more (state/positions.py)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

WINDOW: Final = 1024
"""Positions behind the highest one of which the watermark knows whether they are bound."""
_MASK: Final = (1 << WINDOW) - 1


@dataclass(slots=True)
class Mark:
    """A row of `watermark`."""

    floor: int = -1
    high: int = -1
    bits: int = 0
    reason: str = ""

    def knows(self, position: int) -> bool:
        """Return whether `bits` says if the position is bound."""
        return self.high - WINDOW < position

    def has(self, position: int) -> bool:
        """Return whether the position is bound, as far as `knows` says."""
        return self.high >= position and bool(self.bits >> (self.high - position) & 1)

    def add(self, position: int) -> None:
        """Note that the position is bound."""
        if position > self.high:
            step = position - self.high
            self.bits = (self.bits << step | 1) & _MASK if step < WINDOW else 1
            self.high = position
        elif self.knows(position):
            self.bits |= 1 << (self.high - position)
