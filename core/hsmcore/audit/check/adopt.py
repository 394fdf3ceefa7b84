"""Lets the next key manager go on with a log whose checkpoints are missing, by an operator's decision."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from hsmcore.audit.layout import Layout
from hsmcore.audit.lock import FolderLock
from hsmcore.audit.segment import decompress, segments
from hsmcore.audit.shipping.follow import last_seq
from hsmcore.base.ownership import make_folder, sync
from hsmcore.errors import BadArgument


@dataclass(frozen=True, slots=True)
class Adopted:
    """`records`: how many the next start takes over; `kept`: where the keys and tiles of before are now."""

    records: int
    kept: Path


def adopt(layout: Layout) -> Adopted:
    """Put keys and tiles of a log without checkpoints aside, and make its full files plain: the next start records
    `audit-adopted` and signs the records as they are. Raises BadArgument if the log has checkpoints, AuditUnavailable
    if a process writes it, SegmentError, OSError."""
    lock = FolderLock(layout.lock, hint="Stop that process, or take a copy of log and folder.")
    try:
        if layout.checkpoint.exists() or (layout.history.exists() and layout.history.stat().st_size):
            raise BadArgument(
                f"audit log {layout.log} has checkpoints", hint="`hsmcore audit verify` compares the records with them."
            )
        records = last_seq(layout)
        make_folder(layout.lost)
        kept = layout.lost / f"adopted-{time.time_ns()}"
        make_folder(kept)
        for path in (layout.tiles, layout.keys):
            if path.exists():
                path.rename(kept / path.name)
        sync(kept)
        sync(layout.folder)
        for segment in segments(layout):
            if segment.compressed:
                decompress(layout, segment)
        return Adopted(records, kept)
    finally:
        lock.release()
