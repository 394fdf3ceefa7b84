"""A witness of others' logs (C2SP tlog-witness): it cosigns the checkpoint of a log that has only grown since the last
one that it cosigned, and forgets none of them."""

from __future__ import annotations

import base64
import binascii
import hashlib
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from hsmcore.audit.signers import FileSigner
from hsmcore.base.files import replace
from hsmcore.base.ownership import make_folder
from hsmcore.tlog.checkpoint import Checkpoint
from hsmcore.tlog.consistency import check_consistency
from hsmcore.tlog.note import COSIGNATURE, Note, NoteError, VerifierKey, cosignature_text, signature_line
from hsmcore.tlog.proof import ProofError

MOST_HASHES: Final = 63
_HASH_BYTES: Final = 32


class WitnessAnswer(NamedTuple):
    """An answer of HTTP."""

    status: int
    content: bytes
    media_type: str = "text/plain"


class LogWitness:
    """Keeps its key, and the newest checkpoint of each log, in a folder. From any thread; blocks on the disk."""

    def __init__(self, folder: Path, name: str, logs: Sequence[VerifierKey]) -> None:
        """`logs`: the keys of the logs that it cosigns, by the origins that are their names; a log may have several.
        Makes what is missing. Raises OSError, AuditUnavailable for a file of the key that cannot be used."""
        make_folder(folder)
        self._folder, self._logs = folder, tuple(logs)
        self._signer = FileSigner.load(folder / "key", name)
        self.key = VerifierKey(name, COSIGNATURE, self._signer.key.public_key)
        """Who trusts the witness needs it."""
        self._one = threading.Lock()

    def add(self, body: bytes) -> WitnessAnswer:
        """Answer a request of `add-checkpoint`. Raises OSError, NoteError if what it remembers is damaged."""
        try:
            old, path, checkpoint = _parsed(body)
        except (ValueError, binascii.Error) as error:  # NoteError is one
            return WitnessAnswer(400, f"{error}\n".encode())
        keys = [key for key in self._logs if key.name == checkpoint.origin]
        if not keys:
            return WitnessAnswer(404, b"this witness does not know the log\n")
        try:
            if not Note.parse(checkpoint.note).signers(keys):
                return WitnessAnswer(403, b"no key of the log that this witness knows has signed\n")
        except NoteError as error:
            return WitnessAnswer(403, f"{error}\n".encode())
        with self._one:
            return self._judged(old, path, checkpoint)

    def _judged(self, old: int, path: Sequence[bytes], new: Checkpoint) -> WitnessAnswer:
        place = self._folder / hashlib.sha256(new.origin.encode()).hexdigest()
        seen = Checkpoint.parse(place.read_bytes()) if place.exists() else Checkpoint(new.origin, 0, b"")
        same = old == new.size == seen.size and new.size > 0
        if old != seen.size or (same and new.root != seen.root):
            return WitnessAnswer(409, b"%d\n" % seen.size, "text/x.tlog.size")
        try:
            check_consistency(old, seen.root, new.size, new.root, path)
        except ProofError as error:
            return WitnessAnswer(422, f"{error}\n".encode())
        if not same:
            replace(place, new.note)  # before the signature leaves: a witness that forgets may cosign two histories
        now = int(time.time())
        signature = self._signer.signature(cosignature_text(now, new.text))
        return WitnessAnswer(200, signature_line(self.key, now.to_bytes(8, "big") + signature))


def _parsed(body: bytes) -> tuple[int, list[bytes], Checkpoint]:
    head, blank, note = body.partition(b"\n\n")
    first, *lines = head.split(b"\n")
    size = first.removeprefix(b"old ")
    if not blank or size == first or not size.isdigit() or (size[:1] == b"0") != (size == b"0") or len(size) > 19:
        raise ValueError("not `old`, a size, hashes, a blank line and a checkpoint")
    path = [base64.b64decode(line, validate=True) for line in lines]
    if len(path) > MOST_HASHES or any(len(one) != _HASH_BYTES for one in path):
        raise ValueError(f"a proof has at most {MOST_HASHES} hashes, each of {_HASH_BYTES} bytes")
    checkpoint = Checkpoint.parse(note)
    if int(size) > checkpoint.size:
        raise ValueError("the checkpoint is of fewer records than the old one")
    return int(size), path, checkpoint
