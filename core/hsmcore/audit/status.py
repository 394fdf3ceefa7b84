"""The state of an open log, as one value: `onFailure`, the metrics, the alerts, readiness and `describe` read it."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from typing import Final

_CHANGED: Final = "another program has changed, moved or replaced its file"


@dataclass(frozen=True, slots=True)
class AuditStatus:
    """Progress of an open log, and what is wrong with it."""

    last_seq: int
    """The newest record, durable or not."""
    kept_seq: int
    """The newest record that is as durable as `durability` requires."""
    sealed: int
    """Records that a checkpoint covers."""
    pending_bytes: int
    failure: str | None
    """Why the log cannot be written at present; None if it can."""
    oldest_ns: int
    """Age, in nanoseconds, of the oldest record that is not in the file; 0: none."""
    commits: list[int]
    """Commit times, from a group's first record until the group is durable: a count for each octave (see
    Engine.stats)."""
    commits_ns: int
    """Sum of the commit times, in nanoseconds."""
    overdue_s: float
    """Seconds for which a checkpoint has been overdue; 0: none is."""
    not_sealed: str | None
    """Why a checkpoint is overdue; None: none is, or one is being made that is late by less than its interval."""

    @property
    def failing(self) -> bool:
        """Whether the log cannot be written at present."""
        return self.failure is not None


def problem_of(failure: int) -> str | None:
    """Return the text of an errno of the journal, see native/include/hsmcore/journal.h; None for 0."""
    return None if not failure else _CHANGED if failure == errno.ESTALE else os.strerror(failure)
