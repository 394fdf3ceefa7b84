"""Metrics of a key manager for Prometheus, read at each scrape from the counters that the engines keep in any case.

Reading order: catalog (the metrics), reading, members and background (their values), text and prometheus (output).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from hsmcore.metrics.background import read_background
from hsmcore.metrics.members import read_manager, read_member
from hsmcore.metrics.reading import Reading, TimeSlice
from hsmcore.metrics.text import content_type, encode

if TYPE_CHECKING:
    from prometheus_client.registry import Collector

    from hsmcore.manager.key_manager import KeyManager

    Managers = KeyManager | Mapping[str, KeyManager]

__all__ = ["also", "collector", "read", "render"]

_also: WeakKeyDictionary[KeyManager, Callable[[Reading], object]] = WeakKeyDictionary()


def also(manager: KeyManager, read: Callable[[Reading], object]) -> None:
    """Have `read` add to every reading of this key manager, for the metrics of its gateway. Any thread calls it."""
    _also[manager] = read


def read(manager: Managers, time_slice: TimeSlice | None = None) -> Reading:
    """Return all metrics, read now; those of several key managers with the label `manager`, the name. Any thread; also
    before the manager is open, and after."""
    time_slice = time_slice or TimeSlice()
    if not isinstance(manager, Mapping):
        reading = Reading()
        _read(reading, manager, time_slice)
        return reading
    reading = Reading(("manager",))
    for name, one in manager.items():
        reading.first = (name,)
        _read(reading, one, time_slice)
    return reading


def _read(reading: Reading, manager: KeyManager, time_slice: TimeSlice) -> None:
    snapshot = manager.snapshot()
    members = snapshot.path.members()  # once: a single member's state costs a look at all its counters
    read_manager(reading, snapshot, members)
    for member in members:
        read_member(reading, member)
        time_slice()
    read_background(reading, snapshot)
    more = _also.get(manager)
    if more is not None:
        more(reading)


def render(manager: Managers, accept: str | None = None) -> tuple[bytes, str]:
    """Return all metrics, read now, as (body, content type): Prometheus' text format, or OpenMetrics if `accept`, an
    Accept header, names it. Any thread; outside an event loop it sleeps for 50 µs every 2 ms, so that the loop runs."""
    time_slice = TimeSlice()
    kind = content_type(accept)
    return encode(read(manager, time_slice), kind, time_slice), kind


def collector(manager: Managers) -> Collector:
    """Return a collector for prometheus_client: `REGISTRY.register(collector(manager))`. Scrapes may come from any
    thread; one registry takes one collector: of a key manager, or of several together."""
    from hsmcore.metrics.prometheus import ManagerCollector

    return ManagerCollector(lambda: read(manager))
