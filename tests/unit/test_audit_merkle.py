"""Tiles and proofs beside an implementation that isn't ours (pymerkle), and beside the definition in the standard."""

from __future__ import annotations

import hashlib
import os
import struct
import tempfile
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pymerkle import InclusionProof, InmemoryTree
from tests.support.size import share

from hsmcore._native import MerkleTree, fnv1a
from hsmcore.audit import index
from hsmcore.audit.layout import Layout
from hsmcore.audit.sealer import Sealer
from hsmcore.audit.segment import Segment
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
    why, consumed, leaves, rows = tree.scan(text, offset, seq, lines)
    assert why in ("end", "limit", "torn", "foreign", "order", "long")
    assert consumed == sum(row[0] for row in rows) <= len(text) - offset
    assert len(leaves) == 32 * sum(row[1] for row in rows) == 32 * tree.size


def test_a_tree_needs_the_hashes_of_its_size():
    with pytest.raises(ValueError, match="96 bytes"):
        MerkleTree(7, bytes(64))
    with pytest.raises(ValueError, match="32 bytes"):
        MerkleTree().append(b"short")


def test_a_new_folder_of_tiles_is_on_the_disk_too(tmp_path, monkeypatch):
    """tests/native/test_audit_files.c sees the files themselves, and the folders they are in."""
    folders = []

    def fsync(folder: int) -> None:
        folders.append((os.fstat(folder).st_ino, {entry.name for entry in os.scandir(folder)}))

    monkeypatch.setattr(os, "fsync", fsync)
    layout = Layout(tmp_path / "log")
    layout.folder.mkdir()
    writer = TileWriter(layout, Tiles(layout, 0))
    writer.append(b"".join(LEAVES))
    writer.finish()
    made = [path for path in layout.tiles.rglob("*") if path.is_dir()]
    assert len(made) == 4  # of two levels, and of the partial tile of each
    for path in made:
        assert any(inode == path.parent.stat().st_ino and path.name in names for inode, names in folders), path


def test_tiles_that_cannot_be_written_are_told_and_written_later(tmp_path):
    layout = Layout(tmp_path / "log")
    layout.folder.mkdir()
    writer = TileWriter(layout, Tiles(layout, 0))
    layout.tiles.joinpath("0").mkdir(parents=True)
    (layout.tiles / "0" / "003").mkdir()  # a file cannot take its place
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(IsADirectoryError, match="003"):
        writer.append(b"".join(LEAVES) * 20)
    (layout.tiles / "0" / "003").rmdir()
    writer.append(b"")
    writer.finish()
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert stored(layout) == tiles_of(LEAVES * 20)


