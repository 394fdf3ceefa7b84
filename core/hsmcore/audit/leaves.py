"""The leaves of batches in separate files: with them, each proof can be made again.

A line is one batch, as JSON: `note`, its signed checkpoint; `leaves`, in base64: for each the kind, the SHA-256 of the
message, and the blinder if there is one; and `callers`: each caller with the number of its leaves, in their order, or
null. Each process begins new files, named after domain, epoch and first index, and with a part that is random: key
managers may share a folder, and even a domain.
"""

from __future__ import annotations

from base64 import b64encode
from pathlib import Path
from secrets import token_hex
from urllib.parse import quote

import orjson

from hsmcore.base.files import append, write_new
from hsmcore.base.ownership import make_folder, sync
from hsmcore.errors import AuditUnavailable

MOST_BYTES = 1 << 28


class LeafFiles:
    """Writes into one folder. One thread at a time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path: Path | None = None

    def keep(self, first: int, note: bytes, leaves: bytes, callers: list[tuple[str | None, int]]) -> None:
        """Add a batch; it is durable when this returns. Raises AuditUnavailable."""
        kept = {"note": note.decode(), "leaves": b64encode(leaves).decode(), "callers": callers}
        line = orjson.dumps(kept) + b"\n"
        try:
            if self._path is None or self._path.stat().st_size + len(line) > MOST_BYTES:
                domain, _, epoch = note.partition(b"\n")[0].decode().rpartition("/")
                name = f"{quote(domain, safe='')}-{epoch}-{first:019d}-{token_hex(4)}.jsonl"
                path = self._folder / name
                make_folder(self._folder, parents=True)
                write_new(path, b"")
                sync(self._folder)
                self._path = path
            append(self._path, line, durable=True)
        except OSError as error:
            self._path = None  # a line may be cut off
            raise AuditUnavailable(f"the leaves of a batch cannot be kept: {error.strerror}") from None
