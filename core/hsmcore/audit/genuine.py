"""The part of a log's tiles that the root of a checkpoint vouches for."""

from __future__ import annotations

from hsmcore._native import MerkleTree
from hsmcore.audit.layout import Layout
from hsmcore.audit.tiles import HASH, WIDTH, TileError, Tiles


class Genuine:
    """The leaf hashes that a root vouches for."""

    def __init__(self, layout: Layout, size: int, root: bytes) -> None:
        self._tiles = Tiles(layout, size)
        self._hasher = MerkleTree()
        self._known: dict[tuple[int, int], bool] = {}
        try:
            self.any = self._tiles.root() == root
        except (TileError, OSError):
            self.any = False

    def tile(self, level: int, number: int) -> bool:
        """Whether a tile is genuine."""
        known = self._known.get((level, number))
        if known is None:
            known = self._known[level, number] = self.any and self._look(level, number)
        return known

    def _look(self, level: int, number: int) -> bool:
        try:
            if self._tiles.width(level, number) < WIDTH:
                return True  # at the right edge, where the root has been compared
            above = self._tiles.read(level + 1, number // WIDTH)
            entry = above[number % WIDTH * 32 :][:32]
            return self._hasher.over(self._tiles.read(level, number)) == entry and self.tile(level + 1, number // WIDTH)
        except (TileError, OSError):
            return False

    def leaf(self, seq: int) -> bytes | None:
        """The hash of a record; None if that is not known."""
        if not 1 <= seq <= self._tiles.size or not self.tile(0, (seq - 1) // WIDTH):
            return None
        return self._tiles.leaf(seq - 1)

    def leaves(self, first: int, count: int) -> bytes | None:
        """The hashes of `count` records from `first` on, all of one tile; None if they are not known."""
        number, place = divmod(first - 1, WIDTH)
        if not 1 <= first <= first + count - 1 <= self._tiles.size or not self.tile(0, number):
            return None
        return self._tiles.read(0, number)[place * HASH : (place + count) * HASH]
