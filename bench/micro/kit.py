"""What the micro-benchmarks share: the type of the measuring fixture."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class PerCall(Protocol):
    def __call__(self, function: Callable[[], object], calls: int) -> None:
        """Measure a function that makes so many calls."""
