"""What a query needs to know of a block of records without reading it. One file for each segment, of fixed-size rows.

The index is not evidence: it can be made anew from the records, and `verify` compares the two.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hsmcore._native import MerkleTree, fnv1a
from hsmcore.audit.segment import Segment

BLOCK: Final = 1024
"""Records in a block: sequence numbers from n * BLOCK + 1 on, as far as the segment has them."""
_ROW: Final = struct.Struct("<QQIIQQQ4Q")
Summary = tuple[int, int, int, int, int, int, int, int]
_EMPTY: Final[Summary] = (0, 0, 0, 0, 0, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class Block:
    """`count` records from `first` on, in `length` bytes at `offset` of the segment's text. The filters are those of
    hsm_audit_summary."""

    first: int
    offset: int
    length: int
    count: int
    min_time_ns: int
    max_time_ns: int
    operations: int
    keys: tuple[int, int, int, int]

    def pack(self) -> bytes:
        """A row of the file: little-endian."""
        return _ROW.pack(
            self.first, self.offset, self.length, self.count, self.min_time_ns, self.max_time_ns, self.operations,
            *self.keys,
        )  # fmt: skip

    def may_have(self, operation: object, key_id: object) -> bool:
        """False only if no record of the block has this operation and this key; None: any."""
        if isinstance(operation, str) and not self.operations >> fnv1a(operation.encode()) % 64 & 1:
            return False
        if isinstance(key_id, str):
            number = fnv1a(key_id.encode())
            return all(self.keys[bit // 64] >> bit % 64 & 1 for bit in (number % 256, (number >> 32) % 256))
        return True


def read(path: Path) -> list[Block]:
    """The rows of an index, without one that a crash cut off; none if there is no file. Raises OSError."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return []
    whole = data[: len(data) // _ROW.size * _ROW.size]
    return [Block(a, b, c, d, e, f, g, (h, i, j, k)) for a, b, c, d, e, f, g, h, i, j, k in _ROW.iter_unpack(whole)]


def sane(blocks: list[Block], segment: int) -> Iterator[Block]:
    """The rows as long as each follows the one before, for a segment whose first record is `segment`."""
    offset, first = 0, segment
    for block in blocks:
        if block.first != first or block.offset != offset or block.count == 0 or block.length < block.count:
            return
        yield block
        offset += block.length
        first += block.count


class BlockBuilder:
    """Sums up what the scan says until a block is full."""

    def __init__(self, first: int, offset: int) -> None:
        self.first, self.offset = first, offset
        self.length = 0
        self._sum = _EMPTY

    @property
    def room(self) -> int:
        """Records that the block can still take."""
        return BLOCK - (self.first - 1) % BLOCK - self._sum[0]

    def add(self, length: int, summary: Summary) -> None:
        """Add what one scan consumed."""
        old = self._sum
        if summary[0] == 0:
            return
        self.length += length
        low, high = (min(old[1], summary[1]), max(old[2], summary[2])) if old[0] else summary[1:3]
        self._sum = (
            old[0] + summary[0], low, high, old[3] | summary[3], old[4] | summary[4], old[5] | summary[5],
            old[6] | summary[6], old[7] | summary[7],
        )  # fmt: skip

    @property
    def count(self) -> int:
        """Records so far."""
        return self._sum[0]

    def block(self) -> Block:
        """The row."""
        count, low, high, operations, *keys = self._sum
        return Block(
            self.first, self.offset, self.length, count, low, high, operations, (keys[0], keys[1], keys[2], keys[3])
        )

    def following(self) -> BlockBuilder:
        """The builder of the next block."""
        return BlockBuilder(self.first + self.count, self.offset + self.length)


def packed(blocks: list[Block]) -> bytes:
    """The rows as the file has them."""
    return b"".join(block.pack() for block in blocks)


def has_rows(path: Path, count: int) -> bool:
    """Whether an index has so many rows. Raises OSError."""
    return path.exists() and path.stat().st_size == count * _ROW.size


def made(segment: Segment) -> tuple[list[Block], bool]:
    """The rows that the lines of a segment give, and whether all of its text is records. Raises SegmentError,
    OSError."""
    scanner, builder, blocks = MerkleTree(), BlockBuilder(segment.first, 0), []
    for text in segment.chunks():
        used = 0
        while used < len(text):
            following = builder.first + builder.count
            why, consumed, _, summary = scanner.scan(text, used, following, builder.room)
            builder.add(consumed, summary)
            used += consumed
            if builder.room == 0:
                blocks.append(builder.block())
                builder = builder.following()
            if why not in ("end", "limit"):
                return blocks, False
    if builder.count:
        blocks.append(builder.block())
    return blocks, True
