"""The Merkle tree as C2SP tlog-tiles: tiles of 256 hashes. Level 0 holds the leaf hashes, each other level the hashes
of full tiles below."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from hsmcore._native import MerkleTree, store_files
from hsmcore.audit.layout import TreeLayout
from hsmcore.base.ownership import make_folder, sync

WIDTH: Final = 256
HASH: Final = 32
FULL: Final = WIDTH * HASH
MAX_LEVEL: Final = 7
"""256 ** 8 records: the sequence number has no more."""


class TileError(ValueError):
    """A tile is missing or has a wrong length. `path`: its file."""

    def __init__(self, path: Path, problem: str) -> None:
        super().__init__(f"tile {path}: {problem}")
        self.path = path


class Tiles:
    """Reads the tiles of a tree of `size` records and computes hashes and proofs from them. One thread at a time."""

    def __init__(self, layout: TreeLayout, size: int) -> None:
        self.size = size
        self._layout = layout
        self._hasher = MerkleTree()
        self._cache: dict[tuple[int, int], bytes] = {}

    def width(self, level: int, number: int) -> int:
        """Return how many hashes the tile has at this size; 0 if it does not exist."""
        return max(0, min(WIDTH, (self.size >> 8 * level) - number * WIDTH))

    def path(self, level: int, number: int) -> Path:
        """Return the file that holds the tile: the full one if it exists, else the partial one of this size, else a
        wider partial one, which begins with the same hashes."""
        full = self._layout.tile(level, number)
        width = self.width(level, number)
        partial = self._layout.tile(level, number, width)
        if width == WIDTH or full.exists() or partial.exists() or not partial.parent.is_dir():
            return full if width == WIDTH or full.exists() else partial
        wider = [int(path.name) for path in partial.parent.iterdir() if path.name.isdigit() and int(path.name) > width]
        return self._layout.tile(level, number, min(wider, default=width))

    def read(self, level: int, number: int) -> bytes:
        """Return the hashes of a tile. Raises TileError, OSError."""
        cached = self._cache.get((level, number))
        if cached is not None:
            return cached
        wanted = self.width(level, number) * HASH
        path, data = self._content(level, number)
        if len(data) < wanted or len(data) > FULL or len(data) % HASH:
            raise TileError(path, f"has {len(data)} bytes where {wanted} are needed")
        if len(self._cache) > 64:
            self._cache.clear()
        self._cache[level, number] = data[:wanted]
        return data[:wanted]

    def _content(self, level: int, number: int) -> tuple[Path, bytes]:
        for _ in range(2):  # a running writer may replace a partial tile by the full one
            with suppress(FileNotFoundError, NotADirectoryError):
                path = self.path(level, number)
                with path.open("rb") as file:
                    return path, file.read(FULL + 1)
        raise TileError(self._layout.tile(level, number), "is missing")

    def leaf(self, index: int) -> bytes:
        """Return the leaf hash of the record with this index, which counts from 0. Raises TileError, OSError."""
        return self._hash(0, index)

    def proved(self, level: int, number: int) -> bool:
        """Return whether the hash of a full tile stands in the tile above. Raises TileError, OSError."""
        above = self._hash(level + 1, number)
        return self._hasher.over(self.read(level, number)) == above

    def _hash(self, level: int, index: int) -> bytes:
        return self.read(level, index // WIDTH)[index % WIDTH * HASH :][:HASH]

    def range_root(self, start: int, end: int) -> bytes:
        """Return MTH(D[start:end]) of RFC 6962. `start` must be a multiple of the smallest power of two that is not
        less than the length; every range in a proof satisfies that. Raises TileError, OSError."""
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
        """Return the root hash. Raises TileError, OSError."""
        return self.range_root(0, self.size)

    def tree(self) -> MerkleTree:
        """Return a tree of this size that can be appended to. Raises TileError, OSError."""
        start, frontier = 0, b""
        for height in reversed(range(self.size.bit_length())):
            if self.size >> height & 1:
                frontier += self.range_root(start, start + (1 << height))
                start += 1 << height
        return MerkleTree(self.size, frontier)

    def inclusion(self, index: int) -> list[bytes]:
        """Return the inclusion proof (RFC 6962 section 2.1.1) of the record with this index, from leaf to root. Raises
        TileError, OSError."""
        return self._descend(index, lambda start, end: end - start == 1)[0]

    def consistency(self, old: int) -> list[bytes]:
        """Return the consistency proof (RFC 6962 section 2.1.2) between the tree of `old` records and this one. Raises
        TileError, OSError."""
        if old in (0, self.size):
            return []
        path, start = self._descend(old - 1, lambda _start, end: end == old)
        return [self.range_root(start, old), *path] if start else path

    def _descend(self, index: int, found: Callable[[int, int], bool]) -> tuple[list[bytes], int]:
        """Descend from the root to the subtree of leaf `index` whose range is `found`. Return the siblings on the way,
        lowest first, and the subtree's first leaf."""
        start, end, path = 0, self.size, []
        while not found(start, end):
            middle = start + split(end - start)
            if index < middle:
                path.append(self.range_root(middle, end))
                end = middle
            else:
                path.append(self.range_root(start, middle))
                start = middle
        return path[::-1], start


