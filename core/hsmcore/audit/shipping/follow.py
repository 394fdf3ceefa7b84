"""Reads a log's lines in their order while they are written, files are renamed, compressed and deleted under it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from hsmcore.audit import index
from hsmcore.audit.layout import Layout
from hsmcore.audit.segment import CHUNK_BYTES, Segment, SegmentError, segments

_HEAD: Final = b'{"seq":'


class Follower:
    """Where reading has come to. One thread at a time; reads the disk, writes nothing."""

    def __init__(self, layout: Layout, after: int) -> None:
        """Begin behind record `after`."""
        self._layout = layout
        self.next: int = after + 1
        self.missing: list[tuple[int, int]] = []
        """Records (first, last) that were not there any more: pruned, or taken away."""
        self._segment: Segment | None = None
        self._file = -1
        self._offset = 0
        self._chunks: Iterator[bytes] | None = None
        self._text: list[bytes] = []
        self._suspected = 0

    def take(self, upto: int, most_bytes: int, most_records: int) -> list[bytes]:
        """The next lines, without newline, up to record `upto`; at most so many, at least one if there is any. Raises
        SegmentError when the files hold something else than the next record, OSError."""
        found: list[bytes] = []
        size = 0
        while self.next <= upto and len(found) < most_records:
            # What may fail comes first or not at all: what was found must not be forgotten.
            if not self._text and (found or not self._fill()):
                break
            line = self._text[-1]
            number = _seq(line)
            if number < self.next:
                self._text.pop()  # the reading began at a block's beginning
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
        """Let the file go."""
        if self._file >= 0:
            os.close(self._file)
        self._file, self._segment, self._chunks, self._text = -1, None, None, []

    def _path(self) -> Path:
        return self._layout.log if self._segment is None else self._segment.path

    def _fill(self) -> bool:
        """Have text; False if there is none now."""
        while True:
            text = self._read()
            if text:
                self._text = text.split(b"\n")[-2::-1]  # the last is what stands behind the last newline
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
        """Open the file that holds the next record. False if there is none, or not yet."""
        try:
            candidates = segments(self._layout)
            here = [segment for segment in candidates if 0 < segment.first <= self.next]
            chosen = here[-1] if here else None
            if chosen is not None and (self._segment is None or chosen.first != self._segment.first):
                self._open(chosen)
                self._suspected = 0
                return True
        except FileNotFoundError:
            return False  # renamed or compressed between the two calls
        later = [segment.first for segment in candidates if segment.first > self.next]
        if later:
            # A file that is renamed while they are listed is missing from one listing, never from two.
            if self._suspected == later[0]:
                self.missing.append((self.next, later[0] - 1))
                self.next = later[0]
            self._suspected = later[0]
            return self._advance()
        return False

    def _open(self, segment: Segment) -> None:
        self.close()
        offset = 0
        for block in index.sane(index.read(self._layout.index(segment.first)), segment.first):
            if block.first > self.next:
                break
            offset = block.offset
        if segment.compressed:
            self._chunks = segment.chunks(offset)
        else:
            self._file = os.open(segment.path, os.O_RDONLY | os.O_CLOEXEC)
            self._offset = offset
        self._segment = segment


def _seq(line: bytes) -> int:
    number = line[7 : line.find(b",", 7)] if line.startswith(_HEAD) else b""
    return int(number) if number.isdigit() and len(number) < 20 else 0


def last_seq(layout: Layout) -> int:
    """The newest record whose line is whole, after having had the file flushed to the disk; 0 if there is none. For
    readers outside the process that writes. Raises SegmentError, OSError."""
    for segment in reversed(segments(layout)):
        if segment.first == 0:
            continue  # a new file whose first line is not there yet
        if not segment.compressed:
            descriptor = os.open(segment.path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fdatasync(descriptor)
            finally:
                os.close(descriptor)
        offset = 0
        for block in index.sane(index.read(layout.index(segment.first)), segment.first):
            offset = block.offset
        last = 0
        for text in segment.chunks(offset):
            whole = text[: text.rfind(b"\n") + 1]
            if whole:
                last = _seq(whole[whole.rfind(b"\n", 0, -1) + 1 :])
        if last:
            return last
    return 0
