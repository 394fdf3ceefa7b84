"""The knee of a curve of rates over sessions.

The knee is the number of sessions at which the rate, if it went on growing as it does up to 90 % of its best, would
reach its best. For a device with S servers that serve each session alike, this is S. At 90 % the curve is steep, so
noise of the rates moves the knee little; where the rate first comes close to its best, noise alone decides.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

GROWN: Final = 0.9
"""The share of the best rate up to which its growth counts."""


def knee(rates: Mapping[int, float]) -> int:
    """Return the knee of rates by sessions: at least one, and all above 0."""
    left, right = bracket(rates)
    low, best = rates.get(left, 0.0), max(rates.values())
    grown = left + (right - left) * (GROWN * best - low) / (rates[right] - low)
    return min(max(1, round(grown / GROWN)), *(sessions for sessions, rate in rates.items() if rate == best))


def bracket(rates: Mapping[int, float]) -> tuple[int, int]:
    """Return the neighbours between which the rate reaches its share GROWN of the best; the left one may be 0. A point
    that is slower than one with fewer sessions is noise, and no neighbour."""
    left, low, grown = 0, 0.0, GROWN * max(rates.values())
    for sessions, rate in sorted(rates.items()):
        if rate >= grown:
            return left, sessions
        if rate > low:
            left, low = sessions, rate
    raise ValueError("a rate is not above 0")
