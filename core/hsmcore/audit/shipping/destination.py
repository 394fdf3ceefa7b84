"""The interface of a destination that records are copied to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol


class ShippingError(Exception):
    """The destination did not take a batch. The text is meant for an operator and holds no secret."""


@dataclass(frozen=True, slots=True)
class ShippingStatus:
    """Progress of one destination."""

    sent_seq: int
    """The destination has every record up to this one."""
    lag_records: int
    """Durable records that the destination does not have yet."""
    error: str | None
    """Why shipping fails at present; None if it does not."""

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON-ready data."""
        return {"sentSeq": self.sent_seq, "lagRecords": self.lag_records, "error": self.error}


class Destination(Protocol):
    """A destination, for one thread at a time."""

    kind: str
    """The key of its settings in the configuration."""
    identity: str
    """Tells destinations of one kind apart: each has its own cursor."""
    batch_bytes: int
    batch_records: int
    pause: float = 0.0
    """Least seconds between two batches."""
    settle_seconds: float = 0.0
    """Seconds after a batch in which a failure may still reveal that the batch was lost; then it is sent again."""

    def send(self, lines: Sequence[bytes]) -> int:
        """Send lines (without newline) in order. Return how many were taken, at least one, as far as the protocol can
        tell. Raises ShippingError; then none counts as taken and the same lines are sent again."""

    def close(self) -> None:
        """Close the connections. `send` opens them again."""

    # The defaults are for a destination that acknowledges each batch and has its own timeouts.

    def check(self) -> None:
        """Raise ShippingError if the connection ended since the last batch. Called when there is nothing to send."""
        return

    def finish(self) -> bool:
        """End the connection in order. Return whether the destination is known to have taken everything."""
        return True

    def interrupt(self) -> None:
        """Abort a `send` that waits, if possible. From any thread."""
        return
