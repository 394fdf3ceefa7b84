"""How refusals are told, by a front and to the audit log: a flood of them must not fill a disk, nor keep the signer
busy."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import Final

from hsmcore.errors import HsmError, InternalError

_AT_ONCE: Final = 10.0
"""Refusals that are told at once; then one in a second."""
_NONE: Final = 0, "", "", ""


class RefusalLimit:
    """Tells the first refusals each, then one in a second with their count."""

    def __init__(self, tell: Callable[[int, str, str, str], object]) -> None:
        """`tell`: how many they are, and of the last one: of whom or from where, why, and what was asked for."""
        self._tell = tell
        self._allowed, self._counted = _AT_ONCE, monotonic()
        self._untold: tuple[int, str, str, str] = _NONE

    def add(self, peer: str, why: str, what: str, count: int = 1) -> None:
        """Count refusals, and tell of them if it is time."""
        now = monotonic()
        self._allowed = min(self._allowed + now - self._counted, _AT_ONCE)
        self._counted = now
        self._untold = self._untold[0] + count, peer, why, what
        if self._allowed >= 1:
            self._allowed -= 1
            self.flush()

    def flush(self) -> None:
        """Tell of those that are not told yet."""
        untold, self._untold = self._untold, _NONE
        if untold[0]:
            self._tell(*untold)


def outcome_of_request(error: HsmError | None) -> str:
    """Return how metrics call the end of a request. `error`: None is a good answer."""
    return "OK" if error is None else "INTERNAL" if isinstance(error, InternalError) else error.status
