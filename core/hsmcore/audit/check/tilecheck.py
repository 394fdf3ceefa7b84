"""Comparing the stored tiles with what the records give."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hsmcore._native import MerkleTree
from hsmcore.audit.layout import Layout
from hsmcore.audit.tiles import HASH, MAX_LEVEL, WIDTH, TileError, Tiles

_FULL: Final = WIDTH * HASH


@dataclass(frozen=True, slots=True)
class TileProblem:
    """A tile that is not what it should be, and the records it speaks of."""

    path: Path
    problem: str
    first: int
    last: int


class TileCheck:
    """Takes the hashes of records in order and compares every tile of a tree of `size` records."""

    def __init__(self, layout: Layout, size: int) -> None:
        self._layout = layout
        self._tiles = Tiles(layout, size)
        self._hasher = MerkleTree()
        self._tails = [bytearray() for _ in range(MAX_LEVEL + 1)]
        self._done = [0] * (MAX_LEVEL + 1)

    def begin(self, size: int) -> None:
        """Take the first `size` records' tiles as they are, having compared each with the one above. Raises TileError
        for one that is missing or differs."""
        for level in range(MAX_LEVEL):
            count = size >> 8 * level
            self._done[level] = count // WIDTH
            for number in range(count // WIDTH):
                above = self._tiles.read(level + 1, number // WIDTH)[number % WIDTH * HASH :][:HASH]
                if self._hasher.over(self._tiles.read(level, number)) != above:
                    raise TileError(self._tiles.path(level, number), "does not give the hash that stands above it")
            if count % WIDTH:
                self._tails[level] += self._tiles.read(level, count // WIDTH)[: count % WIDTH * HASH]

    def append(self, leaves: bytes) -> Iterator[TileProblem]:
        """Add hashes of records; yields the problems of the tiles that are complete now."""
        yield from self._extend(0, leaves)

    def _extend(self, level: int, hashes: bytes) -> Iterator[TileProblem]:
        tail = self._tails[level]
        tail += hashes
        above = bytearray()
        while len(tail) >= _FULL:
            full = bytes(tail[:_FULL])
            del tail[:_FULL]
            yield from self._compare(level, full)
            self._done[level] += 1
            above += self._hasher.over(full)
        if above:
            yield from self._extend(level + 1, bytes(above))

    def partial(self, *, newest: bool) -> Iterator[TileProblem]:
        """The problems of the partial tiles of a checkpoint with as many records as there are now. They must be there
        for the newest one, unless the full tile is; those of older ones can be made from them."""
        for level, tail in enumerate(self._tails):
            if not tail:
                continue
            path = self._layout.tile(level, self._done[level], len(tail) // HASH)
            if path.exists() or (newest and not self._layout.tile(level, self._done[level]).exists()):
                yield from self._compare(level, bytes(tail))

    def _compare(self, level: int, hashes: bytes) -> Iterator[TileProblem]:
        number = self._done[level]
        span = 256**level
        first = number * WIDTH * span + 1
        last = min(first + len(hashes) // HASH * span - 1, self._tiles.size)
        path = self._layout.tile(level, number, len(hashes) // HASH)
        try:
            stored = path.read_bytes()
        except FileNotFoundError:
            yield TileProblem(path, "the tile is missing", first, last)
            return
        if stored != hashes:
            at = next((i for i in range(WIDTH) if stored[i * HASH :][:HASH] != hashes[i * HASH :][:HASH]), 0)
            where = first + at * span
            yield TileProblem(path, f"the tile differs from the records at hash {at}", where, where + span - 1)
