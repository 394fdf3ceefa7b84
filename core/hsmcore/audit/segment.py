"""Segments: the files that hold a log's lines. The newest one grows; full ones may be compressed.

A compressed segment has the Zstandard seekable format: independent frames of whole lines, and a table of them at the
end. `zstdcat` reads it as one stream.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, Final

import zstandard

from hsmcore.audit.layout import Layout
from hsmcore.base.ownership import make, sync

CHUNK_BYTES: Final = 1 << 20
MAX_FRAME_BYTES: Final = 1 << 27
_SKIPPABLE: Final = 0x184D2A5E
_SEEKABLE: Final = 0x8F92EAB1
_LEVEL: Final = 3
_HEAD: Final = 64
"""Bytes that hold a line's sequence number."""
_LOOKS: Final = 5
"""Looks at a log without its newest file: a running writer makes another one in a moment."""


class SegmentError(ValueError):
    """A segment's file is damaged. `path`: the file."""

    def __init__(self, path: Path, problem: str) -> None:
        super().__init__(f"{path}: {problem}")
        self.path = path


@dataclass(frozen=True, slots=True)
class Segment:
    """Records from sequence number `first` on, in one file; `first` 0: no record yet."""

    first: int
    path: Path
    moves: tuple[Path, ...] = field(default=(), compare=False, repr=False)
    """Files to which a running writer may have moved the records since the segment was listed."""

    @property
    def compressed(self) -> bool:
        """Whether the file consists of Zstandard frames."""
        return is_compressed(self.path)

    @contextmanager
    def opened(self) -> Iterator[BinaryIO]:
        """Open the file of these records, wherever it is by now; its `name` is the path. Raises FileNotFoundError if
        they were pruned, OSError."""
        file = self._open()
        with file:
            yield file

    def _open(self) -> BinaryIO:
        file = _existing(self.path)
        head = b"" if file is None else os.pread(file.fileno(), _HEAD, 0)
        if not self.first and (not head or seq_of(head)):
            if file is not None:
                file.close()  # it had no record when it was listed; by now there may be others between
            return Path(os.devnull).open("rb")
        if file is not None and (not self.moves or seq_of(head) == self.first):
            return file
        moved = next(filter(None, map(_existing, self.moves)), None)
        if moved is not None and file is not None:
            file.close()  # the name is another segment's by now
        if (found := moved or file) is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self.path))
        return found

    def chunks(self, offset: int = 0) -> Iterator[bytes]:
        """Yield the text from an offset on, in pieces of whole lines; text without a newline comes last. Raises
        SegmentError, OSError."""
        with self.opened() as file:
            yield from (_frames if is_compressed(file.name) else _plain)(file, offset)

    def read(self, offset: int, length: int) -> bytes:
        """Return `length` bytes of the text from an offset on. Raises SegmentError, OSError."""
        with self.opened() as file:
            if not is_compressed(file.name):
                file.seek(offset)
                return file.read(length)
            found = b""
            for chunk in _frames(file, offset):
                found = found + chunk if found else chunk
                if len(found) >= length:
                    break
            return found[:length]


def is_compressed(path: str | Path) -> bool:
    """Return whether a segment's file consists of Zstandard frames."""
    return str(path).endswith(".zst")


def _existing(path: Path) -> BinaryIO | None:
    try:
        return open(path, "rb", opener=_without_waiting)
    except FileNotFoundError:
        return None


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # the opening of a pipe would wait for a writer


def newest_segment(layout: Layout, first: int) -> Segment:
    """Return the newest segment, whose first record is `first`; 0: it has none."""
    names = (layout.archived(first, compressed=False), layout.archived(first, compressed=True))
    return Segment(first, layout.log, names if first else ())


def segments(layout: Layout) -> list[Segment]:
    """Return the full segments in order, then the newest one: each one that there is when the call begins, and none
    twice, also while a writer runs. If a crash left a segment plain and compressed, the plain file is returned. Raises
    OSError."""
    full: dict[int, Segment] = {}
    for _ in range(_LOOKS):
        file = _existing(layout.log)
        with file or nullcontext():
            # What is compressed during a listing may be missing from it, but not from the next one, too.
            full = {**_full_segments(layout), **_full_segments(layout)}
            if file is not None:
                first = first_seq_of(file.fileno())
                if first and not _is_at(file, layout.log):  # it is full by now, and others may be
                    full = {number: segment for number, segment in full.items() if number < first}
                return [*_in_order(full), newest_segment(layout, first)]
    return _in_order(full)


def _in_order(full: dict[int, Segment]) -> list[Segment]:
    return [full[first] for first in sorted(full)]


def _full_segments(layout: Layout) -> dict[int, Segment]:
    found: dict[int, Segment] = {}
    if layout.segments.is_dir():
        for path in layout.segments.iterdir():
            number = path.name.partition(".")[0]
            plain = path.name.endswith(".jsonl")
            if (plain or path.name.endswith(".jsonl.zst")) and number.isdigit():
                first = int(number)
                if plain or first not in found:
                    found[first] = Segment(first, path, (path.with_name(path.name + ".zst"),) if plain else ())
    return found


