"""The counters of an OffloadEngine, under the native Engine's names."""

from __future__ import annotations

from collections import Counter
from typing import Any, Final

from hsmcore._native import Histogram, statuses
from hsmcore.errors import HsmError

CLASSES: Final = tuple(dict.fromkeys(kind for _, kind, _ in statuses() if kind != "OK"))


class Meter:
    """Counters of requests, and histograms of their duration."""

    def __init__(self) -> None:
        self.signatures = 0
        self.failures = 0
        self.expired = 0
        self.cancelled = 0
        self.refused = 0
        self.wrong = 0
        self.failed: dict[str, int] = dict.fromkeys(CLASSES, 0)
        self.recoveries: Counter[str] = Counter()
        self.hsm_ns = Histogram()
        self.queue_ns = Histogram()
        self.verify_ns = Histogram()

    def failed_with(self, error: HsmError) -> None:
        """Count a request that failed."""
        self.failures += 1
        self.failed[error.error_class] = self.failed.get(error.error_class, 0) + 1

    def rows(self) -> dict[str, Any]:
        """Return the counters as in Engine.stats. `wakes` is always 0: this engine has no wake-ups."""
        return {
            "signatures": self.signatures,
            "failures": self.failures,
            "expired": self.expired,
            "cancelled": self.cancelled,
            "refused": self.refused,
            "wrong": self.wrong,
            "wakes": 0,
            "recoveries": dict(self.recoveries),
            "failed": dict(self.failed),
            "hsm_sum_ns": self.hsm_ns.sum,
            "queue_sum_ns": self.queue_ns.sum,
            "verify_sum_ns": self.verify_ns.sum,
            "hsm_ns": self.hsm_ns.rows(),
            "queue_ns": self.queue_ns.rows(),
            "verify_ns": self.verify_ns.rows(),
            "hsm_octaves": self.hsm_ns.octaves(),
            "queue_octaves": self.queue_ns.octaves(),
            "verify_octaves": self.verify_ns.octaves(),
        }