def tiles_of(leaves: list[bytes]) -> dict[str, bytes]:
    """Each tile of a tree by its path, in the slowest way."""
    found, level = {}, 0
    while leaves:
        for number in range((len(leaves) + 255) // 256):
            part = leaves[number * 256 :][:256]
            name = f"{number:03d}" if number < 1000 else f"x{number // 1000:03d}/{number % 1000:03d}"
            found[f"{level}/{name}" + ("" if len(part) == 256 else f".p/{len(part)}")] = b"".join(part)
        leaves = [mth(leaves[at : at + 256]) for at in range(0, len(leaves) - 255, 256)]
        level += 1
    return found


def stored(layout: Layout) -> dict[str, bytes]:
    files = (path for path in layout.tiles.rglob("*") if path.is_file())
    return {str(path.relative_to(layout.tiles)): path.read_bytes() for path in files}


def rows_of(lines: list[bytes], first: int) -> bytes:
    """The index of a segment, in the slowest way."""
    rows, offset = b"", 0
    while lines:
        here = lines[: 1024 - (first - 1) % 1024]
        length = sum(len(line) + 1 for line in here)
        times = [int(line.split(b",")[1].partition(b":")[2]) for line in here]
        operations = keys = 0
        for line in here:
            operations |= 1 << fnv1a(line.split(b'"')[7]) % 64
            key = fnv1a(line.split(b'"')[11])
            keys |= 1 << key % 256 | 1 << (key >> 32) % 256
        rows += struct.pack("<QQIIQQQ", first, offset, length, len(here), min(times), max(times), operations)
        rows += keys.to_bytes(32, "little")
        lines, first, offset = lines[len(here) :], first + len(here), offset + length
    return rows


RECORDS = [
    b'{"seq":%d,"time_ns":%d,"operation":"%s","key_id":"%d"}'
    % (n, n * 7919 % 100_003, (b"sign", b"login")[n % 500 == 0], n // 900)
    for n in range(1, 65_538)
]
HASHED = [hashlib.sha256(b"\0" + record).digest() for record in RECORDS]
BORDERS = [1, 255, 256, 257, 1023, 1024, 1025, 16_384, 16_640, 65_535, 65_536, 65_537]


def sealed_in(folder: Path, sizes: list[int], piece: int) -> None:
    """Seal a log at each of these sizes; the sealer reads it in pieces of so many lines, and begins again at times."""
    layout = Layout(folder / "log")
    layout.folder.mkdir()
    layout.segments.mkdir()
    layout.log.write_bytes(b"".join(record + b"\n" for record in RECORDS))
    segment = Segment(1, layout.log)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hsmcore.audit.sealer._LINES", piece)
        with closing(Sealer(layout, segment, 0)) as sealer:
            for size in sizes:
                sealer.advance(size)
                checkpoint = sealer.finish("origin")
                assert (checkpoint.size, checkpoint.root) == (size, mth(HASHED[:size]))
                for name, tile in tiles_of(HASHED[:size]).items():
                    assert (layout.tiles / name).read_bytes() == tile, name
                whole = size // 1024 * index.ROW_BYTES
                assert layout.index(1).read_bytes() == rows_of(RECORDS[:size], 1)[:whole]
                assert Tiles(layout, size).root() == checkpoint.root


@pytest.mark.parametrize("size", BORDERS)
def test_what_is_sealed_at_once_is_what_the_slowest_way_gives(tmp_path, size):
    sealed_in(tmp_path, [size], 1 << 16)
    assert stored(Layout(tmp_path / "log")) == tiles_of(HASHED[:size])


@given(st.lists(st.integers(1, len(RECORDS)) | st.sampled_from(BORDERS), min_size=1, max_size=3), st.integers(1, 2999))
@settings(max_examples=share(10), deadline=None)
def test_what_is_sealed_in_parts_is_what_the_slowest_way_gives(sizes, piece):
    with tempfile.TemporaryDirectory() as folder:
        sealed_in(Path(folder), sorted(set(sizes)), piece)


def test_reading_ends_with_a_part_when_it_must(tmp_path, monkeypatch):
    monkeypatch.setattr("hsmcore.audit.sealer._LINES", 90)
    layout = Layout(tmp_path / "log")
    layout.segments.mkdir(parents=True)
    layout.log.write_bytes(b"".join(record + b"\n" for record in RECORDS[:1000]))
    with closing(Sealer(layout, Segment(1, layout.log), 0)) as sealer:
        sealer.advance(1000, lambda: True)
        assert sealer.size == 90
        checkpoint = sealer.finish("origin")
        assert (checkpoint.size, checkpoint.root) == (sealer.size, mth(HASHED[: sealer.size]))
        sealer.advance(1000)
        assert sealer.size == 1000


def test_tiles_that_wait_for_their_folder_are_bounded(tmp_path, monkeypatch):
    """Each attempt first writes what the one before has left; it takes no further lines until that is done."""
    monkeypatch.setattr("hsmcore.audit.sealer._LINES", 1600)
    layout = Layout(tmp_path / "log")
    layout.segments.mkdir(parents=True)
    layout.log.write_bytes(b"".join(record + b"\n" for record in RECORDS))
    layout.tiles.write_bytes(b"a file in its place")
    with closing(Sealer(layout, Segment(1, layout.log), 0)) as sealer:
        for _ in range(5):
            with pytest.raises(OSError, match="tile"):
                sealer.advance(len(RECORDS))
        assert sealer.size == 1600
        layout.tiles.unlink()
        sealer.advance(len(RECORDS))
        assert sealer.finish("origin").root == mth(HASHED)
    assert stored(layout) == tiles_of(HASHED)


def test_an_index_that_is_made_again_is_the_same_wherever_its_segment_begins(tmp_path):
    for first in (1, 1000, 1024, 1025, 5000):
        path = tmp_path / f"{first}.jsonl"
        path.write_bytes(b"".join(record + b"\n" for record in RECORDS[first - 1 : first + 4000]))
        blocks, whole = index.made(Segment(first, path))
        assert whole
        assert index.packed(blocks) == rows_of(RECORDS[first - 1 : first + 4000], first)


def test_roots_over_parts_are_those_of_the_standard():
    tree = MerkleTree()
    assert tree.over(b"".join(LEAVES[:1024]), 256) == b"".join(mth(LEAVES[n : n + 256]) for n in range(0, 1024, 256))
    assert tree.over(b"") == tree.over(b"", 256) == hashlib.sha256(b"").digest()
    for width in (-1, 5):
        with pytest.raises(ValueError, match="width"):
            tree.over(b"".join(LEAVES[:256]), width)


def test_a_full_file_is_compressed_once_all_of_it_is_sealed(tmp_path):
    layout = Layout(tmp_path / "log")
    layout.segments.mkdir(parents=True)
    full, compressed = layout.archived(1, compressed=False), layout.archived(1, compressed=True)
    text = [record + b"\n" for record in RECORDS[:1000]]
    full.write_bytes(b"".join(text[:500]))
    layout.log.write_bytes(b"".join(text[500:]))
    with closing(Sealer(layout, Segment(1, full), 0)) as sealer:
        sealer.advance(1000)
        for sealed in (0, 499):
            sealer.compress_full(lambda sealed=sealed: sealed)
            assert (full.exists(), compressed.exists()) == (True, False)
        sealer.compress_full(lambda: 500)
        assert (full.exists(), compressed.exists()) == (False, True)
        assert b"".join(Segment(1, compressed).chunks()) == b"".join(text[:500])


def test_a_file_is_read_up_to_what_is_no_record(tmp_path):
    """In parts of 256 KiB, none of which ends with a line; what holds the mark comes back as whole lines."""
    lines = [record + b"\n" for record in RECORDS[:30_000]]
    lines[17] = lines[17].replace(b"login", b"mark").replace(b"sign", b"mark")
    lines[29_000] = lines[29_000].replace(b"sign", b"mark")
    path = tmp_path / "log"
    for end, why, count in [
        (b"", "end", 30_000),
        (b"", "limit", 12_345),
        (b'{"seq":30001', "torn", 30_000),
        (b"no record\n", "foreign", 30_000),
        (lines[0], "order", 30_000),
        (b'{"seq":30001,"time_ns":1,"operation":"' + b"x" * (1 << 18), "long", 30_000),
    ]:
        path.write_bytes(b"".join(lines) + end)
        limit = count if why == "limit" else 1 << 16
        with path.open("rb") as file:
            tree = MerkleTree()
            assert tree.scan_file(file.fileno(), 0, 1, 0, b"mark")[0] == "limit"
            found = tree.scan_file(file.fileno(), 0, 1, limit, b'"mark"')
        expected = MerkleTree().scan(b"".join(lines), 0, 1, count)
        assert found[0] == why
        assert found[1:4] == expected[1:], why
        assert [b'"mark"' in found[4], lines[17] in found[4]] == [True, True]
        assert (lines[29_000] in found[4]) == (why != "limit")
        assert found[4].endswith(b"\n")
    with pytest.raises(OSError, match="descriptor"):
        MerkleTree().scan_file(-1, 0, 1, 1, b"mark")
