"""C2SP checkpoints: a log's size and root hash as a signed note; and the file of all checkpoints."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hsmcore.tlog.note import Note, NoteError

_SIZE = re.compile(rb"0|[1-9][0-9]{0,18}")
MAX_HISTORY_BYTES = 1 << 30
MOST_RECORDS = (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The tree of the log `origin` at `size` records. `note`: the signed note; empty before it is signed."""

    origin: str
    size: int
    root: bytes
    note: bytes = b""

    @property
    def text(self) -> bytes:
        """The text that is signed."""
        return b"%s\n%d\n%s\n" % (self.origin.encode(), self.size, base64.b64encode(self.root))

    @classmethod
    def parse(cls, data: bytes) -> Checkpoint:
        """Parse a signed note without verifying its signatures. Raises NoteError."""
        lines = Note.parse(data).text.split(b"\n")
        if len(lines) < 4 or not lines[0] or _SIZE.fullmatch(lines[1]) is None or len(lines[2]) != 44:
            raise NoteError("not a checkpoint: origin, size and root are needed")
        try:
            root = base64.b64decode(lines[2], validate=True)
        except ValueError:
            raise NoteError("not a checkpoint: the root is not base64") from None
        if len(root) != 32 or base64.b64encode(root) != lines[2]:
            raise NoteError("not a checkpoint: the root is not 32 bytes")
        if int(lines[1]) > MOST_RECORDS:
            raise NoteError("not a checkpoint: no log has so many records")
        return cls(lines[0].decode(), int(lines[1]), root, data)


def history(path: Path) -> tuple[list[Checkpoint], int]:
    """Return all checkpoints of a file, oldest first, and the bytes that they take: a crash may have cut off the last
    one. Raises NoteError if the file holds anything else, OSError."""
    data = path.read_bytes() if path.exists() else b""
    if len(data) > MAX_HISTORY_BYTES:
        raise NoteError(f"{path} is too long")
    found = list(_notes(data))
    return [Checkpoint.parse(note) for note in found], sum(map(len, found)) + len(found)


def _notes(data: bytes) -> Iterator[bytes]:
    # A blank line follows each note, so texts and signatures alternate.
    parts = data.split(b"\n\n")
    for text, signatures in zip(parts[:-1:2], parts[1:-1:2], strict=False):
        yield text + b"\n\n" + signatures + b"\n"
