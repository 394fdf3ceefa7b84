"""How much memory the processes of a run have of their own, over time."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any, Final

_WARM: Final = 0.2
"""The share of a run in which memory still grows: arenas, caches, stacks."""
_FEWEST: Final = 8
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")


def private_bytes(pids: Sequence[int]) -> int:
    """Resident anonymous memory of these processes and of those that they started, together."""
    return sum(_anonymous(pid) for pid in _with_children(pids))


def _anonymous(pid: int) -> int:
    try:
        resident, shared = Path(f"/proc/{pid}/statm").read_text().split()[1:3]
    except OSError:  # it has ended
        return 0
    return (int(resident) - int(shared)) * _PAGE


def _with_children(pids: Sequence[int]) -> list[int]:
    found: list[int] = []
    for pid in pids:
        found.append(pid)
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{pid}/task").iterdir():
                with contextlib.suppress(OSError):
                    found += _with_children([int(child) for child in (task / "children").read_text().split()])
    return found


class Growth:
    """Samples over a run, and by how much the end is above the beginning."""

    def __init__(self) -> None:
        self._samples: list[int] = []

    def sample(self, pids: Sequence[int]) -> None:
        """Look once."""
        self._samples.append(private_bytes(pids))

    def summary(self) -> dict[str, Any]:
        """Bytes: at the first and last tenth after warming up, the most, and the difference; None if the run was too
        short to tell."""
        steady = self._samples[int(len(self._samples) * _WARM) :]
        if len(steady) < _FEWEST:
            return {"most_bytes": max(self._samples, default=0), "growth_bytes": None}
        tenth = max(1, len(steady) // 10)
        first, last = median(steady[:tenth]), median(steady[-tenth:])
        return {
            "most_bytes": max(self._samples),
            "first_bytes": first,
            "last_bytes": last,
            "growth_bytes": last - first,
        }