def split(count: int) -> int:
    """Return the largest power of two that is less than `count`."""
    return 1 << (count - 1).bit_length() - 1


class TileBuilder:
    """Groups the hashes of a growing tree into tiles, at every level. `tails`: the hashes of each level's partial tile;
    `numbers`: the number of that tile."""

    def __init__(self) -> None:
        self.tails = [bytearray() for _ in range(MAX_LEVEL + 1)]
        self.numbers = [0] * (MAX_LEVEL + 1)
        self._hasher = MerkleTree()

    def append(self, hashes: bytes, level: int = 0) -> Iterator[tuple[int, int, bytes]]:
        """Add hashes to a level. Yield level, number and hashes of each tile that becomes full."""
        tail = self.tails[level]
        tail += hashes
        full = bytes(tail[: len(tail) // FULL * FULL])
        if full:
            del tail[: len(full)]
            above = self._hasher.over(full, WIDTH)
            for begin in range(0, len(full), FULL):
                yield level, self.numbers[level], full[begin : begin + FULL]
                self.numbers[level] += 1
            yield from self.append(above, level + 1)

    def partial(self) -> Iterator[tuple[int, int, bytes]]:
        """Yield level, number and hashes of each tile that is neither full nor empty."""
        for level, (number, tail) in enumerate(zip(self.numbers, self.tails, strict=True)):
            if tail:
                yield level, number, bytes(tail)


class TileWriter:
    """Writes the tiles of a growing tree: full ones as soon as they are full, partial ones in `finish`."""

    def __init__(self, layout: TreeLayout, tiles: Tiles) -> None:
        """Continue the tree that `tiles` reads. Raises TileError, OSError."""
        self._layout = layout
        self._builder = TileBuilder()
        self._full: list[tuple[int, int, bytes]] = []
        self._made: dict[Path, None] = {}
        """Folders in which others were made, whose entries may not be on the disk."""
        self._partial: dict[Path, None] = {}
        """Folders of partial tiles. They are needed until the full tile is on the disk."""
        for level in range(MAX_LEVEL + 1):
            number, width = divmod(tiles.size >> 8 * level, WIDTH)
            self._builder.numbers[level] = number
            if width:
                self._builder.tails[level] += tiles.read(level, number)
                self._partial[layout.tile(level, number, width).parent] = None

    def append(self, leaves: bytes) -> None:
        """Add the hashes of records. Raises OSError; they are added all the same, and the next call writes what is
        left."""
        self._full += self._builder.append(leaves)
        self._store(self._full)
        self._full.clear()

    def _store(self, tiles: list[tuple[int, int, bytes]]) -> None:
        """Have tiles on the disk. One that a signed checkpoint may rest on is never rewritten; one that a crash left
        incomplete is replaced."""
        files = [(self._layout.tile(level, number, len(hashes) // HASH), hashes) for level, number, hashes in tiles]
        for folder in dict.fromkeys(path.parent for path, _ in files):
            if folder.suffix == ".p":
                self._partial[folder] = None
            if not folder.is_dir():
                make_folder(folder, parents=True)
                self._made[folder.parent] = None
        store_files([(os.fsencode(path), hashes) for path, hashes in files])

    def finish(self) -> None:
        """Write the partial tiles and flush all tiles to the disk, so that a checkpoint may be signed. Raises
        OSError."""
        self._store([*self._full, *self._builder.partial()])
        self._full.clear()
        for folder in self._made:
            sync(folder)
        self._made.clear()
        for folder in [folder for folder in self._partial if folder.with_suffix("").exists()]:
            shutil.rmtree(folder, ignore_errors=True)
            del self._partial[folder]
