"""The checkpoint of a batch and the proof of one message in it: made, and verified. docs/BATCHING.md has the formats.

A proof has one form only: what differs by a byte is refused, save signatures of other names, which a signed note may
have.
"""

from __future__ import annotations

import hashlib
import re
from base64 import b64encode
from binascii import a2b_base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from hsmcore._native import freeze
from hsmcore.audit.note import ED25519, Note, NoteError, VerifierKey
from hsmcore.errors import InvalidMessageType

KINDS: Final[Sequence[str]] = ("", "tx-legacy", "tx-v0", "tx-v1", "off-chain", "", "", "digest32", "raw")
"""By the number in a leaf; "" is of none."""
_MOST_BYTES: Final = 1 << 16
_LAST: Final = rb"[AEIMQUYcgkosw048]="
"""The end of 32 bytes in base64, whose last two bits are 0."""
_HASH: Final = rb"[A-Za-z0-9+/]{42}" + _LAST
_NUMBER: Final = rb"(0|[1-9][0-9]{0,18})\n"
_FORM: Final = re.compile(
    rb"c2sp\.org/tlog-proof@v1\nextra ([A-Za-z0-9+/]{12}|[A-Za-z0-9+/]{54}" + _LAST + rb")\n"
    rb"index " + _NUMBER + rb"((?:" + _HASH + rb"\n){0,63})\n"
    rb"(([!-*,-~]{1,64})/" + _NUMBER + _NUMBER + rb"(" + _HASH + rb")\n"
    rb"hsmcore/batch-root/v1 " + _NUMBER + rb"time " + _NUMBER + rb")\n.+",
    re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class BatchProof:
    """What a valid proof says."""

    domain: str
    epoch: int
    index: int
    """The message's number in the domain."""
    kind: str
    size: int
    """Messages in the batch."""
    root: bytes
    time_ns: int
    """When the batch was closed, by the signer's clock: Unix time."""


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
    found = _FORM.fullmatch(_bytes(proof)) if len(_bytes(proof)) <= _MOST_BYTES else None
    if found is None or len(public_key) != 32:
        return None
    domain = found[5].decode()
    epoch, size, first, time_ns = (int(found[group]) for group in (6, 7, 9, 10))
    extra, index = a2b_base64(found[1]), int(found[2])
    kind = KINDS[extra[0]] if extra[0] < len(KINDS) else ""
    if not kind or index >= size or int.from_bytes(extra[1:9], "big") != first + index:
        return None
    digest = hashlib.sha256(_bytes(message)).digest()
    leaf = hashlib.sha256(b"\0" + extra[:9] + digest + extra[9:]).digest()
    root = a2b_base64(found[8])
    if _root(leaf, index, size - 1, list(map(a2b_base64, found[3].split()))) != root:
        return None
    try:
        signed = Note.parse(found[0][found.start(4) :]).signers([signer(found[4], public_key)])
    except NoteError:
        return None
    return BatchProof(domain, epoch, first + index, kind, size, root, time_ns) if signed else None


def verify_batched(
    public_key: bytes, message: object, proof: object, *, domain: str | None = None, kind: str | None = None
) -> bool:
    """Return whether a proof shows that a message is in a batch whose root this Ed25519 key signed. `domain`, `kind`:
    it must be of this one. In software; opens nothing. Raises InvalidMessageType."""
    found = read(public_key, message, proof)
    return found is not None and domain in (None, found.domain) and kind in (None, found.kind)


def _root(node: bytes, index: int, last: int, path: Sequence[bytes]) -> bytes | None:
    """Return the root that a path leads to (RFC 9162, section 2.1.3.2); None if it has another length."""
    for sibling in path:
        if not last:
            return None
        if index & 1 or index == last:
            node = hashlib.sha256(b"\1" + sibling + node).digest()
            while not index & 1 and index:
                index, last = index >> 1, last >> 1
        else:
            node = hashlib.sha256(b"\1" + node + sibling).digest()
        index, last = index >> 1, last >> 1
    return None if last else node


def _bytes(value: object) -> bytes:
    data = freeze(value)
    if not isinstance(data, bytes):
        raise InvalidMessageType("a digest has no place in a batch")
    return data
