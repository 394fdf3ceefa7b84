"""A place that records are copied to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol


class ShippingError(Exception):
    """The destination did not take a batch. `str()` is for a person and holds no secret."""


@dataclass(frozen=True, slots=True)
class ShippingStatus:
    """How one destination stands."""

    sent_seq: int
    """Everything up to this record is there."""
    lag_records: int
    """Records that are kept here and are not there yet."""
    error: str | None
    """Why nothing goes on at present; None while all is well."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"sentSeq": self.sent_seq, "lagRecords": self.lag_records, "error": self.error}


class Destination(Protocol):
    """One thread uses it at a time."""

    kind: str
    """The configuration's word for it."""
    identity: str
    """Which of its kind: what its cursor is kept under."""
    batch_bytes: int
    batch_records: int
    pause: float
    """Seconds between two batches at least."""
    settle_seconds: float
    """How long after a batch the destination may still turn out not to have it; what it had not, is sent again."""

    def send(self, lines: Sequence[bytes]) -> int:
        """Hand over lines (without newline), in order; they were taken, as far as the destination's protocol can say.
        Returns how many: at least one. Raises ShippingError; then none counts as taken, and the same come again."""

    def check(self) -> None:
        """Raises ShippingError if the connection ended since the last batch. For when there is nothing to send."""

    def finish(self) -> bool:
        """End the connection in order. Returns whether everything that was sent is sure to have been taken."""

    def interrupt(self) -> None:
        """End a `send` that waits, if that can be. From any thread."""

    def close(self) -> None:
        """Let connections go. It may be used again after that."""
