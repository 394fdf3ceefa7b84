"""Follows the lines of a log and makes of them what the tree needs: tiles, index, the text of a checkpoint.

It only ever reads the lines; whoever writes them, in this process or from native code, need not know of it. All of it
may lag behind and is made again from the lines after a crash.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from hsmcore._native import MerkleTree
from hsmcore.audit import index
from hsmcore.audit.checkpoint import Checkpoint
from hsmcore.audit.files import replace, sync, write_all, write_new
from hsmcore.audit.layout import Layout
from hsmcore.audit.retention import Prunes
from hsmcore.audit.segment import CHUNK_BYTES, Segment, compress, first_seq_of
from hsmcore.audit.tiles import Tiles, TileWriter
from hsmcore.state.ownership import adopt

_CHUNK: Final = CHUNK_BYTES


class Damaged(Exception):
    """The lines are not what they should be. `seq` is the first record that is wrong, at byte `offset` of `segment`."""

    def __init__(self, segment: Segment, offset: int, seq: int, why: str) -> None:
        super().__init__(f"{segment.path}: record {seq} at byte {offset}: {WHY[why]}")
        self.segment, self.offset, self.seq, self.why = segment, offset, seq, why


WHY: Final = {
    "torn": "the line has no end",
    "foreign": "the line is no record",
    "order": "the record has another sequence number",
    "long": "the line is too long",
    "missing": "the file that should hold it is missing",
}


class Sealer:
    """Where sealing has come to. One thread at a time; blocks on the disk."""

    def __init__(self, layout: Layout, segment: Segment, size: int) -> None:
        """Begin with `segment`, whose first record is number `size` + 1; the tiles hold the tree of those before it.
        Raises TileError, OSError."""
        tiles = Tiles(layout, size)
        self._layout = layout
        self.tree: MerkleTree = tiles.tree()
        self._tiles = TileWriter(layout, tiles)
        self._full: list[tuple[int, list[int], int]] = []
        self.prunes = Prunes()
        """The prune records that no checkpoint covers yet."""
        self._file = -1
        self._open(segment)

    def _open(self, segment: Segment) -> None:
        self._use(segment, os.open(segment.path, os.O_RDONLY | os.O_CLOEXEC))

    def _use(self, segment: Segment, descriptor: int) -> None:
        self.close()
        self.segment = segment
        self._file = descriptor
        self.offset = 0
        self._block = index.BlockBuilder(self.tree.size + 1, 0)
        self._blocks: list[index.Block] = []
        self._indexed = 0
        self._started = False

    @property
    def size(self) -> int:
        """Records in the tree."""
        return self.tree.size

    def advance(self, size: int) -> None:
        """Take in lines until the tree has `size` records. Raises Damaged where they don't go on, OSError."""
        while self.size < size:
            text = os.pread(self._file, _CHUNK, self.offset)
            newline = text.rfind(b"\n")
            if newline < 0:
                if text:
                    raise Damaged(self.segment, self.offset, self.size + 1, "long" if len(text) == _CHUNK else "torn")
                self._next_segment()
                continue
            self._take(text[: newline + 1], size)

    def _take(self, text: bytes, size: int) -> None:
        used, why = 0, "end"
        while used < len(text) and self.size < size and why in ("end", "limit"):
            why, consumed, leaves, summary = self.tree.scan(
                text, used, self.size + 1, min(self._block.room, size - self.size)
            )
            self._tiles.append(leaves)
            self._block.add(consumed, summary)
            used += consumed
            self.offset += consumed
            if self._block.room == 0:
                self._end_block()
        self.prunes.take(text[:used])
        if why not in ("end", "limit"):
            raise Damaged(self.segment, self.offset, self.size + 1, why)

    def _end_block(self) -> None:
        if self._block.count:
            self._blocks.append(self._block.block())
        self._block = self._block.following()

    def _next_segment(self) -> None:
        """The segment is read to its end: go on with the one after it."""
        following = self.size + 1
        if self.segment.path == self._layout.log:
            archived = self._layout.archived(self.segment.first, compressed=False)
            if not archived.exists():
                raise Damaged(self.segment, self.offset, following, "missing")
            self.segment = Segment(self.segment.first, archived)  # the writer has renamed it meanwhile
            if os.pread(self._file, 1, self.offset):
                return  # and had written more before
        log, archived = self._layout.log, self._layout.archived(following, compressed=False)
        for path in (archived, log, archived):  # the last once more: the writer may rename it at any moment
            try:
                descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                continue
            if first_seq_of(descriptor) == following:
                self._full_until_here()
                if path == log:
                    adopt(log, lambda file: first_seq_of(file) == following)
                self._use(Segment(following, path), descriptor)
                return
            os.close(descriptor)
        raise Damaged(Segment(following, log), 0, following, "missing")

    def enter(self, path: Path) -> None:
        """The segment is full; go on at the beginning of the next one."""
        self._full_until_here()
        self._open(Segment(self.size + 1, path))

    def _full_until_here(self) -> None:
        self._end_block()
        self._write_index()
        self.note_full(self.segment.first, [block.length for block in self._blocks], self.size + 1)

    def note_full(self, first: int, lengths: list[int], following: int) -> None:
        """A segment is full: it may be compressed, a frame for each length, once record `following` - 1 is sealed."""
        self._full.append((first, lengths, following))

    def _write_index(self) -> None:
        rows = index.packed(self._blocks[self._indexed :])
        path = self._layout.index(self.segment.first)
        if not self._started:
            replace(path, rows)  # whatever was there is made anew
            self._started = True
        elif rows:
            descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
            try:
                write_all(descriptor, rows)
            finally:
                os.close(descriptor)
        self._indexed = len(self._blocks)

    def finish(self, origin: str) -> Checkpoint:
        """Have the tree so far on the disk. Returns the checkpoint to sign."""
        os.fdatasync(self._file)  # a checkpoint never speaks of lines that a power failure could take
        self._tiles.finish()
        self._write_index()
        return Checkpoint(origin, self.size, self.tree.root())

    def store(self, checkpoint: Checkpoint) -> None:
        """Keep a checkpoint that is signed now."""
        layout = self._layout
        fresh = not layout.history.exists()
        if fresh:
            write_new(layout.history, b"")
        descriptor = os.open(layout.history, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        try:
            write_all(descriptor, checkpoint.note + b"\n")
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        replace(layout.checkpoint, checkpoint.note)
        if fresh:
            sync(layout.folder)
        self.prunes.clear()

    def compress_full(self, size: int) -> None:
        """Compress the full segments whose records are all among the `size` of a signed checkpoint."""
        for entry in [entry for entry in self._full if entry[2] <= size + 1]:
            compress(self._layout, entry[0], entry[1])
            self._full.remove(entry)

    def close(self) -> None:
        """Let the file go."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
