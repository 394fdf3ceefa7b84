"""The index of a segment: a row of fixed size for each block, by which a query skips blocks.

The index is not evidence: it is derived from the records, and `verify` compares the two.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hsmcore._native import MerkleTree, fnv1a
from hsmcore.audit.layout import Layout
from hsmcore.audit.segment import Segment

BLOCK: Final = 1024
"""Records in a block. A block begins at sequence number n * BLOCK + 1, or where its segment begins; so do the rows of
MerkleTree.scan."""
_ROW: Final = struct.Struct("<QQIIQQQ4Q")
ROW_BYTES: Final = _ROW.size
Scanned = tuple[int, int, int, int, int, int, int, int, int]
"""A row of MerkleTree.scan."""
_EMPTY: Final[Scanned] = (0, 0, 0, 0, 0, 0, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class Block:
    """`count` records from `first` on, in `length` bytes at `offset` of the segment's text. hsm_audit_summary defines
    the filters `operations` and `keys`."""

    first: int
    offset: int
    length: int
    count: int
    min_time_ns: int
    max_time_ns: int
    operations: int
    keys: tuple[int, int, int, int]

    def pack(self) -> bytes:
        """Return the row, little-endian."""
        return _ROW.pack(
            self.first,
            self.offset,
            self.length,
            self.count,
            self.min_time_ns,
            self.max_time_ns,
            self.operations,
            *self.keys,
        )

    def may_have(self, operation: object, key_id: object) -> bool:
        """Return False only if no record of the block has this operation and this key; None matches any."""
        if isinstance(operation, str) and not self.operations >> fnv1a(operation.encode()) % 64 & 1:
            return False
        if isinstance(key_id, str):
            number = fnv1a(key_id.encode())
            return all(self.keys[bit // 64] >> bit % 64 & 1 for bit in (number % 256, (number >> 32) % 256))
        return True


def read(path: Path) -> list[Block]:
    """Return the rows of an index; none if there is no file. A row that a crash cut off is left out. Raises OSError."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return []
    whole = data[: len(data) // _ROW.size * _ROW.size]
    return [Block(a, b, c, d, e, f, g, (h, i, j, k)) for a, b, c, d, e, f, g, h, i, j, k in _ROW.iter_unpack(whole)]


def blocks(layout: Layout, segment: Segment) -> Iterator[Block]:
    """Yield the rows of a segment's index, as long as each follows the one before. Raises OSError."""
    offset, first = 0, segment.first
    for block in read(layout.index(segment.first)):
        if block.first != first or block.offset != offset or block.count == 0 or block.length < block.count:
            return
        yield block
        offset += block.length
        first += block.count


class IndexBuilder:
    """Sums up the scans of a segment's lines into rows. `blocks`: the complete rows."""

    def __init__(self, first: int) -> None:
        """`first`: the segment's first record."""
        self.blocks: list[Block] = []
        self._first, self._offset, self._sum = first, 0, _EMPTY

    def add(self, rows: list[Scanned]) -> None:
        """Add the rows of a scan, which continues the one before."""
        for row in rows:
            old = self._sum
            low, high = (min(old[2], row[2]), max(old[3], row[3])) if old[1] else row[2:4]
            a, b, c, d = (had | has for had, has in zip(old[5:], row[5:], strict=True))
            self._sum = (old[0] + row[0], old[1] + row[1], low, high, old[4] | row[4], a, b, c, d)
            if (self._first + self._sum[1] - 1) % BLOCK == 0:
                self.end()

    def end(self) -> list[Block]:
        """End the present block if it has records. Return all rows."""
        length, count, low, high, operations, *keys = self._sum
        if count:
            a, b, c, d = keys
            self.blocks.append(Block(self._first, self._offset, length, count, low, high, operations, (a, b, c, d)))
            self._first, self._offset, self._sum = self._first + count, self._offset + length, _EMPTY
        return self.blocks


def packed(blocks: list[Block]) -> bytes:
    """Return the rows in the form of the file."""
    return b"".join(block.pack() for block in blocks)


def has_rows(path: Path, count: int) -> bool:
    """Return whether an index has this number of rows. Raises OSError."""
    return path.exists() and path.stat().st_size == count * _ROW.size


def made(segment: Segment) -> tuple[list[Block], bool]:
    """Return the rows that a segment's lines give, and whether all of its text is records. Raises SegmentError,
    OSError."""
    scanner, builder = MerkleTree(), IndexBuilder(segment.first)
    for text in segment.chunks():
        why, _, _, rows = scanner.scan(text, 0, segment.first + scanner.size, len(text))
        builder.add(rows)
        if why != "end":
            return builder.blocks, False
    return builder.end(), True
