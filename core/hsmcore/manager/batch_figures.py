"""What is counted of batches, for hsmcore.metrics. One writer, the event loop; readers in any thread."""

from __future__ import annotations

from collections import Counter

from hsmcore._native import Histogram, Leaves


class BatchFigures:
    """Counts since the key manager was opened."""

    def __init__(self) -> None:
        self.closed: Counter[str] = Counter({"interval": 0, "full": 0, "close": 0})
        """Batches by why they were closed."""
        self.failed = 0
        """Batches whose messages have no proofs."""
        self.messages = 0
        """Messages that were in a batch whose root was signed."""
        self.open: Leaves | None = None
        """The batch that collects."""
        self.closed_waiting = 0
        """Messages of batches that are closed and not answered."""
        self.times = Histogram()
        """From a batch's first message until its root was signed; of good ones."""

    @property
    def waiting(self) -> int:
        """Messages of batches that are open, or not answered."""
        leaves = self.open
        return self.closed_waiting + (0 if leaves is None else leaves.count)
