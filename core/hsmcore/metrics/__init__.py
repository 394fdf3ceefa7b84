"""Metrics of a key manager for Prometheus: read when somebody asks, from what the engines count in any case.

`catalog.py` says what there is, `members.py` and `background.py` read it, `text.py` and `prometheus.py` hand it out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hsmcore.metrics.background import read_background
from hsmcore.metrics.members import read_manager, read_member
from hsmcore.metrics.reading import Reading, TimeSlice
from hsmcore.metrics.text import content_type, encode

if TYPE_CHECKING:
    from prometheus_client.registry import Collector

    from hsmcore.manager.key_manager import KeyManager

__all__ = ["collector", "read", "render"]


def read(manager: KeyManager, time_slice: TimeSlice | None = None) -> Reading:
    """All metrics now. Any thread, before and after the manager is open, too."""
    time_slice = time_slice or TimeSlice()
    reading = Reading()
    snapshot = manager.snapshot()
    read_manager(reading, snapshot)
    for member in snapshot.path.members():
        read_member(reading, member)
        time_slice()
    read_background(reading, snapshot)
    return reading


def render(manager: KeyManager, accept: str | None = None) -> tuple[bytes, str]:
    """All metrics now, as (body, content type): Prometheus' text format, or OpenMetrics if `accept`, an Accept header,
    names it. Any thread; outside the event loop's it lets the loop go first every two milliseconds."""
    time_slice = TimeSlice()
    kind = content_type(accept)
    return encode(read(manager, time_slice), kind, time_slice), kind


def collector(manager: KeyManager) -> Collector:
    """For a registry of prometheus_client: `REGISTRY.register(collector(manager))`. It may be scraped from any thread;
    one registry takes the collector of one key manager."""
    from hsmcore.metrics.prometheus import ManagerCollector

    return ManagerCollector(lambda: read(manager))
