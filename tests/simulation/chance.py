"""Chance, all of it from one seed: what happens when, and what `random`, `secrets` and `os.urandom` give."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, MutableSequence
from typing import Any, Final, Literal

Order = Literal["fifo", "uniform", "pct"]
_CHANGES: Final = 4
"""Times at which PCT moves a task behind all others (Burckhardt et al., a bound on the depth of what it finds)."""
_STEPS: Final = 20_000

_bytes = random.Random(0)


class Chance:
    """Streams of their own, so that a fault more does not change the callers' messages."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.script, self.faults, self.time = (self._stream(name) for name in ("script", "faults", "time"))
        self.order = Oracle(self._stream("order"))

    def _stream(self, name: str) -> random.Random:
        return random.Random(f"{name}/{self.seed}")

    def begin(self) -> None:
        """Seed what the product asks by itself."""
        random.seed(f"random/{self.seed}")
        _bytes.seed(f"urandom/{self.seed}")


class Oracle:
    """Chooses the order within one turn of the loop. asyncio promises "fifo"; the two others are for what must not
    depend on it: tasks that other tasks wake in the same turn."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self.kind: Order = rng.choice(("fifo", "fifo", "uniform", "pct"))
        self._priority: dict[object, float] = {}
        self._changes = sorted(rng.randrange(_STEPS) for _ in range(_CHANGES))
        self._step = 0

    def arrange(self, ready: MutableSequence[Any], owner: Callable[[Any], object]) -> None:
        """Order what is ready, in place. `owner`: the task of a handle, or the handle itself."""
        if self.kind == "uniform":
            self._rng.shuffle(ready)
        elif self.kind == "pct":
            ready[:] = sorted(ready, key=lambda one: self._of(owner(one)))

    def _of(self, owner: object) -> float:
        self._step += 1
        known = self._priority.get(owner)
        if known is None:
            known = self._priority[owner] = self._rng.random()
        if self._changes and self._step >= self._changes[0]:
            self._changes.pop(0)
            known = self._priority[owner] = known - 2.0
        return -known


def install() -> None:
    """Let the system's randomness come from the seed. Once in a process, before hsmcore is imported."""

    def urandom(count: int) -> bytes:
        return _bytes.randbytes(count)

    os.urandom = urandom
    random._urandom = urandom
