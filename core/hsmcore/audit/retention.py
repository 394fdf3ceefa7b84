"""Letting old records go, as C2SP tlog-tiles prunes: whole segments from the beginning, never a hash.

The tiles stay, so the tree, its checkpoints and every proof stay valid, also those of records that are gone.
"""

from __future__ import annotations

from dataclasses import dataclass

from hsmcore.audit import index
from hsmcore.audit.files import sync
from hsmcore.audit.layout import Layout
from hsmcore.audit.query import parsed
from hsmcore.audit.segment import segments

_MARK = b'"operation":"audit-prune"'


@dataclass(frozen=True, slots=True)
class Expired:
    """Records from `first` to `last` that are all older than they need to be."""

    first: int
    last: int


def expired(layout: Layout, before_ns: int) -> Expired | None:
    """The full segments at the beginning whose records are all older than `before_ns`. Raises OSError."""
    first = last = 0
    for segment in segments(layout):
        if segment.path == layout.log:
            break
        blocks = list(index.sane(index.read(layout.index(segment.first)), segment.first))
        if not blocks or any(block.max_time_ns >= before_ns for block in blocks):
            break
        first, last = first or segment.first, blocks[-1].first + blocks[-1].count - 1
    return Expired(first, last) if last else None


def remove(layout: Layout, old: Expired) -> None:
    """Delete these records. Raises OSError."""
    for segment in segments(layout):
        if segment.first <= old.last and segment.path != layout.log:
            segment.path.unlink()
            layout.index(segment.first).unlink(missing_ok=True)
    sync(layout.segments)


def prunes(text: bytes) -> int:
    """The last record that any record in `text` says was removed; 0 if none does."""
    last = 0
    if _MARK in text:
        for line in text.split(b"\n"):
            if _MARK in line and (record := parsed(line)) is not None and record.get("operation") == "audit-prune":
                value = record.get("last")
                last = max(last, value if type(value) is int else 0)
    return last
