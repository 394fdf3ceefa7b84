"""What a test may leave behind: nothing. A picture of this process's holdings, to compare before and after."""

from __future__ import annotations

import gc
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

SECONDS = 10.0
"""How long what is on its way out (a thread past its last statement) may take."""


@dataclass(frozen=True)
class Holdings:
    """Native allocations, threads, sessions and descriptors; Python threads, file descriptors and child processes; and
    below which level nothing is logged, which hides from a later test what it looks for."""

    native: dict[str, int]
    threads: Counter[str]
    descriptors: Counter[str]
    children: frozenset[int]
    silent_below: int = 0

    def surplus(self, before: Holdings) -> list[str]:
        """What is held now and was not `before`, a line each."""
        lines = [
            f"native {name}: {count} instead of {before.native[name]}"
            for name, count in self.native.items()
            if count > before.native[name]
        ]
        lines += [f"thread {name}" for name in (self.threads - before.threads).elements()]
        lines += [f"descriptor of {name}" for name in (self.descriptors - before.descriptors).elements()]
        lines += [f"child process {pid}" for pid in self.children - before.children]
        if self.silent_below > before.silent_below:
            lines.append(f"silence below level {self.silent_below}")
        return lines


def _native() -> ModuleType | None:
    try:
        from hsmcore import _native
    except ImportError:  # the extension is not built; what needs it says so itself
        return None
    return _native


def _descriptors() -> Counter[str]:
    # The number is kept beside the target: a file that is opened twice has two.
    found: Counter[str] = Counter()
    lasting = {str(fd) for server in LASTING for fd in getattr(server, "descriptors", ())}
    for number in os.listdir("/proc/self/fd"):  # noqa: PTH208  # twice for each test: a Path costs three times as much
        if number in lasting:
            continue
        try:
            found[f"{number}: {os.readlink(f'/proc/self/fd/{number}')}"] += 1  # noqa: PTH115
        except OSError:  # the one that listed the folder
            continue
    return found


LASTING: list[Any] = []
"""Servers (`pid`) that serve all tests of this process. `descriptors`, if one has it: those it is reached by."""


def children() -> frozenset[int]:
    """The processes that this one started and that have not been waited for, but for LASTING."""
    found: set[int] = set()
    for task in Path("/proc/self/task").iterdir():
        try:
            found.update(map(int, (task / "children").read_text().split()))
        except OSError:  # the thread has ended
            continue
    return frozenset(found - {server.pid for server in LASTING})


def holdings() -> Holdings:
    """What this process holds now."""
    native = _native()
    return Holdings(
        native=native.leaks() if native is not None else {},
        threads=Counter(f"{thread.name} ({thread.ident})" for thread in threading.enumerate()),
        descriptors=_descriptors(),
        children=children(),
        silent_below=max(logging.getLogger("hsmcore").level, logging.root.manager.disable),
    )


def surplus_since(before: Holdings, *, seconds: float = SECONDS, now: Callable[[], Holdings] = holdings) -> list[str]:
    """What is held beyond `before` once all that is on its way out is gone."""
    gc.collect()
    until = time.monotonic() + seconds
    while (left := now().surplus(before)) and time.monotonic() < until:
        time.sleep(0.01)
        gc.collect()
    gc.freeze()  # what is alive now is not looked at again: a collection costs what the test made, not what all made
    return left
