"""The leaf hashes and tiles that the root hash of a checkpoint covers."""

from __future__ import annotations

from hsmcore.audit.layout import Layout
from hsmcore.audit.tiles import HASH, WIDTH, TileError, Tiles


class Genuine:
    """Tiles of a tree that are proved by its root. `any`: the tiles give the root at all."""

    def __init__(self, layout: Layout, size: int, root: bytes) -> None:
        self._tiles = Tiles(layout, size)
        self._known: dict[tuple[int, int], bool] = {}
        try:
            self.any = self._tiles.root() == root
        except (TileError, OSError):
            self.any = False

    def tile(self, level: int, number: int) -> bool:
        """Return whether a tile is genuine: its hash stands in the tile above, which is genuine too."""
        known = self._known.get((level, number))
        if known is None:
            known = self._known[level, number] = self.any and self._look(level, number)
        return known

    def _look(self, level: int, number: int) -> bool:
        try:
            if self._tiles.width(level, number) < WIDTH:
                return True  # a tile at the right edge: `any` covers it
            return self._tiles.proved(level, number) and self.tile(level + 1, number // WIDTH)
        except (TileError, OSError):
            return False

    def leaf(self, seq: int) -> bytes | None:
        """Return the leaf hash of a record; None if its tile is not genuine."""
        if not 1 <= seq <= self._tiles.size or not self.tile(0, (seq - 1) // WIDTH):
            return None
        return self._tiles.leaf(seq - 1)

    def leaves(self, first: int, count: int) -> bytes | None:
        """Return the leaf hashes of `count` records from `first` on, which share a tile; None if it is not genuine."""
        number, place = divmod(first - 1, WIDTH)
        if not 1 <= first <= first + count - 1 <= self._tiles.size or not self.tile(0, number):
            return None
        return self._tiles.read(0, number)[place * HASH : (place + count) * HASH]
