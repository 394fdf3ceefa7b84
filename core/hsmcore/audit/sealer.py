"""Reads the lines of a log and derives its tiles, its index and the text of its checkpoints.

It only reads the lines, so it is independent of their writer. The derived files may lag behind and are derived again
after a crash.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from hsmcore._native import MerkleTree
from hsmcore.audit import index
from hsmcore.audit.layout import Layout
from hsmcore.audit.retention import MARK, Prunes
from hsmcore.audit.segment import Segment, SegmentError, compress, first_seq_of
from hsmcore.audit.tiles import FULL, WIDTH, Tiles, TileWriter
from hsmcore.base.files import append, replace, write_new
from hsmcore.base.log import get_logger
from hsmcore.base.ownership import adopt, sync
from hsmcore.tlog.checkpoint import Checkpoint

_LINES: Final = 1 << 16
"""What is read and hashed at once: after each part the thread may wait for the interpreter's lock."""


class Damaged(Exception):
    """The lines are not consecutive records. `seq`: the first record that is wrong, at byte `offset` of `segment`."""

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
    """Position of sealing. One thread at a time; blocks on the disk."""

    def __init__(self, layout: Layout, segment: Segment, size: int) -> None:
        """Begin at `segment`, whose first record is `size` + 1. The tiles hold the tree of the records before it.
        Raises TileError, OSError."""
        tiles = Tiles(layout, size)
        self._layout = layout
        self.tree: MerkleTree = tiles.tree()
        self._tiles = TileWriter(layout, tiles)
        self._full: list[tuple[int, list[int], int]] = []
        self.prunes = Prunes()
        """Prune records that no checkpoint covers yet."""
        self._history: int | None = None
        """Bytes in the file of all checkpoints, up to the newest one that is stored."""
        self._file = -1
        self._open(segment)

    def _open(self, segment: Segment) -> None:
        self._use(segment, os.open(segment.path, os.O_RDONLY | os.O_CLOEXEC))

    def _use(self, segment: Segment, descriptor: int) -> None:
        self.close()
        self.segment = segment
        self._file = descriptor
        self.offset = 0
        self._rows = index.IndexBuilder(self.tree.size + 1)
        self._indexed = 0
        self._started = False

    @property
    def size(self) -> int:
        """Records in the tree."""
        return self.tree.size

    def advance(self, size: int, must_end: Callable[[], bool] = lambda: False) -> None:
        """Read lines until the tree has `size` records, or some and `must_end`. Raises Damaged if the next line is not
        the next record, OSError."""
        self._tiles.append(b"")  # what an earlier attempt has left: else each would leave more
        while self.size < size:
            why, used, leaves, rows, marked = self.tree.scan_file(
                self._file, self.offset, self.size + 1, min(size - self.size, _LINES), MARK
            )
            if why == "end" and not used:
                self._next_segment()
                continue
            self._rows.add(rows)
            self.prunes.take(marked, 0, len(marked))
            self.offset += used
            self._tiles.append(leaves)  # last, because it may fail: the lines are taken by now
            if why not in ("end", "limit") and (why != "torn" or not used):
                raise Damaged(self.segment, self.offset, self.size + 1, why)
            if must_end():
                return

    def _next_segment(self) -> None:
        """Open the segment that follows one that is read to its end. Raises Damaged if it is missing, OSError."""
        following = self.size + 1
        if self.segment.path == self._layout.log:
            archived = self._layout.archived(self.segment.first, compressed=False)
            if not archived.exists():
                raise Damaged(self.segment, self.offset, following, "missing")
            self.segment = Segment(self.segment.first, archived)  # the writer has renamed it
            if os.pread(self._file, 1, self.offset):
                return  # the writer appended more before it renamed the file
        log, archived = self._layout.log, self._layout.archived(following, compressed=False)
        for path in (archived, log, archived):  # again: the writer may rename the file between the attempts
            try:
                descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                continue
            try:
                if first_seq_of(descriptor) == following:
                    if path == log:
                        adopt(log, lambda file: first_seq_of(file) == following)
                    self._full_until_here()
                    self._use(Segment(following, path), descriptor)
                    return
            finally:
                if self._file != descriptor:
                    os.close(descriptor)
        raise Damaged(Segment(following, log), 0, following, "missing")

    def enter(self, path: Path) -> None:
        """End the present segment and open the next one. Raises OSError."""
        self._full_until_here()
        self._open(Segment(self.size + 1, path))

    def _full_until_here(self) -> None:
        blocks = self._rows.end()
        self._write_index()
        self.note_full(self.segment.first, [block.length for block in blocks], self.size + 1)

    def note_full(self, first: int, lengths: list[int], following: int) -> None:
        """Note a full segment. Once record `following` - 1 is sealed, it may be compressed to one frame for each
        length."""
        self._full.append((first, lengths, following))

    def _write_index(self) -> None:
        rows = index.packed(self._rows.blocks[self._indexed :])
        path = self._layout.index(self.segment.first)
        if not self._started:
            replace(path, rows)  # rows of an earlier run are derived again
            self._started = True
        elif rows:
            os.truncate(path, self._indexed * index.ROW_BYTES)  # an earlier attempt may have written a part
            append(path, rows, durable=False)
        self._indexed = len(self._rows.blocks)

    def finish(self, origin: str) -> Checkpoint:
        """Flush lines, tiles and index of the tree to the disk. Return the checkpoint to sign. Raises OSError."""
        os.fdatasync(self._file)  # a checkpoint must not cover lines that a power failure could remove
        self._tiles.finish()
        self._write_index()
        return Checkpoint(origin, self.size, self.tree.root())

    def store(self, checkpoint: Checkpoint) -> None:
        """Store a signed checkpoint, durably. Raises OSError, also if another program has removed or cut what this one
        has written beside it."""
        layout = self._layout
        if self._history is None:
            if not layout.history.exists():
                write_new(layout.history, b"")
                sync(layout.folder)
            self._history = layout.history.stat().st_size
        else:
            oldest = (layout.tile(0, 0), FULL) if checkpoint.size >= WIDTH else (layout.tiles, 0)
            for path, size in ((layout.history, self._history), (layout.keys, 1), (layout.origin, 1), oldest):
                if path.stat().st_size < size:
                    raise OSError(errno.ESTALE, "another program has cut it", str(path))
        os.truncate(layout.history, self._history)  # an earlier attempt may have failed after it had written
        append(layout.history, checkpoint.note + b"\n", durable=True)
        replace(layout.checkpoint, checkpoint.note)
        self._history += len(checkpoint.note) + 1
        self.prunes.clear()

    def compress_full(self, sealed: Callable[[], int]) -> None:
        """Compress the full segments whose records a signed checkpoint covers, `sealed` of them by now; 0: end at
        once. In any thread, but in one at a time. Errors are only logged: the next call tries again."""
        try:
            while found := next((entry for entry in list(self._full) if entry[2] <= sealed() + 1), None):
                if compress(self._layout, found[0], found[1], lambda: not sealed()):
                    self._full.remove(found)
        except (OSError, SegmentError) as error:
            get_logger().error(
                "a full file of the audit log was not compressed", file=str(self._layout.log), error=str(error)
            )

    def close(self) -> None:
        """Close the file. Idempotent."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
