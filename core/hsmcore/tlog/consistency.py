"""Consistency proofs for the trees of RFC 6962: checked by the algorithm of RFC 9162, section 2.1.4.2, and written as a
witness wants them; and how a proof of inclusion is written."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Final

from hsmcore._native import MerkleTree
from hsmcore.tlog.proof import ProofError, siblings

PROOF: Final = "c2sp.org/tlog-proof@v1"
"""The first line of a proof of inclusion."""


def growth(old: int, path: Sequence[bytes], note: bytes) -> bytes:
    """Return the request that C2SP tlog-witness defines: that the tree of a checkpoint extends one of `old` records."""
    lines = [f"old {old}", *(base64.b64encode(item).decode() for item in path), "", ""]
    return "\n".join(lines).encode() + note


def inclusion(index: int, path: Sequence[bytes], note: bytes, extra: bytes | None = None) -> bytes:
    """Return what C2SP tlog-proof defines: that the record with this index is in the tree of a checkpoint. `extra`: the
    record."""
    told = [] if extra is None else [f"extra {base64.b64encode(extra).decode()}"]
    hashes = (base64.b64encode(item).decode() for item in path)
    return "\n".join([PROOF, *told, f"index {index}", *hashes, "", ""]).encode() + note


def check_consistency(old: int, old_root: bytes, new: int, new_root: bytes, path: Sequence[bytes]) -> None:
    """Raise ProofError unless `path` proves that the tree of `new` records extends the tree of `old` records."""
    if old > new:
        raise ProofError(f"{old} records cannot be the beginning of {new}")
    if old in (0, new):
        if path or (old == new and old_root != new_root):
            raise ProofError("two trees of one size have different roots" if not path else "the proof is too long")
        return
    first, second = _roots_of_consistency(old, new, [old_root, *path] if old & (old - 1) == 0 else list(path))
    if first != old_root:
        raise ProofError("the proof does not lead to the older root")
    if second != new_root:
        raise ProofError("the proof does not lead to the newer root")


def _roots_of_consistency(old: int, new: int, nodes: list[bytes]) -> tuple[bytes, bytes]:
    if not nodes:
        raise ProofError("the proof is too short")
    hasher = MerkleTree()
    node, last = old - 1, new - 1
    while node & 1:
        node, last = node >> 1, last >> 1
    first = second = nodes[0]
    for item, left in siblings(node, last, nodes[1:]):
        if left:
            first = hasher.node(item, first)
        second = hasher.node(item, second) if left else hasher.node(second, item)
    return first, second
