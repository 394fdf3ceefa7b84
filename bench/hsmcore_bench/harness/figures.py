"""Numbers and times as people read them."""

from __future__ import annotations


def duration(ns: float | None) -> str:
    """Three figures and a unit: 117 ns, 41.3 µs, 3.41 ms."""
    if ns is None:
        return ""
    for unit, size in (("ns", 1.0), ("µs", 1e3), ("ms", 1e6)):
        if ns < size * 999.5:
            return f"{figures(ns / size)} {unit}"
    return f"{figures(ns / 1e9)} s"


def figures(value: float) -> str:
    """Three significant figures, no exponent, thousands grouped."""
    size = abs(value)
    digits = 0 if size >= 99.95 else 1 if size >= 9.995 else 2
    return f"{value:,.{digits}f}"
