"""Proofs that need no log: inclusion of a record (C2SP tlog-proof), and consistency with an older checkpoint."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from hsmcore._native import MerkleTree
from hsmcore.audit.layout import Layout
from hsmcore.audit.query import find
from hsmcore.audit.tiles import Tiles
from hsmcore.errors import BadArgument
from hsmcore.tlog.checkpoint import Checkpoint
from hsmcore.tlog.consistency import PROOF, check_consistency, growth, inclusion
from hsmcore.tlog.note import Note, NoteError, VerifierKey
from hsmcore.tlog.proof import ProofError, root_of_inclusion

_MAX_PATH: Final = 64


@dataclass(frozen=True, slots=True)
class Proven:
    """The content of a verified proof. `line`: the record; `keys`: those that signed the checkpoint."""

    seq: int
    line: bytes
    checkpoint: Checkpoint
    keys: tuple[VerifierKey, ...]


def latest(layout: Layout) -> Checkpoint:
    """Return the newest checkpoint; its signature is not verified. Raises BadArgument."""
    try:
        return Checkpoint.parse(layout.checkpoint.read_bytes())
    except FileNotFoundError:
        raise BadArgument(f"audit log {layout.log} has no checkpoint yet") from None
    except NoteError as error:
        raise BadArgument(f"{layout.checkpoint}: {error}") from None


def inclusion_proof(layout: Layout, seq: int) -> bytes:
    """Return a tlog-proof that the newest checkpoint covers record `seq`, with the record as its `extra` data unless it
    was pruned. Raises BadArgument, TileError, SegmentError, OSError; ProofError if the log contradicts itself."""
    checkpoint = latest(layout)
    if not 1 <= seq <= checkpoint.size:
        raise BadArgument(f"record {seq} is not among the {checkpoint.size} records of the newest checkpoint")
    tiles = Tiles(layout, checkpoint.size)
    line = find(layout, seq)
    path = tiles.inclusion(seq - 1)
    leaf = tiles.leaf(seq - 1)
    if line is not None and MerkleTree().leaf(line) != leaf:
        raise ProofError(f"record {seq} was changed: it is not the one that was sealed")
    if root_of_inclusion(leaf, seq - 1, checkpoint.size, path) != checkpoint.root:
        raise ProofError("the tiles do not belong to the checkpoint")
    return inclusion(seq - 1, path, checkpoint.note, line)


def check_inclusion(proof: bytes, keys: Sequence[VerifierKey], line: bytes | None = None) -> Proven:
    """Verify a tlog-proof whose checkpoint is signed by one of `keys`. `line`: the record, if the proof does not carry
    it. Raises ProofError."""
    head, _, note = proof.partition(b"\n\n")
    try:
        lines = head.decode("ascii").split("\n")
        checkpoint = Checkpoint.parse(note)
        signers = Note.parse(note).signers(keys)
        if lines.pop(0) != PROOF:
            raise ProofError("not a tlog-proof")
        if lines and lines[0].startswith("extra "):
            carried = base64.b64decode(lines.pop(0).removeprefix("extra "), validate=True)
            if line is not None and line != carried:
                raise ProofError("the proof is about another record")
            line = carried
        if not lines or not lines[0].startswith("index ") or not (number := lines.pop(0)[6:]).isdigit():
            raise ProofError("not a tlog-proof: the index is missing")
        path = [base64.b64decode(item, validate=True) for item in lines]
    except (NoteError, UnicodeDecodeError, binascii.Error) as error:
        raise ProofError(str(error)) from None
    if not signers:
        raise ProofError("the checkpoint in the proof is not signed by a key that is trusted")
    if line is None:
        raise ProofError("the proof does not carry the record: give it")
    if len(path) > _MAX_PATH or any(len(item) != 32 for item in path):
        raise ProofError("not a tlog-proof: hashes of 32 bytes are needed")
    index = int(number)
    if root_of_inclusion(MerkleTree().leaf(line), index, checkpoint.size, path) != checkpoint.root:
        raise ProofError("the record is not in the log of the checkpoint")
    return Proven(index + 1, line, checkpoint, tuple(signers))


def consistency_proof(layout: Layout, old: Checkpoint) -> bytes:
    """Return a proof that the log extends `old`, in the form of C2SP tlog-witness: `old <size>`, hashes, a blank line,
    the newest checkpoint. Raises BadArgument, TileError, OSError; ProofError if the log does not extend it."""
    checkpoint = latest(layout)
    if old.origin != checkpoint.origin:
        raise BadArgument(f"the checkpoint is of the log {old.origin}, this one is {checkpoint.origin}")
    if old.size > checkpoint.size:
        raise ProofError(f"the log has {checkpoint.size} records, but had {old.size}")
    path = Tiles(layout, checkpoint.size).consistency(old.size)
    check_consistency(old.size, old.root, checkpoint.size, checkpoint.root, path)
    return growth(old.size, path, checkpoint.note)
