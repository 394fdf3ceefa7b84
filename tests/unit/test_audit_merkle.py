"""Tiles and proofs beside an implementation that isn't ours (pymerkle), and beside the definition in the standard."""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pymerkle import InclusionProof, InmemoryTree
from tests.support.size import share

from hsmcore._native import MerkleTree
from hsmcore.audit.layout import Layout
from hsmcore.audit.tiles import Tiles, TileWriter, split
from hsmcore.tlog.consistency import check_consistency
from hsmcore.tlog.proof import ProofError, root_of_inclusion

MOST = 1500
ENTRIES = [b"entry %d" % n for n in range(MOST)]
LEAVES = [hashlib.sha256(b"\0" + entry).digest() for entry in ENTRIES]


@pytest.fixture(scope="module")
def theirs() -> InmemoryTree:
    tree = InmemoryTree(algorithm="sha256")
    for entry in ENTRIES:
        tree.append_entry(entry)
    return tree


@pytest.fixture(scope="module")
def layout(tmp_path_factory) -> Layout:
    """Tiles of the whole tree, written in odd pieces, with partial ones on the way."""
    layout = Layout(tmp_path_factory.mktemp("tiles") / "log")
    layout.folder.mkdir()
    writer = TileWriter(layout, Tiles(layout, 0))
    done = 0
    for step in (1, 254, 1, 1, 300, 7, 512, MOST):
        writer.append(b"".join(LEAVES[done : done + step]))
        done = min(done + step, MOST)
        writer.finish()
    return layout


def mth(leaves: list[bytes]) -> bytes:
    """MTH of RFC 6962 section 2.1."""
    if len(leaves) == 1:
        return leaves[0]
    k = split(len(leaves))
    return hashlib.sha256(b"\1" + mth(leaves[:k]) + mth(leaves[k:])).digest()


def subproof(m: int, leaves: list[bytes], *, whole: bool) -> list[bytes]:
    """SUBPROOF of RFC 6962 section 2.1.2. pymerkle's own proofs go further down, so its paths are other ones."""
    if m == len(leaves):
        return [] if whole else [mth(leaves)]
    k = split(len(leaves))
    if m <= k:
        return [*subproof(m, leaves[:k], whole=whole), mth(leaves[k:])]
    return [*subproof(m - k, leaves[k:], whole=False), mth(leaves[:k])]


sizes = st.integers(1, MOST)


@given(sizes)
def test_roots_agree(layout, theirs, size):
    assert Tiles(layout, size).root() == theirs.get_root(size) == mth(LEAVES[:size])
    assert Tiles(layout, size).tree().root() == theirs.get_root(size)


@given(sizes, st.data())
def test_inclusion_proofs_agree(layout, theirs, size, data):
    index = data.draw(st.integers(0, size - 1))
    path = Tiles(layout, size).inclusion(index)
    reference = theirs.prove_inclusion(index + 1, size)
    assert [LEAVES[index], *path] == reference.path
    root = theirs.get_root(size)
    proof = InclusionProof("sha256", True, size, index + 1, reference.rule, [LEAVES[index], *path])
    proof.verify(LEAVES[index], root)
    assert root_of_inclusion(LEAVES[index], index, size, path) == root
    for wrong in (path[:-1], [*path, bytes(32)]):
        if wrong != path:
            with pytest.raises(ProofError):
                root_of_inclusion(LEAVES[index], index, size, wrong)
    assert root_of_inclusion(bytes(32), index, size, path) != root


@given(sizes, st.data())
def test_consistency_proofs_agree(layout, theirs, new, data):
    old = data.draw(st.integers(1, new))
    path = Tiles(layout, new).consistency(old)
    old_root, new_root = theirs.get_root(old), theirs.get_root(new)
    check_consistency(old, old_root, new, new_root, path)
    if old == new:
        assert path == []
        return
    assert path == subproof(old, LEAVES[:new], whole=True)
    place = data.draw(st.integers(0, len(path) - 1))
    changed = [*path[:place], bytes(32), *path[place + 1 :]]
    for wrong in (changed, path[:-1], [*path, bytes(32)]):
        with pytest.raises(ProofError):
            check_consistency(old, old_root, new, new_root, wrong)
    with pytest.raises(ProofError):
        check_consistency(old, bytes(32), new, new_root, path)


