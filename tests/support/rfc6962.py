"""Merkle trees as RFC 6962 defines them, by its words."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256


def root_of(leaves: Sequence[bytes]) -> bytes:
    """MTH of section 2.1, of leaves' hashes."""
    if len(leaves) < 2:
        return leaves[0] if leaves else sha256().digest()
    half = 1 << (len(leaves) - 1).bit_length() - 1
    return sha256(b"\1" + root_of(leaves[:half]) + root_of(leaves[half:])).digest()


def path_of(index: int, leaves: Sequence[bytes]) -> list[bytes]:
    """PATH of section 2.1.1, of leaves' hashes."""
    if len(leaves) < 2:
        return []
    half = 1 << (len(leaves) - 1).bit_length() - 1
    if index < half:
        return [*path_of(index, leaves[:half]), root_of(leaves[half:])]
    return [*path_of(index - half, leaves[half:]), root_of(leaves[:half])]


def leaf_of(entry: bytes) -> bytes:
    """The hash of a leaf."""
    return sha256(b"\0" + entry).digest()


def growth_of(old: int, leaves: Sequence[bytes], whole: bool = True) -> list[bytes]:
    """PROOF of section 2.1.2, of leaves' hashes: SUBPROOF with `whole`."""
    if old == len(leaves):
        return [] if whole else [root_of(leaves)]
    half = 1 << (len(leaves) - 1).bit_length() - 1
    if old <= half:
        return [*growth_of(old, leaves[:half], whole), root_of(leaves[half:])]
    return [*growth_of(old - half, leaves[half:], False), root_of(leaves[:half])]
