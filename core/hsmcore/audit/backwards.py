"""The records of a log from its end on: what a caller wants to know of the newest ones needs no reading of the rest.

The log may be open and growing.
"""

from __future__ import annotations

from collections.abc import Iterator

from hsmcore.audit import index
from hsmcore.audit.layout import Layout
from hsmcore.audit.query import Record, parsed
from hsmcore.audit.segment import Segment, segments


def newest_first(
    layout: Layout, needle: bytes, most_bytes: int, operation: str | None = None
) -> Iterator[list[Record]]:
    """Yield the records whose lines contain `needle`, newest first, in lists that are not empty. `operation`: of the
    wanted records; blocks without it are not read. Ends after about `most_bytes` of text, with an empty list if older
    records were not read. Reads the disk. Raises SegmentError, OSError."""
    before, left, moved = 1 << 64, most_bytes, True
    while moved:
        moved = False
        for segment in reversed(segments(layout)):
            if segment.first >= before:
                continue
            try:
                for size, found in _parts(segment, layout, needle, operation):
                    if left <= 0:
                        yield []
                        return
                    left -= size
                    if older := [record for record in found if record["seq"] < before]:
                        before = older[-1]["seq"]
                        yield older
            except FileNotFoundError:  # pruned since it was listed
                moved = True
                break
    if min((segment.first for segment in segments(layout) if segment.first), default=1) > 1:
        yield []  # the oldest ones were pruned


def _parts(
    segment: Segment, layout: Layout, needle: bytes, operation: str | None
) -> Iterator[tuple[int, list[Record]]]:
    """Yield the parts of a segment, last one first: bytes of text, and the wanted records of it, newest first."""
    blocks = list(index.blocks(layout, segment))
    end = blocks[-1].offset + blocks[-1].length if blocks else 0
    tail = [(len(text), _wanted(text, needle)) for text in segment.chunks(end)]
    yield from reversed(tail)
    for block in reversed(blocks):
        if not block.may_have(operation, None):
            continue
        yield block.length, _wanted(segment.read(block.offset, block.length), needle)


def _wanted(text: bytes, needle: bytes) -> list[Record]:
    if needle not in text:
        return []
    lines = reversed(text.split(b"\n"))
    return [record for line in lines if needle in line and (record := parsed(line)) is not None]
