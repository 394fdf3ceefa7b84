"""The audit log for a console: its newest lines, and proofs that the reader can check without trusting the server."""

from __future__ import annotations

import base64
import os
from typing import Any, Final

from hsmcore.audit.check.prove import latest
from hsmcore.audit.layout import Layout
from hsmcore.audit.query import find, parsed
from hsmcore.audit.segment import SegmentError, segments
from hsmcore.audit.tiles import TileError, Tiles
from hsmcore.errors import BadArgument, HsmError

TAIL_LINES: Final = 40
_TAIL_BYTES: Final = 1 << 16


class NoProof(Exception):
    """The proof does not exist; the text says why."""


class NotSealed(NoProof):
    """The proof does not exist yet: the next checkpoint covers the record."""


def tail(layout: Layout, count: int = TAIL_LINES) -> list[dict[str, Any]]:
    """Return the newest records, oldest first: `seq`, and the line as it is in the file. Reads the disk; never
    raises."""
    try:
        lines: list[bytes] = []
        for segment in reversed(segments(layout)[-2:]):
            if segment.compressed:
                break
            with segment.opened() as file:
                start = max(file.seek(0, os.SEEK_END) - _TAIL_BYTES, 0)
                file.seek(start)
                text = file.read(_TAIL_BYTES)
            found = text.split(b"\n")[:-1]  # a line without a newline is not a record yet
            lines = (found[1:] if start else found) + lines
            if len(lines) >= count:
                break
    except OSError:
        return []
    return [shown for shown in map(_shown, lines[-count:]) if shown is not None]


def _shown(line: bytes) -> dict[str, Any] | None:
    record = parsed(line)
    return None if record is None else {"seq": record["seq"], "line": line.decode("utf-8", "replace")}


def line_of(layout: Layout, seq: int) -> dict[str, Any]:
    """Return one record. Raises NoProof."""
    try:
        line = find(layout, seq)
    except (OSError, SegmentError) as error:
        raise NoProof(f"the log cannot be read: {error}") from None
    if line is None:
        raise NoProof(f"there is no record {seq} in the log")
    return {"seq": seq, "line": line.decode("utf-8", "replace")}


def proof(layout: Layout, seq: int) -> dict[str, Any]:
    """Return a record, its inclusion proof (RFC 6962) against the newest checkpoint, that checkpoint, and the log's
    verifier keys.

    Nothing is checked here: the reader checks, and does not need to trust the server. Raises NoProof, NotSealed.
    """
    try:
        checkpoint = latest(layout)
        shown = line_of(layout, seq)
        if seq > checkpoint.size:
            raise NotSealed(f"record {seq} is not sealed yet: the newest checkpoint covers {checkpoint.size} records")
        path = Tiles(layout, checkpoint.size).inclusion(seq - 1)
        keys = layout.keys.read_text().split() if layout.keys.exists() else []
    except (BadArgument, HsmError) as error:
        raise NoProof(str(error)) from None
    except (OSError, TileError) as error:
        raise NoProof(f"the log cannot be read: {error}") from None
    note = checkpoint.note.decode("utf-8", "replace")
    return {**shown, "checkpoint": note, "path": [_base64(item) for item in path], "keys": keys}


def consistency(layout: Layout, old: int, size: int) -> dict[str, Any]:
    """Return the hashes (RFC 6962 section 2.1.2) which prove that the log of `size` records begins with that of `old`
    ones. Nothing is checked here. Raises NoProof."""
    try:
        newest = latest(layout).size
        if not 1 <= old <= size <= newest:
            raise NoProof(f"the newest checkpoint covers {newest} records: there is no way from {old} to {size}")
        path = Tiles(layout, size).consistency(old)
    except (OSError, TileError, HsmError) as error:
        raise NoProof(f"the log cannot be read: {error}") from None
    return {"old": old, "size": size, "path": [_base64(item) for item in path]}


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
