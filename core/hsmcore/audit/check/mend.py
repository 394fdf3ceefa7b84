"""Derives index and tiles, which are not evidence, again from records that are whole and sealed."""

from __future__ import annotations

from hsmcore.audit import index
from hsmcore.audit.check.findings import Report
from hsmcore.audit.check.trust import Trust
from hsmcore.audit.check.verify import Progress, verify
from hsmcore.audit.layout import Layout
from hsmcore.audit.lock import FolderLock
from hsmcore.audit.recover import rebuild
from hsmcore.audit.segment import segments
from hsmcore.base.files import replace


def mend(layout: Layout, trust: Trust, progress: Progress | None) -> Report:
    """Verify a log; if only derived files are wrong, derive them again and verify once more. Nothing is changed if the
    records are not whole: tiles that contradict them may show where they were changed. Raises AuditUnavailable if a
    process writes the log, SegmentError, OSError."""
    lock = FolderLock(layout.lock, hint="Stop that process, or take a copy of log and folder.")
    try:
        report = verify(layout, trust, progress)
        if not report.mendable:
            return report
        _make_index(layout)
        rebuild(layout, report.records)
        return verify(layout, trust, progress)
    finally:
        lock.release()


def _make_index(layout: Layout) -> None:
    for segment in segments(layout):
        if not segment.first:
            continue  # a log without a record
        blocks, _ = index.made(segment)
        if segment.path == layout.log:  # it grows: only complete blocks have a row
            blocks = [block for block in blocks if (block.first + block.count - 1) % index.BLOCK == 0]
        path = layout.index(segment.first)
        if index.read(path) != blocks or not path.exists():
            replace(path, index.packed(blocks))