@given(st.lists(st.integers(1, 700), min_size=1, max_size=5))
@settings(max_examples=share(25))
def test_tiles_are_those_of_the_standard(steps):
    """However the records came, the tiles of level l are MTH(D[(n*256+i)*256**l : (n*256+i+1)*256**l])."""
    with tempfile.TemporaryDirectory() as folder:
        layout = Layout(Path(folder) / "log")
        layout.folder.mkdir()
        writer, size = TileWriter(layout, Tiles(layout, 0)), 0
        leaves = LEAVES * 3
        for step in steps:
            writer.append(b"".join(leaves[size : size + step]))
            writer.finish()
            size += step
            if step % 2:  # as after a restart
                writer = TileWriter(layout, Tiles(layout, size))
        for level in (0, 1):
            span = 256**level
            hashes = [mth(leaves[n * span : (n + 1) * span]) for n in range(size // span)]
            for number in range((len(hashes) + 255) // 256):
                part = hashes[number * 256 : (number + 1) * 256]
                assert layout.tile(level, number, len(part)).read_bytes() == b"".join(part)
        assert not layout.tile(2, 0).parent.exists() or size >= 65536


@pytest.mark.parametrize(
    ("number", "path"), [(0, "000"), (7, "007"), (999, "999"), (1000, "x001/000"), (1234067, "x001/x234/067")]
)
def test_tile_paths_are_those_of_the_standard(number, path):
    layout = Layout("a/audit.log")
    assert layout.tile(3, number) == Path("a/audit.log.d/tile/3") / path
    assert layout.tile(0, number, 17) == Path("a/audit.log.d/tile/0") / (path + ".p") / "17"


@given(st.binary(max_size=300), st.integers(0, 400), st.integers(0, 5), st.integers(1, 2**64 - 1))
def test_any_text_can_be_scanned(text, offset, lines, seq):
    tree = MerkleTree()
    if offset > len(text):
        with pytest.raises(ValueError, match="outside"):
            tree.scan(text, offset, seq, lines)
        return
    why, consumed, leaves, summary = tree.scan(text, offset, seq, lines)
    assert why in ("end", "limit", "torn", "foreign", "order", "long")
    assert consumed <= len(text) - offset
    assert len(leaves) == 32 * summary[0] == 32 * tree.size


def test_a_tree_needs_the_hashes_of_its_size():
    with pytest.raises(ValueError, match="96 bytes"):
        MerkleTree(7, bytes(64))
    with pytest.raises(ValueError, match="32 bytes"):
        MerkleTree().append(b"short")


def test_all_tiles_are_on_their_way_before_the_first_is_waited_for_and_on_the_disk_in_the_end(tmp_path, monkeypatch):
    begun, files, folders = [], [], []

    def fsync(descriptor: int) -> None:
        there = os.fstat(descriptor)
        if stat.S_ISDIR(there.st_mode):
            folders.append((there.st_ino, set(os.listdir(descriptor))))
        else:
            files.append((there.st_ino, len(begun)))

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "posix_fadvise", lambda descriptor, *_: begun.append(os.fstat(descriptor).st_ino))
    layout = Layout(tmp_path / "log")
    layout.folder.mkdir()
    writer = TileWriter(layout, Tiles(layout, 0))
    writer.append(b"".join(LEAVES))
    writer.finish()
    tiles = [path for path in layout.tiles.rglob("*") if path.is_file()]
    assert len(tiles) == MOST // 256 + 2  # and the two partial ones
    assert {inode for inode, _ in files} == set(begun) == {path.stat().st_ino for path in tiles}
    assert all(on_their_way == len(tiles) for _, on_their_way in files)
    for path in [*tiles, *(tile.parent for tile in tiles)]:
        assert any(inode == path.parent.stat().st_ino and path.name in names for inode, names in folders), path


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_files_that_wait_for_their_flush_are_bounded_and_closed(tmp_path):
    layout = Layout(tmp_path / "log")
    layout.folder.mkdir()
    before = descriptors()
    writer = TileWriter(layout, Tiles(layout, 0))
    writer.append(b"".join(LEAVES) * 20)
    assert descriptors() - before < 64
    writer.append(b"".join(LEAVES))
    writer.close()
    assert descriptors() == before
