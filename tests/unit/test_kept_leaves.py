"""Proofs that are made again from files which anybody may have written."""

from __future__ import annotations

import os
from base64 import b64decode, b64encode
from hashlib import sha256
from random import Random

import orjson
import pytest
from tests.support import batches
from tests.support.batches import OTHER_KEY, PUBLIC

from hsmcore._native import Leaves
from hsmcore.audit.leaves import LeafFiles, proof_again
from hsmcore.errors import AuditUnavailable, BadArgument
from hsmcore.tlog.proof import parts_of

MESSAGES = [b"message %d" % number for number in range(13)]


def kept(folder, **other):
    """A batch that is kept. Returns its signatures."""
    made = batches.of(MESSAGES, **{"first": 500, **other})
    parts = [parts_of(one.proof) for one in made]
    rows = [one.extra[:1] + sha256(text).digest() + one.extra[9:] for one, text in zip(parts, MESSAGES, strict=True)]
    LeafFiles(folder).keep(made[0].index, parts[0].note, b"".join(rows), [(None, len(MESSAGES))])
    return made


@pytest.mark.parametrize("blind", [False, True])
def test_each_proof_is_made_again_as_it_was(tmp_path, blind):
    made = [*kept(tmp_path, blind=blind), *kept(tmp_path, first=513, blind=blind, epoch=2)]
    kept(tmp_path, domain="a/../b")
    assert [proof_again(tmp_path, "default", one.index, [PUBLIC]) for one in made] == [one.proof for one in made]
    for domain, index in (("default", 499), ("default", 526), ("default/", 500), ("a", 500)):
        with pytest.raises(BadArgument, match=f"number {index}"):
            proof_again(tmp_path, domain, index, [PUBLIC])


def test_a_batch_of_another_domain_counts_for_nothing_under_this_one_s_name(tmp_path):
    kept(tmp_path, domain="other")
    [path] = tmp_path.iterdir()
    path.rename(tmp_path / path.name.replace("other", "default"))
    with pytest.raises(BadArgument):
        proof_again(tmp_path, "default", 503, [PUBLIC])


def test_a_file_that_was_changed_makes_no_other_proof(tmp_path):
    chance, made = Random(60), kept(tmp_path)
    [path] = tmp_path.iterdir()
    good = path.read_bytes()
    row = orjson.loads(good)
    leaves = b64decode(row["leaves"])
    other = orjson.loads(next_line(tmp_path / "other", first=500, key=OTHER_KEY))
    bad = [b"", b"{}", b"[]", b"null", b"1", b"\xff", b"[" * 100_000, b'{"note": 1, "leaves": 2}', good[:-9]]
    for note in (row["note"], row["note"].replace("\n13\n", f"\n{-(-(1 << 64) // 33)}\n"), other["note"]):
        cut = (leaves[:-1], leaves[:-33], leaves + leaves[:33], leaves + bytes(13 * 32), b"", leaves[33:] + leaves[:33])
        bad += [orjson.dumps({"note": note, "leaves": b64encode(rows).decode()}) for rows in cut]
        bad.append(orjson.dumps({"note": note.replace("13", "14", 1), "leaves": row["leaves"]}))
    bad.append(orjson.dumps(other))
    for _ in range(3000):
        at = chance.randrange(len(good))
        bad.append(good[:at] + bytes([chance.randrange(256)]) + good[at + 1 :])
    for one in bad:
        path.write_bytes(one + b"\n")
        try:
            assert proof_again(tmp_path, "default", 503, [PUBLIC]) == made[3].proof
        except BadArgument:
            continue
    path.write_bytes(b"\n".join([*bad[:40], good]))
    assert proof_again(tmp_path, "default", 503, [PUBLIC]) == made[3].proof, "of what stands beside it"


def next_line(folder, **other):
    kept(folder, **other)
    [path] = folder.iterdir()
    return path.read_bytes()


def test_what_is_no_file_is_not_waited_for(tmp_path):
    name = "default-0-%019d-%s.jsonl"
    kept(tmp_path / "elsewhere")
    [real] = (tmp_path / "elsewhere").iterdir()
    (tmp_path / "leaves").mkdir()
    os.mkfifo(tmp_path / "leaves" / (name % (500, "00000000")))
    with pytest.raises(BadArgument):
        proof_again(tmp_path / "leaves", "default", 503, [PUBLIC])
    (tmp_path / "leaves" / (name % (501, "00000001"))).symlink_to(real)
    for folder in (tmp_path / "leaves", tmp_path / "missing"):
        with pytest.raises(AuditUnavailable):
            proof_again(folder, "default", 503, [PUBLIC])


def test_leaves_that_do_not_fit_are_refused():
    for leaves, count in (
        (b"", 0),
        (b"", 1),
        (bytes(33), 2),
        (bytes(34), 1),
        (bytes(66), 1),
        (bytes(33), -1),
        (bytes(98), 2),
    ):
        with pytest.raises(BadArgument):
            Leaves().restore(leaves, count)
    batch = Leaves()
    batch.restore(bytes(33), 1)
    with pytest.raises(BadArgument):
        batch.restore(bytes(33), 1)
    with pytest.raises(BadArgument):
        batch.proof(0)
