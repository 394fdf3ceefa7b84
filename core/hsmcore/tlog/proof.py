"""Where a Merkle proof leads, and what a C2SP tlog-proof of a batched message says, but for its signature.

docs/BATCHING.md has the form. Needs no native core: hsmcore.tlog.batch_proof verifies signatures.
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


class ProofParts(NamedTuple):
    """A proof as it is written. Nothing in it is compared with anything else yet."""

    extra: bytes
    """Kind, number in the domain, and blinder if there is one."""
    place: int
    """The leaf's index in its tree."""
    path: list[bytes]
    text: bytes
    """Of the checkpoint, which `note` has with signatures. What follows stands in it."""
    domain: str
    epoch: int
    size: int
    root: bytes
    first: int
    time_ns: int
    note: bytes

    @property
    def kind(self) -> str:
        """The kind of the message; "": no kind has the number."""
        return KINDS[self.extra[0]] if self.extra[0] < len(KINDS) else ""

    @property
    def is_placed(self) -> bool:
        """Whether kind, place and numbers fit together."""
        number = int.from_bytes(self.extra[1:9], "big")
        return self.kind != "" and self.place < self.size and number == self.first + self.place

    @property
    def says(self) -> BatchProof:
        """The statement of the proof, if it holds."""
        index = self.first + self.place
        return BatchProof(self.domain, self.epoch, index, self.kind, self.size, self.root, self.time_ns)


def parts_of(proof: bytes) -> ProofParts | None:
    """Return the parts of a proof; None for what has not its form."""
    found = _FORM.fullmatch(proof) if len(proof) <= MOST_BYTES else None
    if found is None:
        return None
    epoch, size, first, time_ns = (int(found[group]) for group in (6, 7, 9, 10))
    path, root = list(map(a2b_base64, found[3].split())), a2b_base64(found[8])
    head = a2b_base64(found[1]), int(found[2]), path, found[4], found[5].decode()
    return ProofParts(*head, epoch, size, root, first, time_ns, proof[found.start(4) :])


def shown(message: bytes, proof: bytes) -> ProofParts | None:
    """Return the parts of a proof, signed or not; None unless its path leads from the message to the root."""
    one = parts_of(proof)
    if one is None or not one.is_placed:
        return None
    try:
        if root_of_inclusion(leaf_of(one.extra, message), one.place, one.size, one.path) != one.root:
            return None
    except ProofError:
        return None
    return one


def leaf_of(extra: bytes, message: bytes) -> bytes:
    """Return the hash of a message's leaf. `extra`: as in ProofParts."""
    return hashlib.sha256(b"\0" + extra[:9] + hashlib.sha256(message).digest() + extra[9:]).digest()


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
