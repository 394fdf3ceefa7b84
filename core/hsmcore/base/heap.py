"""The heap of a process that does nothing but sign."""

from __future__ import annotations

import gc
from typing import Final

_THRESHOLDS: Final = (10_000, 20, 20)


def settle() -> None:
    """Have Python's garbage collector look no more at what there is, and less often at what comes. Call it when all is
    open: to look at all that was imported takes a tenth of a second, which every open request waits for. It is of the
    whole process, so a library leaves it to its application (docs/OPERATIONS.md)."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_THRESHOLDS)
