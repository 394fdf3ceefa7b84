"""Compares the stored tiles with the hashes of the records."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hsmcore.audit.layout import Layout
from hsmcore.audit.tiles import FULL, HASH, MAX_LEVEL, WIDTH, TileBuilder, TileError, Tiles


@dataclass(frozen=True, slots=True)
class TileProblem:
    """A tile that is missing or differs, and the records that it covers."""

    path: Path
    problem: str
    first: int
    last: int


class TileCheck:
    """Takes the leaf hashes in order and compares every tile of a tree of `size` records."""

    def __init__(self, layout: Layout, size: int) -> None:
        self._layout = layout
        self._tiles = Tiles(layout, size)
        self._builder = TileBuilder()

    def begin(self, size: int) -> None:
        """Begin after `size` pruned records: their tiles are compared only with the tiles above. Raises TileError if
        one is missing or differs, OSError."""
        for level in range(MAX_LEVEL):
            count = size >> 8 * level
            self._builder.numbers[level] = count // WIDTH
            for number in range(count // WIDTH):
                if not self._tiles.proved(level, number):
                    raise TileError(self._tiles.path(level, number), "does not give the hash that stands above it")
            if count % WIDTH:
                self._builder.tails[level] += self._tiles.read(level, count // WIDTH)[: count % WIDTH * HASH]

    def append(self, leaves: bytes) -> Iterator[TileProblem]:
        """Add the hashes of records. Yield the problems of each tile that becomes full."""
        for tile in self._builder.append(leaves):
            yield from self._compare(*tile)

    def partial(self, *, newest: bool) -> Iterator[TileProblem]:
        """Yield the problems of the partial tiles of a checkpoint at the present size. Those of the newest checkpoint
        must exist, unless the full tile does; those of older ones need not, as the full tile holds their hashes."""
        for level, number, hashes in self._builder.partial():
            path = self._layout.tile(level, number, len(hashes) // HASH)
            if path.exists() or (newest and not self._layout.tile(level, number).exists()):
                yield from self._compare(level, number, hashes)

    def _compare(self, level: int, number: int, hashes: bytes) -> Iterator[TileProblem]:
        span = 256**level
        first = number * WIDTH * span + 1
        last = min(first + len(hashes) // HASH * span - 1, self._tiles.size)
        path = self._layout.tile(level, number, len(hashes) // HASH)
        try:
            stored = path.read_bytes()
        except FileNotFoundError:
            if len(hashes) < FULL and self._layout.tile(level, number).exists():
                return  # the full tile has been made since, and replaces it
            yield TileProblem(path, "the tile is missing", first, last)
            return
        if stored != hashes:
            at = next((i for i in range(WIDTH) if stored[i * HASH :][:HASH] != hashes[i * HASH :][:HASH]), 0)
            where = first + at * span
            yield TileProblem(path, f"the tile differs from the records at hash {at}", where, where + span - 1)
