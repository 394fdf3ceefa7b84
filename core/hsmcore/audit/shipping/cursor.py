"""Progress of a destination, stored in the log's folder."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import orjson

from hsmcore.audit.layout import Layout
from hsmcore.audit.query import find
from hsmcore.base.files import replace
from hsmcore.base.log import get_logger
from hsmcore.tlog.checkpoint import Checkpoint
from hsmcore.tlog.note import NoteError

_MAX_BYTES: Final = 4096


@dataclass(frozen=True, slots=True)
class Cursor:
    """The destination has every record up to `seq`, whose line has the digest `sha256`. When it was stored, a
    checkpoint covered the records up to `sealed`, so a power failure cannot remove them."""

    seq: int = 0
    sha256: str = ""
    sealed: int = 0


class CursorFile:
    """The file of a cursor. Each `identity` has its own file: a new log group gets the log from its beginning."""

    def __init__(self, layout: Layout, kind: str, identity: str) -> None:
        self._layout, self._identity = layout, identity
        digest = hashlib.sha256(identity.encode()).hexdigest()[:12]
        self._path = layout.shipping / f"{kind}-{digest}.json"
        self.lock = layout.shipping / f"{kind}-{digest}.lock"

    def load(self) -> Cursor:
        """Return the stored cursor. It is moved back to `sealed` if the log is another one: a power failure may remove
        unsealed records, and others then get their sequence numbers. Raises SegmentError, OSError."""
        found = _parsed(self._path)
        if found is None or found.seq == 0:
            return Cursor()
        line = find(self._layout, found.seq)
        if line is not None and hashlib.sha256(line).hexdigest() == found.sha256:
            return found
        if line is None and found.seq <= found.sealed:
            return found  # pruned
        get_logger().error(
            "the log is not the one that was shipped: what came after its last checkpoint is shipped again",
            destination=self._identity,
            seq=found.seq,
            again_from=found.sealed + 1,
        )
        return Cursor(found.sealed, "", found.sealed)

    def store(self, seq: int, line: bytes) -> None:
        """Store, durably, that the destination has every record up to `seq`. Raises OSError."""
        cursor = {
            "destination": self._identity,
            "seq": seq,
            "sha256": hashlib.sha256(line).hexdigest(),
            "sealed": min(seq, _sealed(self._layout)),
        }
        replace(self._path, orjson.dumps(cursor) + b"\n")


def _parsed(path: Path) -> Cursor | None:
    """Return the cursor of a file; None if it is missing or invalid: then everything is shipped again."""
    try:
        with path.open("rb") as file:
            value = orjson.loads(file.read(_MAX_BYTES))
        seq, digest, sealed = value["seq"], value["sha256"], value["sealed"]
    except FileNotFoundError:
        return None
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return None
    good = type(seq) is int and type(sealed) is int and type(digest) is str and 0 <= sealed <= seq < 1 << 63
    return Cursor(seq, digest, sealed) if good else None


def _sealed(layout: Layout) -> int:
    try:
        return Checkpoint.parse(layout.checkpoint.read_bytes()).size
    except (FileNotFoundError, NoteError):
        return 0
