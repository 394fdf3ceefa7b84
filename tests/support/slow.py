"""Tests that take long say why, by the marker `slow`: they begin first, and a run names those that do not say it. It
fails none of them: no verdict hangs on how fast a machine is."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

SECONDS = 5.0


def long_first(items: list[Any]) -> None:
    """Order tests so that no long one is left for one worker when all others have ended. Those of a file stay together,
    with what they share."""
    files = {item.path for item in items if item.get_closest_marker("slow") is not None}
    items.sort(key=lambda item: item.path not in files)


def reasonless(items: Iterable[Any]) -> list[str]:
    """The tests whose marker gives no reason."""
    marks = ((item.nodeid, item.get_closest_marker("slow")) for item in items)
    return [name for name, mark in marks if mark is not None and [type(one) for one in mark.args] != [str]]


def unmarked(reports: Iterable[Any]) -> list[str]:
    """A line for each test that took long and has no marker, the longest one first."""
    found = [
        (report.duration, report.nodeid)
        for report in reports
        if getattr(report, "when", None) == "call" and report.duration > SECONDS and "slow" not in report.keywords
    ]
    return [f"{seconds:.1f} s: {name}" for seconds, name in sorted(found, reverse=True)]
