"""Checking Merkle proofs, by the algorithms of RFC 9162 sections 2.1.3.2 and 2.1.4.2 (the trees of RFC 6962)."""

from __future__ import annotations

from collections.abc import Sequence

from hsmcore._native import MerkleTree


class ProofError(ValueError):
    """A proof does not show what it should; the text says why."""


def root_of_inclusion(leaf: bytes, index: int, size: int, path: Sequence[bytes]) -> bytes:
    """The root of the tree of `size` records in which `leaf` is record `index` (from 0), if `path` is its proof. Raises
    ProofError if it cannot be one."""
    if not 0 <= index < size:
        raise ProofError(f"there is no record {index} among {size}")
    hasher = MerkleTree()
    node, last, root = index, size - 1, leaf
    for item in path:
        if last == 0:
            raise ProofError("the proof is too long")
        if node & 1 or node == last:
            root = hasher.node(item, root)
            while not node & 1 and node:
                node, last = node >> 1, last >> 1
        else:
            root = hasher.node(root, item)
        node, last = node >> 1, last >> 1
    if last:
        raise ProofError("the proof is too short")
    return root


def check_consistency(old: int, old_root: bytes, new: int, new_root: bytes, path: Sequence[bytes]) -> None:
    """Raise ProofError unless `path` proves that the tree of `new` records begins with that of `old`."""
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
    for item in nodes[1:]:
        if last == 0:
            raise ProofError("the proof is too long")
        if node & 1 or node == last:
            first, second = hasher.node(item, first), hasher.node(item, second)
            while not node & 1 and node:
                node, last = node >> 1, last >> 1
        else:
            second = hasher.node(second, item)
        node, last = node >> 1, last >> 1
    if last:
        raise ProofError("the proof is too short")
    return first, second
