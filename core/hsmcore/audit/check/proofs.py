"""Checks Merkle proofs by the algorithms of RFC 9162, sections 2.1.3.2 and 2.1.4.2, for the trees of RFC 6962."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from hsmcore._native import MerkleTree


class ProofError(ValueError):
    """A proof is invalid; the text says why."""


def root_of_inclusion(leaf: bytes, index: int, size: int, path: Sequence[bytes]) -> bytes:
    """Return the root of the tree of `size` records that the inclusion proof `path` gives for `leaf` at `index` (from
    0). Raises ProofError if the proof has another length."""
    if not 0 <= index < size:
        raise ProofError(f"there is no record {index} among {size}")
    hasher, root = MerkleTree(), leaf
    for item, left in _siblings(index, size - 1, path):
        root = hasher.node(item, root) if left else hasher.node(root, item)
    return root


def _siblings(node: int, last: int, path: Sequence[bytes]) -> Iterator[tuple[bytes, bool]]:
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
    for item, left in _siblings(node, last, nodes[1:]):
        if left:
            first = hasher.node(item, first)
        second = hasher.node(item, second) if left else hasher.node(second, item)
    return first, second
