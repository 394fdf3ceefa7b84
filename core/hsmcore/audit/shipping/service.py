"""All destinations of a log."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from hsmcore.audit.layout import Layout
from hsmcore.audit.shipping.destination import Destination, ShippingError, ShippingStatus
from hsmcore.audit.shipping.follow import last_seq
from hsmcore.audit.shipping.shipper import Shipper

if TYPE_CHECKING:
    from hsmcore.config import KeyManagerConfig

CLOSE_SECONDS = 2.0
"""Seconds that closing ships what is left. The next start, or `audit ship`, ships the rest."""


class Shipping:
    """Ships in the signing process, in one thread for each destination."""

    def __init__(self, layout: Layout, places: Iterable[Destination], newest: Callable[[], int]) -> None:
        """`newest`: returns the newest durable record; called in the threads."""
        self._shippers = [Shipper(layout, place, newest, beside=True) for place in places]

    def start(self) -> None:
        """Start the threads. A destination's errors are not raised; `status` has them."""
        for shipper in self._shippers:
            shipper.start()

    @property
    def status(self) -> dict[str, ShippingStatus]:
        """Progress by destination, under the key of its settings."""
        return {shipper.destination.kind: shipper.status for shipper in self._shippers}

    @property
    def everywhere(self) -> int | None:
        """The newest record that all destinations have; None without destinations."""
        return min((shipper.status.sent_seq for shipper in self._shippers), default=None)

    def close(self) -> None:
        """Ship what is left, for at most CLOSE_SECONDS in all; then stop. Blocks."""
        deadline = time.monotonic() + CLOSE_SECONDS
        for shipper in self._shippers:
            shipper.stop(max(deadline - time.monotonic(), 0.0))


class ShipNow:
    """Ships in the calling thread what a log holds now. Writes nothing but the cursor."""

    def __init__(self, layout: Layout, place: Destination) -> None:
        self._newest = 0
        self._layout, self._place = layout, place
        self._shipper = Shipper(layout, place, lambda: self._newest)

    @property
    def status(self) -> ShippingStatus:
        """Progress of the destination."""
        return self._shipper.status

    def run(self, progress: Callable[[int, int], None] | None = None) -> str | None:
        """Ship. Return the error if the destination did not take everything, else None. Raises AuditUnavailable if
        another process ships there, SegmentError, OSError."""
        self._newest = last_seq(self._layout)
        try:
            while self._shipper.step():
                time.sleep(self._place.pause)
                if progress is not None:
                    progress(self.status.sent_seq, self._newest)
        except ShippingError as error:
            return str(error)
        finally:
            self._shipper.end()
        return None


def destinations(rules: KeyManagerConfig) -> list[Destination]:
    """Return the destinations of a configuration."""
    found: list[Destination] = []
    if rules.cloud_watch_logs is not None:
        from hsmcore.audit.shipping.cloudwatch import CloudWatch

        found.append(CloudWatch(rules.cloud_watch_logs))
    if rules.audit is not None and rules.audit.syslog is not None:
        from hsmcore.audit.shipping.syslog import SyslogDestination

        found.append(SyslogDestination(rules.audit.syslog))
    return found
