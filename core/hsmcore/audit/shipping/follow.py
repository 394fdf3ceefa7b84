"""Reads a log's lines in order while its files are written, renamed, compressed and deleted."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from hsmcore.audit import index
from hsmcore.audit.layout import Layout
from hsmcore.audit.segment import CHUNK_BYTES, Segment, SegmentError, is_compressed, segments, seq_of


class Follower:
    """Position of the reading. One thread at a time; reads the disk and writes nothing."""

    def __init__(self, layout: Layout, after: int) -> None:
        """Begin after record `after`."""
        self._layout = layout
        self.next: int = after + 1
        self.missing: list[tuple[int, int]] = []
        """Records (first, last) that were missing: pruned or removed."""
        self._segment: Segment | None = None
        self._file = -1
        self._offset = 0
        self._chunks: Iterator[bytes] | None = None
        self._text: list[bytes] = []

    def take(self, upto: int, most_bytes: int, most_records: int) -> list[bytes]:
        """Return the next lines, without newline, up to record `upto`, within the limits but at least one if there is
        one. Raises SegmentError if the next line is not the next record, OSError."""
        found: list[bytes] = []
        size = 0
        while self.next <= upto and len(found) < most_records:
            # An error must not lose lines that were found: read only when there are none.
            if not self._text and (found or not self._fill()):
                break
            line = self._text[-1]
            number = seq_of(line)
            if number < self.next:
                self._text.pop()  # a block's records before `next`
                continue
            if number != self.next:
                if found:
                    break
                raise SegmentError(self._path(), f"record {self.next} is not where it should be")
            size += len(line)
            if found and size > most_bytes:
                break
            found.append(self._text.pop())
            self.next += 1
        return found

    def close(self) -> None:
        """Close the file. `take` opens it again."""
        if self._file >= 0:
            os.close(self._file)
        self._file, self._segment, self._chunks, self._text = -1, None, None, []

    def _path(self) -> Path:
        return self._layout.log if self._segment is None else self._segment.path

    def _fill(self) -> bool:
        """Read the next text. Return False if there is none now."""
        while True:
            text = self._read()
            if text:
                self._text = text.split(b"\n")[-2::-1]  # without the text after the last newline; the next line last
                return True
            if not self._advance():
                return False

    def _read(self) -> bytes:
        if self._chunks is not None:
            text = next(self._chunks, b"")
            return text if text.endswith(b"\n") else b""
        if self._file < 0:
            return b""
        text = os.pread(self._file, CHUNK_BYTES, self._offset)
        text = text[: text.rfind(b"\n") + 1]
        self._offset += len(text)
        return text

    def _advance(self) -> bool:
        """Open the file that holds the next record. Return False if there is none yet."""
        try:
            candidates = segments(self._layout)
            here = [segment for segment in candidates if 0 < segment.first <= self.next]
            chosen = here[-1] if here else None
            if chosen is not None and (self._segment is None or chosen.first != self._segment.first):
                self._open(chosen)
                return True
        except FileNotFoundError:
            return False  # pruned since it was listed
        later = [segment.first for segment in candidates if segment.first > self.next]
        if later:
            self.missing.append((self.next, later[0] - 1))
            self.next = later[0]
            return self._advance()
        return False

    def _open(self, segment: Segment) -> None:
        self.close()
        offset = 0
        for block in index.blocks(self._layout, segment):
            if block.first > self.next:
                break
            offset = block.offset
        with segment.opened() as file:
            if is_compressed(file.name):
                self._chunks = segment.chunks(offset)
            else:
                self._file, self._offset = os.dup(file.fileno()), offset
        self._segment = segment


def last_seq(layout: Layout) -> int:
    """Return the newest record with a complete line, after flushing its file to the disk; 0 if there is none. For a
    process that does not write the log. Raises SegmentError, OSError."""
    for segment in reversed(segments(layout)):
        if segment.first == 0:
            continue  # a new file without a first line
        with segment.opened() as file:
            os.fsync(file.fileno())
        offset = 0
        for block in index.blocks(layout, segment):
            offset = block.offset
        last = 0
        for text in segment.chunks(offset):
            whole = text[: text.rfind(b"\n") + 1]
            if whole:
                last = seq_of(whole[whole.rfind(b"\n", 0, -1) + 1 :])
        if last:
            return last
    return 0
