"""How much memory the processes of a run have of their own, over time."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any, Final

from hsmcore_bench.harness.process import children_of

_WARM: Final = 0.2
"""The share of a run in which memory still grows: arenas, caches, stacks."""
_FEWEST: Final = 8
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")


def private_bytes(pids: Sequence[int]) -> tuple[int, int]:
    """Resident anonymous memory of these processes, and of those that they started."""
    return sum(map(_anonymous, pids)), sum(map(_anonymous, _children(pids)))


def _anonymous(pid: int) -> int:
    try:
        resident, shared = Path(f"/proc/{pid}/statm").read_text().split()[1:3]
    except OSError:  # it has ended
        return 0
    return (int(resident) - int(shared)) * _PAGE


def _children(pids: Sequence[int]) -> list[int]:
    own = [child for pid in pids for child in children_of(pid)]
    return [*own, *_children(own)] if own else []


class Growth:
    """Samples over a run, and by how much the end is above the beginning."""

    def __init__(self) -> None:
        self._own: list[int] = []
        self._hosts: list[int] = []

    def sample(self, pids: Sequence[int]) -> None:
        """Look once."""
        own, hosts = private_bytes(pids)
        self._own.append(own)
        self._hosts.append(hosts)

    def summary(self) -> dict[str, Any]:
        """Of the generators themselves, and under "hosts" of their host processes: the most, and what was added from
        the first to the last tenth after warming up; None if the run was too short to tell."""
        return {**_summary(self._own), "hosts": _summary(self._hosts)}


def _summary(samples: Sequence[int]) -> dict[str, Any]:
    most = max(samples, default=0)
    steady = samples[int(len(samples) * _WARM) :]
    if len(steady) < _FEWEST:
        return {"most_bytes": most, "growth_bytes": None}
    tenth = max(1, len(steady) // 10)
    first, last = median(steady[:tenth]), median(steady[-tenth:])
    return {"most_bytes": most, "first_bytes": first, "last_bytes": last, "growth_bytes": last - first}
