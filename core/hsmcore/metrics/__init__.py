"""Metrics of a key manager for Prometheus: read when somebody asks, from what the engines count in any case.

`catalog.py` says what there is, `members.py` and `upkeep.py` read it, `text.py` and `prometheus.py` hand it out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hsmcore.metrics.members import read_manager, read_member, seats_of
from hsmcore.metrics.reading import Pace, Reading
from hsmcore.metrics.text import content_type, encode
from hsmcore.metrics.upkeep import read_upkeep

if TYPE_CHECKING:
    from prometheus_client.registry import Collector

    from hsmcore.manager.key_manager import KeyManager

__all__ = ["collector", "read", "render"]


def read(manager: KeyManager, pace: Pace | None = None) -> Reading:
    """All metrics now. Any thread, before and after the manager is open, too."""
    pace = pace or Pace()
    reading = Reading()
    parts = manager.parts()
    read_manager(reading, parts)
    for seat in seats_of(parts):
        read_member(reading, seat)
        pace()
    read_upkeep(reading, parts)
    return reading


def render(manager: KeyManager, accept: str | None = None) -> tuple[bytes, str]:
    """All metrics now, as (body, content type): Prometheus' text format, or OpenMetrics if `accept`, an Accept header,
    names it. Any thread; outside the event loop's it lets the loop go first every two milliseconds."""
    pace = Pace()
    kind = content_type(accept)
    return encode(read(manager, pace), kind, pace), kind


def collector(manager: KeyManager) -> Collector:
    """For a registry of prometheus_client: `REGISTRY.register(collector(manager))`. It may be scraped from any thread;
    one registry takes the collector of one key manager."""
    from hsmcore.metrics.prometheus import ManagerCollector

    return ManagerCollector(lambda: read(manager))
