"""Where a Merkle proof leads, and what a C2SP tlog-proof of a batched message says, but for its signature.

docs/BATCHING.md has the form. Needs no native core: hsmcore.tlog.batch_proof and hsmcore.gateway.wire.batched verify
signatures, each with its own means.
"""

from __future__ import annotations

import hashlib
import re
from binascii import a2b_base64
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

KINDS: Final[Sequence[str]] = ("", "tx-legacy", "tx-v0", "tx-v1", "off-chain", "", "", "digest32", "raw")
"""Names of kinds by the number in a leaf; "": no kind has the number."""
MOST_BYTES: Final = 1 << 16
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


class ProofError(ValueError):
    """A proof is invalid; the text says why."""


@dataclass(frozen=True, slots=True)
class BatchProof:
    """The statement of a valid proof of a batched message."""

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


class Shown(NamedTuple):
    """The statement of a proof, if its checkpoint is signed. `text`: of the checkpoint, which `note` has with
    signatures."""

    says: BatchProof
    text: bytes
    note: bytes


def shown(message: bytes, proof: bytes) -> Shown | None:
    """Return what a proof says of a message; None unless its path leads from the message to the root."""
    found = _FORM.fullmatch(proof) if len(proof) <= MOST_BYTES else None
    if found is None:
        return None
    epoch, size, first, time_ns = (int(found[group]) for group in (6, 7, 9, 10))
    extra, index = a2b_base64(found[1]), int(found[2])
    kind = KINDS[extra[0]] if extra[0] < len(KINDS) else ""
    if not kind or index >= size or int.from_bytes(extra[1:9], "big") != first + index:
        return None
    digest = hashlib.sha256(message).digest()
    leaf = hashlib.sha256(b"\0" + extra[:9] + digest + extra[9:]).digest()
    root = a2b_base64(found[8])
    try:
        if root_of_inclusion(leaf, index, size, list(map(a2b_base64, found[3].split()))) != root:
            return None
    except ProofError:
        return None
    says = BatchProof(found[5].decode(), epoch, first + index, kind, size, root, time_ns)
    return Shown(says, found[4], proof[found.start(4) :])


def root_of_inclusion(leaf: bytes, index: int, size: int, path: Sequence[bytes]) -> bytes:
    """Return the root of the tree of `size` records that the inclusion proof `path`, hashes of 32 bytes, gives for
    `leaf` at `index` (from 0). RFC 9162, section 2.1.3.2. Raises ProofError if the proof has another length."""
    if not 0 <= index < size:
        raise ProofError(f"there is no record {index} among {size}")
    root = leaf
    for item, left in siblings(index, size - 1, path):
        root = hashlib.sha256(b"\1" + item + root if left else b"\1" + root + item).digest()
    return root


def siblings(node: int, last: int, path: Sequence[bytes]) -> Iterator[tuple[bytes, bool]]:
    """Walk from `node` to the root of a level whose last node is `last`. Yield each hash of the path and whether it
    stands left of the node. Raises ProofError if the path has another length."""
    for item in path:
        if last == 0:
            raise ProofError("the proof is too long")
        left = bool(node & 1) or node == last
        yield item, left
        if left:
            while not node & 1 and node:
                node, last = node >> 1, last >> 1
        node, last = node >> 1, last >> 1
    if last:
        raise ProofError("the proof is too short")