def _is_at(file: BinaryIO, path: Path) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    return False


def first_seq(path: Path) -> int:
    """Return the sequence number of a file's first line; 0 if there is none. Raises OSError."""
    with open(path, "rb", opener=_without_waiting) as file:
        return first_seq_of(file.fileno())


def first_seq_of(descriptor: int) -> int:
    """Return the sequence number of an open file's first line; 0 if there is none. Raises OSError."""
    return seq_of(os.pread(descriptor, _HEAD, 0))


def seq_of(line: bytes) -> int:
    """Return the sequence number at the beginning of a line; 0 if there is none."""
    number = line[7:27].partition(b",")[0] if line.startswith(b'{"seq":') else b""
    return int(number) if number.isdigit() and len(number) < 20 else 0


def _plain(file: BinaryIO, offset: int) -> Iterator[bytes]:
    file.seek(offset)
    left = b""
    while piece := file.read(CHUNK_BYTES):
        head, newline, tail = piece.rpartition(b"\n")
        if not newline:
            left += piece
            if len(left) > MAX_FRAME_BYTES:
                raise SegmentError(Path(file.name), "has a line without end")
            continue
        yield left + head + newline
        left = tail
    if left:
        yield left


def _frames(file: BinaryIO, offset: int) -> Iterator[bytes]:
    path = Path(file.name)
    begin = place = 0
    decompressor = zstandard.ZstdDecompressor()
    for compressed, size in frame_table(path):
        if begin + size > offset:
            file.seek(place)
            try:
                text = decompressor.decompress(file.read(compressed), max_output_size=size)
            except zstandard.ZstdError as error:
                raise SegmentError(path, f"is damaged at byte {place}: {error}") from None
            if len(text) != size:
                raise SegmentError(path, f"is damaged at byte {place}: a frame has another length than the table")
            yield text[offset - begin :] if offset > begin else text
        begin += size
        place += compressed


def frame_table(path: Path) -> tuple[tuple[int, int], ...]:
    """Return the bytes of each frame, compressed and uncompressed. Raises SegmentError if they do not add up to the
    file."""
    status = path.stat()
    return _frame_table(path, status.st_size, (status.st_ino, status.st_mtime_ns))


@lru_cache(maxsize=64)
def _frame_table(path: Path, size: int, _version: tuple[int, int]) -> tuple[tuple[int, int], ...]:
    with path.open("rb") as file:
        if size < 17:
            raise SegmentError(path, "is too short for a compressed segment")
        file.seek(size - 9)
        count, flags, magic = struct.unpack("<IBI", file.read(9))
        table = 8 + 8 * count + 9
        if magic != _SEEKABLE or flags != 0 or table > size:
            raise SegmentError(path, "has no table of its frames at the end")
        file.seek(size - table)
        data = file.read(table)
    if struct.unpack_from("<II", data) != (_SKIPPABLE, table - 8):
        raise SegmentError(path, "has no table of its frames at the end")
    rows: tuple[tuple[int, int], ...] = tuple(struct.iter_unpack("<II", data[8:-9]))
    if sum(row[0] for row in rows) + table != size or any(row[1] > MAX_FRAME_BYTES for row in rows):
        raise SegmentError(path, "has a table of frames that does not fit it")
    return rows


def decompress(layout: Layout, segment: Segment) -> None:
    """Make a compressed segment plain again. After a crash one of the two files is complete. Raises SegmentError,
    OSError."""
    plain = layout.archived(segment.first, compressed=False)
    beside = plain.with_name(plain.name + ".new")
    beside.unlink(missing_ok=True)
    with os.fdopen(make(beside), "wb") as target:
        target.writelines(segment.chunks())
        target.flush()
        os.fsync(target.fileno())
    beside.replace(plain)
    sync(layout.segments)
    segment.path.unlink()


def compress(layout: Layout, first: int, lengths: list[int], must_end: Callable[[], bool] = lambda: False) -> bool:
    """Compress a full segment, a frame for each length in bytes of text, and delete its plain file. After a crash one
    of the two files is complete. Return False, with nothing done, if it `must_end` before. Raises SegmentError,
    OSError."""
    plain, final = layout.archived(first, compressed=False), layout.archived(first, compressed=True)
    if sum(lengths) != plain.stat().st_size:
        raise SegmentError(plain, "is not what its index says")
    compressor = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True)
    beside = final.with_name(final.name + ".new")
    rows = b""
    beside.unlink(missing_ok=True)
    with plain.open("rb") as source, os.fdopen(make(beside), "wb") as target:
        for length in lengths:
            if must_end():
                beside.unlink()
                return False
            frame = compressor.compress(source.read(length))
            target.write(frame)
            rows += struct.pack("<II", len(frame), length)
        target.write(struct.pack("<II", _SKIPPABLE, len(rows) + 9) + rows)
        target.write(struct.pack("<IBI", len(lengths), 0, _SEEKABLE))
        target.flush()
        os.fsync(target.fileno())
    beside.replace(final)
    sync(layout.segments)
    plain.unlink()
    return True
