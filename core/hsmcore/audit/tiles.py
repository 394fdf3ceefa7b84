"""The Merkle tree as C2SP tlog-tiles: runs of 256 hashes, level 0 those of the records, each level above over tiles."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Final

from hsmcore._native import MerkleTree
from hsmcore.audit.files import write_beside
from hsmcore.audit.layout import Layout
from hsmcore.state.ownership import make_folder

WIDTH: Final = 256
HASH: Final = 32
_FULL: Final = WIDTH * HASH
MAX_LEVEL: Final = 7
"""256 ** 8 records are more than can be counted here."""


class TileError(ValueError):
    """A tile is missing or has a wrong length. `path` is its file."""

    def __init__(self, path: Path, problem: str) -> None:
        super().__init__(f"tile {path}: {problem}")
        self.path = path
        self.problem = problem


class Tiles:
    """Reads the tiles of a tree of `size` records, and computes from them. Not for several threads at once."""

    def __init__(self, layout: Layout, size: int) -> None:
        self.size = size
        self._layout = layout
        self._hasher = MerkleTree()
        self._cache: dict[tuple[int, int], bytes] = {}

    def width(self, level: int, number: int) -> int:
        """How many hashes the tile has at this size; 0 if there is no such tile."""
        return max(0, min(WIDTH, (self.size >> 8 * level) - number * WIDTH))

    def path(self, level: int, number: int) -> Path:
        """The file that has the tile: the full one if it exists, else the partial one of this size, else a wider one,
        which begins with the same hashes."""
        full = self._layout.tile(level, number)
        width = self.width(level, number)
        partial = self._layout.tile(level, number, width)
        if width == WIDTH or full.exists() or partial.exists() or not partial.parent.is_dir():
            return full if width == WIDTH or full.exists() else partial
        wider = [int(path.name) for path in partial.parent.iterdir() if path.name.isdigit() and int(path.name) > width]
        return self._layout.tile(level, number, min(wider, default=width))

    def read(self, level: int, number: int) -> bytes:
        """The hashes of a tile. Raises TileError, OSError."""
        cached = self._cache.get((level, number))
        if cached is not None:
            return cached
        wanted = self.width(level, number) * HASH
        path = self.path(level, number)
        try:
            with path.open("rb") as file:
                data = file.read(_FULL + 1)
        except (FileNotFoundError, NotADirectoryError):
            raise TileError(path, "is missing") from None
        if len(data) < wanted or len(data) > _FULL or len(data) % HASH:
            raise TileError(path, f"has {len(data)} bytes where {wanted} are needed")
        if len(self._cache) > 64:
            self._cache.clear()
        self._cache[level, number] = data[:wanted]
        return data[:wanted]

    def leaf(self, index: int) -> bytes:
        """The hash of a record, counted from 0."""
        tile = self.read(0, index // WIDTH)
        return tile[index % WIDTH * HASH :][:HASH]

    def range_root(self, start: int, end: int) -> bytes:
        """The hash over the records from `start` up to `end`, MTH(D[start:end]) of RFC 6962. `start` must be a multiple
        of the smallest power of two that is not below the length, as in every range that a proof is made of."""
        count = end - start
        if count == 0:
            return MerkleTree().root()
        if count & (count - 1) == 0:
            height = count.bit_length() - 1
            level, hashes = height // 8, 1 << height % 8
            first = start >> 8 * level
            tile = self.read(level, first // WIDTH)
            offset = first % WIDTH * HASH
            return self._hasher.over(tile[offset : offset + hashes * HASH])
        left = split(count)
        return self._hasher.node(self.range_root(start, start + left), self.range_root(start + left, end))

    def root(self) -> bytes:
        """The hash of the whole tree."""
        return self.range_root(0, self.size)

    def tree(self) -> MerkleTree:
        """A tree that can be appended to."""
        start, frontier = 0, b""
        for height in reversed(range(self.size.bit_length())):
            if self.size >> height & 1:
                frontier += self.range_root(start, start + (1 << height))
                start += 1 << height
        return MerkleTree(self.size, frontier)

    def inclusion(self, index: int) -> list[bytes]:
        """The inclusion proof of record `index`, counted from 0 (RFC 6962 section 2.1.1), the sibling first."""
        start, end, path = 0, self.size, []
        while end - start > 1:
            middle = start + split(end - start)
            if index < middle:
                path.append(self.range_root(middle, end))
                end = middle
            else:
                path.append(self.range_root(start, middle))
                start = middle
        return path[::-1]

    def consistency(self, old: int) -> list[bytes]:
        """The proof that the tree of `old` records is the beginning of this one (RFC 6962 section 2.1.2)."""
        if old in (0, self.size):
            return []
        start, end, path, whole = 0, self.size, [], True
        while old != end:
            middle = start + split(end - start)
            if old <= middle:
                path.append(self.range_root(middle, end))
                end = middle
            else:
                path.append(self.range_root(start, middle))
                start, whole = middle, False
        if not whole:
            path.append(self.range_root(start, end))
        return path[::-1]


def split(count: int) -> int:
    """The largest power of two below `count`."""
    return 1 << (count - 1).bit_length() - 1


class TileWriter:
    """Builds the tiles of a growing tree. Full ones are written as soon as they are, partial ones by `finish`."""

    def __init__(self, layout: Layout, tiles: Tiles) -> None:
        """Go on after the tree that `tiles` reads. Raises TileError."""
        self._layout = layout
        self._hasher = MerkleTree()
        self._written: list[Path] = []
        self._open: list[bytearray] = []
        self._done: list[int] = []
        for level in range(MAX_LEVEL + 1):
            count = tiles.size >> 8 * level
            if count == 0:
                break
            self._done.append(count // WIDTH)
            self._open.append(bytearray(tiles.read(level, count // WIDTH)) if count % WIDTH else bytearray())

    def append(self, leaves: bytes) -> None:
        """Add the hashes of records."""
        self._extend(0, leaves)

    def _extend(self, level: int, hashes: bytes) -> None:
        if level == len(self._open):
            self._open.append(bytearray())
            self._done.append(0)
        tail = self._open[level]
        tail += hashes
        above = bytearray()
        while len(tail) >= _FULL:
            full = bytes(tail[:_FULL])
            del tail[:_FULL]
            self._write(level, WIDTH, full)
            self._done[level] += 1
            above += self._hasher.over(full)
        if above:
            self._extend(level + 1, bytes(above))

    def _write(self, level: int, width: int, hashes: bytes) -> None:
        path = self._layout.tile(level, self._done[level], width)
        if not path.parent.is_dir():
            make_folder(path.parent, parents=True)
            self._written.append(path.parent.parent)
        # What a signed checkpoint may rest on is never touched, and what a crash left half written is replaced whole.
        if not (path.exists() and path.read_bytes() == hashes):
            write_beside(path, hashes).replace(path)
        self._written += [path, path.parent]

    def finish(self) -> None:
        """Write the partial tiles, and have all on the disk: then a checkpoint may say so."""
        for level, tail in enumerate(self._open):
            if tail:
                self._write(level, len(tail) // HASH, bytes(tail))
        for path in dict.fromkeys(self._written):
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        # Partial tiles are needed until the full one is there.
        for path in self._written:
            if path.suffix == "" and path.is_file() and path.parent.suffix != ".p":
                shutil.rmtree(path.with_name(path.name + ".p"), ignore_errors=True)
        self._written.clear()
