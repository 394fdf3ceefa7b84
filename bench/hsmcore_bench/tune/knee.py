"""The knee of a curve of rates over sessions.

The knee is the best rate, divided by what each session makes where the rate is last below 90 % of its best. For a
device with S servers that do not disturb each other, this is S. Noise moves the knee no farther than the two rates. A
threshold would ask where the rate first comes close to its best, and there noise alone decides.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

GROWN: Final = 0.9
"""The share of the best rate below which the device has room for more sessions."""


def knee(rates: Mapping[int, float]) -> int:
    """Return the knee of rates by sessions: at least one rate, and all above 0. It lies above the last point below
    90 %, and not above the first that reaches the best."""
    left, right = bracket(rates)
    best = max(rates.values())
    found = max(round(best / (rates[left] / left)), left + 1) if left else right
    return min(found, *(sessions for sessions, rate in rates.items() if rate == best))


def bracket(rates: Mapping[int, float]) -> tuple[int, int]:
    """Return the neighbours between which the rate reaches its share GROWN of the best; the left one is 0 if the first
    point does. A point that is slower than one with fewer sessions is noise, and no neighbour."""
    left, low, grown = 0, 0.0, GROWN * max(rates.values())
    for sessions, rate in sorted(rates.items()):
        if rate >= grown:
            return left, sessions
        if rate > low:
            left, low = sessions, rate
    raise ValueError("a rate is not above 0")
