"""Retention: pruning as in C2SP tlog-tiles. The oldest segments are deleted; the tiles stay, so every checkpoint and
proof remains valid.

A prune is recorded as `audit-prune` and sealed before a file is deleted. So only a prune record that a checkpoint
covers explains missing records. Any process that can write the files can forge lines after the last checkpoint.
Therefore a key manager seals as valid only the prune records that it wrote: it records `audit-prune-void` for every
other one, under the same checkpoint.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

from hsmcore._native import MerkleTree
from hsmcore.audit import index
from hsmcore.audit.genuine import Genuine
from hsmcore.audit.layout import Layout
from hsmcore.audit.query import Query, parsed
from hsmcore.audit.segment import Segment, segments
from hsmcore.audit.tiles import HASH, WIDTH
from hsmcore.base.log import get_logger
from hsmcore.base.ownership import sync
from hsmcore.base.steady import STEP_NS
from hsmcore.tlog.checkpoint import Checkpoint

PRUNE: Final = "audit-prune"
VOID: Final = "audit-prune-void"
MARK: Final = b'"operation":"audit-prune'  # prefix of both
DAY_NS: Final = 86_400 * 10**9
FOREVER: Final = 2**63 - 1
MOST_SEGMENTS: Final = 8
"""Most segments that one call of `expired` reads, because sealing waits for it."""


@dataclass(frozen=True, slots=True)
class Expired:
    """Records from `first` to `last`, all older than the retention time. `more`: later segments may be too."""

    first: int
    last: int
    more: bool = False


def before(layout: Layout, sure_ns: int, days: int) -> int:
    """Return the time, in Unix nanoseconds, of the newest records that `days` of retention let go by now. Tells if the
    wall clock is ahead of `sure_ns`, the time by which records expire."""
    if time.time_ns() - sure_ns >= STEP_NS:
        problem = "the clock is ahead: retention goes by an earlier time until it has held for a day"
        get_logger().warning(problem, file=str(layout.log), time_ns=sure_ns)
    return sure_ns - days * DAY_NS


def expired(layout: Layout, before_ns: int, checkpoint: Checkpoint, most_ns: int) -> Expired | None:
    """Return the oldest full segments whose records, and the one that follows, are all older than `before_ns`, and
    which `checkpoint` covers. A record from after `most_ns` was dated by a clock that was wrong: it is as old as the
    one that follows the segment. Raises SegmentError, OSError."""
    young = range(before_ns, most_ns + 1)
    genuine = Genuine(layout, checkpoint.size, checkpoint.root)
    first = last = count = 0
    for segment, following in pairwise(segments(layout)):
        if count == MOST_SEGMENTS and last:
            return Expired(first, last, more=True)
        blocks = list(index.blocks(layout, segment))
        if not blocks or any(block.max_time_ns in young for block in blocks):
            break
        # The index is not evidence: it only saves reading a segment that is not old enough.
        end = _sealed_before(segment, young, genuine)
        begins = _time_of(next(following.chunks(), b"").partition(b"\n")[0])
        if end is None or begins is None or begins in young:
            break
        first, count = first or segment.first, count + 1
        if begins < before_ns:  # the only evidence of the age of records that are deleted
            last = end
    return Expired(first, last) if last else None


def _time_of(line: bytes) -> int | None:
    record = parsed(line)
    return None if record is None else int(record["time_ns"])


def _sealed_before(segment: Segment, young: range, genuine: Genuine) -> int | None:
    """Return a segment's last record if none of them is young and all hash to the sealed leaves; else None."""
    scanner, following = MerkleTree(), segment.first
    for text in segment.chunks():
        used = 0
        while used < len(text):
            most = WIDTH - (following - 1) % WIDTH
            why, consumed, leaves, rows = scanner.scan(text, used, following, most)
            count, newest = len(leaves) // HASH, max((row[3] for row in rows), default=0)
            if why not in ("end", "limit") or newest in young or leaves != genuine.leaves(following, count):
                return None
            lines = text[used : used + consumed].splitlines() if newest >= young.stop else []
            if any(_time_of(line) in young for line in lines):
                return None
            used += consumed
            following += count
    return following - 1


def remove(layout: Layout, old: Expired) -> None:
    """Delete records. Raises OSError."""
    for segment in segments(layout):
        if segment.first <= old.last and segment.path != layout.log:
            segment.path.unlink()
            layout.index(segment.first).unlink(missing_ok=True)
            sync(layout.segments)  # flush each deletion: a power failure must not leave a gap


class Prunes:
    """The valid prune records among lines that are given in order."""

    def __init__(self) -> None:
        self._last_of: dict[int, int] = {}
        self._records: dict[int, Mapping[str, Any]] = {}

    def take(self, text: bytes, begin: int, end: int) -> None:
        """Take the whole lines from `begin` to `end`."""
        if text.find(MARK, begin, end) >= 0:
            for line in text[begin:end].split(b"\n"):
                if MARK in line and (record := parsed(line)) is not None:
                    self.add(record)

    def add(self, record: Mapping[str, Any]) -> None:
        """Take one record: a prune record, or one that makes prune records void."""
        operation, first, last = record.get("operation"), record.get("first"), record.get("last")
        if operation == PRUNE:
            self._last_of[record["seq"]] = last if type(last) is int else 0
            self._records[record["seq"]] = record
        elif operation == VOID and type(first) is int and type(last) is int:
            self._last_of = {seq: last_of for seq, last_of in self._last_of.items() if not first <= seq <= last}

    def items(self) -> list[tuple[int, int]]:
        """Return the sequence number of each prune record and the last record that it prunes."""
        return list(self._last_of.items())

    @property
    def last(self) -> int:
        """The last pruned record by these; 0 if there is none."""
        return max(self._last_of.values(), default=0)

    def of(self, last: int) -> Mapping[str, Any] | None:
        """Return the newest prune record that prunes records up to `last` or further; None if there is none."""
        found = [seq for seq, last_of in self._last_of.items() if last_of >= last]
        return self._records[max(found)] if found else None

    def clear(self) -> None:
        """Forget all of them."""
        self._last_of.clear()
        self._records.clear()


def pruned(layout: Layout, size: int) -> int:
    """Return the last record that was pruned, by the prune records among the first `size` records; 0 if there is none.
    The lines are not verified here. Raises SegmentError, OSError."""
    found = [
        record
        for operation in (PRUNE, VOID)
        for block in Query(layout, None, None, {"operation": operation}).blocks()
        for record in block
        if record["seq"] <= size
    ]
    prunes = Prunes()
    for record in sorted(found, key=lambda record: int(record["seq"])):
        prunes.add(record)
    return prunes.last
