"""The leaves of batches in separate files, and the proofs that are made again from them.

A line is one batch, as JSON: `note`, its signed checkpoint; `leaves`, in base64: for each the kind, the SHA-256 of the
message, and the blinder if there is one; and `callers`: each caller with the number of its leaves, in their order, or
null. Each process begins new files, named after domain, epoch and first index, and with a part that is random: key
managers may share a folder, and even a domain.
"""

from __future__ import annotations

import os
import re
from base64 import b64decode, b64encode
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path
from secrets import token_hex
from typing import Any, Final
from urllib.parse import quote

import orjson

from hsmcore._native import Leaves
from hsmcore.base.files import append, write_new
from hsmcore.base.ownership import make_folder, sync
from hsmcore.errors import AuditUnavailable, BadArgument
from hsmcore.tlog.batch_proof import signer
from hsmcore.tlog.note import Note
from hsmcore.tlog.proof import parts_of

MOST_BYTES = 1 << 28
_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
"""No pipe makes it wait."""


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


def proof_again(folder: Path, domain: str, index: int, public_keys: Collection[bytes]) -> bytes:
    """Return the proof of the message with a number in a domain, byte for byte as it was. Who can write the files can
    take a proof away, and make none: one of `public_keys` must have signed it. Blocks. Raises BadArgument if no batch
    that is kept has the number, AuditUnavailable."""
    try:
        for path in _files(folder, domain, index):
            with os.fdopen(os.open(path, _READ), "rb") as file:
                while line := file.readline(MOST_BYTES):
                    proof = _proof_of(line, domain, index, public_keys)
                    if proof is not None:
                        return proof
    except OSError as error:
        raise AuditUnavailable(f"the leaves of batches cannot be read: {error.strerror}") from None
    raise BadArgument(
        f"no batch of domain {domain} that is kept, and that a known key signed, has number {index}",
        hint="Was the batch signed with batching.keepLeaves, and is its file in that folder?",
    )


def _files(folder: Path, domain: str, index: int) -> Iterator[Path]:
    """The files in which a number may be, the likeliest first."""
    form = re.compile(re.escape(quote(domain, safe="")) + r"-[0-9]{1,19}-([0-9]{19})-[0-9a-f]{8}\.jsonl")
    found = [(int(named[1]), path) for path in folder.iterdir() if (named := form.fullmatch(path.name))]
    yield from (path for first, path in sorted(found, reverse=True) if first <= index)


def _proof_of(line: bytes, domain: str, index: int, public_keys: Collection[bytes]) -> bytes | None:
    """Return a proof from a line, which may hold anything; None: it has none."""
    with suppress(ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, MemoryError, BadArgument):
        kept: dict[str, Any] = orjson.loads(line)
        note = kept["note"].encode()
        text = Note.parse(note).text
        _, size, _, first, *_ = text.decode().split("\n")
        count, begin = int(size), int(first.rpartition(" ")[2])
        if begin <= index < begin + count and Note.parse(note).signers(signer(text, key) for key in public_keys):
            batch = Leaves()
            batch.restore(b64decode(kept["leaves"]), count)
            root = batch.build(begin, blind=False)
            batch.signed(note, "", b"", None)
            proof = batch.proof(index - begin)
            found = parts_of(proof)
            if found is not None and (found.domain, found.root) == (domain, root):
                return proof
    return None
