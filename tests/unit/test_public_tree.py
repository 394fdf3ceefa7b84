"""The files of a public log: whatever a crash left behind the last checkpoint, the tree goes on from there."""

from __future__ import annotations

import pytest
from nacl.signing import SigningKey
from tests.support.rfc6962 import leaf_of, path_of, root_of
from tests.support.witness_server import line_of

from hsmcore.audit.layout import TreeLayout
from hsmcore.audit.public import GAP, LOST, PAYLOAD, PublicTree, proof_of
from hsmcore.errors import HsmError
from hsmcore.tlog.checkpoint import Checkpoint

ENTRIES = [[PAYLOAD + bytes([n % 251]) * 32, GAP, LOST][n % 5 // 3 * (n % 2 + 1)] for n in range(700)]
KEY = SigningKey.generate()


def note(tree):
    text = Checkpoint("a.example/log", tree.size, tree.root).text
    return text + b"\n" + line_of("a.example/log", 1, bytes(KEY.verify_key), KEY.sign(text).signature)


@pytest.mark.parametrize(
    ("signed", "left"), [(0, 1), (3, 9), (248, 256), (248, 300), (255, 700), (256, 257), (512, 700)]
)
def test_it_goes_on_from_the_last_checkpoint(tmp_path, signed, left):
    layout = TreeLayout(tmp_path / "log")
    tree = PublicTree.found(layout, [])
    for begin in range(0, signed, 100):
        tree.append(ENTRIES[begin : min(begin + 100, signed)])
    known = [note(tree)] if signed else []
    for begin in range(signed, left, 7):
        tree.append(ENTRIES[begin : min(begin + 7, left)])
    again = PublicTree.found(layout, known)
    assert again.size == signed
    again.append(ENTRIES[signed:])
    leaves = [leaf_of(entry) for entry in ENTRIES]
    assert again.root == root_of(leaves)
    newest = Checkpoint.parse(note(again))
    for index in (0, 247, 248, 255, 256, 699):
        lines = proof_of(layout, newest, index).partition(b"\n\n")[0].split(b"\n")
        assert len(lines) == 2 + len(path_of(index, leaves))
    kept = b"".join(
        (layout.tile("entries", number) if number < 2 else layout.tile("entries", 2, 188)).read_bytes()
        for number in range(3)
    )
    assert kept == b"".join(len(entry).to_bytes(2, "big") + entry for entry in ENTRIES)


def test_a_folder_with_more_than_is_known_takes_the_same_alone_and_one_that_is_damaged_begins_anew(tmp_path):
    layout = TreeLayout(tmp_path / "log")
    tree = PublicTree.found(layout, [])
    tree.append(ENTRIES[:300])
    made = note(tree)
    layout.checkpoint.write_bytes(made)
    tree = PublicTree.found(layout, [])
    assert (tree.size, tree.must_have) == (0, 300)
    with pytest.raises(HsmError, match=r"leaf 290 .* went back"):
        tree.append([*ENTRIES[:290], PAYLOAD + bytes(32)])
    assert proof_of(layout, Checkpoint.parse(made), 290)
    tree.append(ENTRIES[:310])
    assert tree.size == 310
    tree = PublicTree.found(layout, [made])
    assert (tree.size, tree.must_have) == (300, 0)
    layout.tile(1, 0, 1).write_bytes(bytes(32))
    assert PublicTree.found(layout, [made]).size == 0
