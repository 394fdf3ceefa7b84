"""The checkpoint of a batch and the proof of one message in it: made, and verified. docs/BATCHING.md has the formats.

A proof has one form only: what differs by a byte is refused, save its lines of signatures: a signed note may have
them in any order, twice, and of other names. hsmcore.tlog.proof reads it.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable

from hsmcore._native import freeze
from hsmcore.errors import InvalidMessageType
from hsmcore.tlog.note import ED25519, Note, NoteError, VerifierKey
from hsmcore.tlog.proof import BatchProof, shown


def checkpoint(domain: str, epoch: int, size: int, root: bytes, first: int, time_ns: int) -> bytes:
    """Return the text that is signed for a batch."""
    lines = (f"{domain}/{epoch}", size, b64encode(root).decode(), f"hsmcore/batch-root/v1 {first}", f"time {time_ns}")
    return "".join(f"{line}\n" for line in lines).encode()


def signer(text: bytes, public_key: bytes) -> VerifierKey:
    """Return the key of a checkpoint, which has the origin for its name."""
    return VerifierKey(text.partition(b"\n")[0].decode(), ED25519, public_key)


def read(public_key: bytes, message: object, proof: object) -> BatchProof | None:
    """Return what a proof says of a message; None unless this key signed the root, and the message is in its batch.
    Raises InvalidMessageType."""
    found = signed_by(message, proof, [public_key])
    return None if found is None else found[1]


def signed_by(message: object, proof: object, public_keys: Iterable[bytes]) -> tuple[bytes, BatchProof] | None:
    """As `read`, for the first of several keys that signed the root: the key, and what the proof says. A wrong
    signature of any of them spoils the proof."""
    found = shown(_bytes(message), _bytes(proof))
    if found is None:
        return None
    try:
        keys = [signer(found.text, key) for key in public_keys if len(key) == 32]
        signed = Note.parse(found.note).signers(keys)
    except NoteError:
        return None
    return (signed[0].public_key, found.says) if signed else None


def verify_batched(
    public_key: bytes,
    message: object,
    proof: object,
    *,
    domain: str | None = None,
    kind: str | None = None,
    epoch: int | None = None,
) -> bool:
    """Return whether a proof shows that a message is in a batch whose root this Ed25519 key signed. `domain`, `kind`,
    `epoch`: it must be of this one; a key that serves several domains signs for each. In software; opens nothing.
    Raises InvalidMessageType."""
    found = read(public_key, message, proof)
    if found is None:
        return False
    return domain in (None, found.domain) and kind in (None, found.kind) and epoch in (None, found.epoch)


def _bytes(value: object) -> bytes:
    data = freeze(value)
    if not isinstance(data, bytes):
        raise InvalidMessageType("a digest has no place in a batch")
    return data
