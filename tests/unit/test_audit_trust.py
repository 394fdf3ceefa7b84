"""Which checkpoints of a log are believed, and what proofs of its records say: a forged one is told for what it is."""

from __future__ import annotations

import asyncio
import shutil
from base64 import b64encode
from dataclasses import replace
from pathlib import Path

import pytest
from nacl.signing import SigningKey
from tests.support.audit_logs import copy_of, keys_of, text_of, write_log
from tests.support.audit_tampering import prune_line

from hsmcore.audit.check.prove import check_inclusion, consistency_proof, inclusion_proof
from hsmcore.audit.check.trust import Trust
from hsmcore.audit.check.verify import verify
from hsmcore.audit.index import BLOCK
from hsmcore.audit.layout import Layout
from hsmcore.audit.segment import segments
from hsmcore.errors import BadArgument
from hsmcore.tlog.checkpoint import Checkpoint, history
from hsmcore.tlog.note import ED25519, VerifierKey, signed
from hsmcore.tlog.proof import ProofError

RECORDS = 12
STRANGER = SigningKey(bytes(range(32)))


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Layout:
    """A log with two checkpoints and more, whose key no test has."""
    path = tmp_path_factory.mktemp("trust") / "log" / "audit.log"
    asyncio.run(write_log(path, RECORDS // 2))
    return asyncio.run(write_log(path, RECORDS - RECORDS // 2, begin=RECORDS // 2))


@pytest.fixture
def layout(original, tmp_path) -> Layout:
    return copy_of(original, tmp_path / "copy")


def newest(layout: Layout) -> Checkpoint:
    return Checkpoint.parse(layout.checkpoint.read_bytes())


def kinds(layout: Layout, trust: Trust | None = None) -> list[str]:
    return sorted({finding.kind for finding in verify(layout, trust).findings})


def by_stranger(checkpoint: Checkpoint) -> bytes:
    """The checkpoint, signed by a key that is not the log's."""
    key = VerifierKey(checkpoint.origin, ED25519, bytes(STRANGER.verify_key))
    return signed(checkpoint.text, key, STRANGER.sign(checkpoint.text).signature)


def put(layout: Layout, note: bytes) -> None:
    """Make a checkpoint the newest one, in both files."""
    layout.checkpoint.write_bytes(note)
    with layout.history.open("ab") as file:
        file.write(note + b"\n")


# ---- checkpoints ----


def test_the_log_as_it_was_written_has_no_finding(original):
    assert kinds(original) == kinds(original, Trust(keys=keys_of(original))) == []


def test_a_checkpoint_of_another_log_is_one_of_no_record_of_this(layout):
    """With another root: it is not even compared with the records."""
    put(
        layout,
        by_stranger(replace(newest(layout), origin="example.com/other", root=bytes(32), size=newest(layout).size + 1)),
    )
    assert kinds(layout) == ["foreign-log"]


def test_a_checkpoint_that_the_log_s_key_did_not_sign_is_not_believed(layout):
    put(layout, by_stranger(replace(newest(layout), root=bytes(32), size=newest(layout).size + 1)))
    report = verify(layout)
    assert {(finding.kind, finding.text) for finding in report.findings} == {
        ("key", "the checkpoint is not signed by a key that is trusted")
    }
    assert report.records == history(layout.history)[0][-2].size, "the one before is the newest that is trusted"


def test_a_checkpoint_whose_signature_is_wrong_is_told(layout):
    before = newest(layout)
    changed = replace(before, size=before.size + 1)
    put(layout, before.note.replace(before.text, changed.text))
    report = verify(layout)
    assert {(finding.kind, finding.text) for finding in report.findings} == {
        ("checkpoint", f"the signature of {before.origin} is wrong")
    }
    assert report.records == before.size


def test_a_log_without_its_name_has_that_one_finding(layout):
    layout.origin.unlink()
    [finding] = verify(layout).findings
    assert (finding.kind, finding.where) == ("foreign-log", str(layout.origin))


def test_a_checkpoint_that_was_kept_is_compared_only_if_it_is_signed(layout):
    before = newest(layout)
    other = replace(before, root=bytes(32))
    assert kinds(layout, Trust(against=[by_stranger(other)])) == ["key"]
    assert kinds(layout, Trust(against=[before.note.replace(before.text, other.text)])) == ["checkpoint"]
    assert kinds(layout, Trust(against=[by_stranger(replace(other, origin="example.com/other"))])) == ["foreign-log"]
    assert kinds(layout, Trust(against=[before.note])) == []


# ---- records ----


def whole_log(path: Path, records: int) -> Layout:
    """A log whose newest segment has blocks that an index has."""
    return asyncio.run(write_log(path, records, rotateBytes=1 << 24))


@pytest.fixture(scope="module")
def long(tmp_path_factory) -> Layout:
    return whole_log(tmp_path_factory.mktemp("trust") / "long" / "audit.log", 2 * BLOCK)


def test_progress_ends_with_every_record(original, layout):
    for log, unsealed in ((original, 0), (layout, 1)):
        if unsealed:
            with log.log.open("ab") as file:
                file.write(prune_line(log, newest(log).size + 1, 1))
        said = list[tuple[int, int]]()
        report = verify(log, progress=lambda done, of, said=said: said.append((done, of)))
        assert (report.ok, report.unsealed) == (True, unsealed)
        assert said[-1] == (newest(log).size + unsealed,) * 2


def test_the_newest_segment_is_compared_with_its_index(long, tmp_path):
    assert kinds(long) == []
    copy = copy_of(long, tmp_path / "copy")
    first = segments(copy)[-1].first
    rows = copy.index(first).read_bytes()
    copy.index(first).write_bytes(rows[: len(rows) // 2])
    assert kinds(copy) == ["index"]


@pytest.mark.parametrize("end", [b'{"seq":', b"x" * 80000])
def test_a_line_that_was_cut_off_is_told_with_its_length(layout, end):
    with layout.log.open("ab") as file:
        file.write(end)
    report = verify(layout)
    assert report.ok
    assert any(f"an unfinished line of {min(len(end), 70000)} bytes" in note for note in report.notes)


def test_what_is_no_record_behind_the_checkpoint_is_told_with_its_place(layout):
    text = layout.log.read_bytes()
    layout.log.write_bytes(text + b"no record\n")
    [finding] = verify(layout).findings
    assert (finding.kind, finding.first, finding.last) == ("unsealed", newest(layout).size + 1, None)
    assert f"byte {len(text)} does not begin" in finding.text


def test_a_segment_that_goes_on_elsewhere_is_told(tmp_path):
    layout = asyncio.run(write_log(tmp_path / "log" / "audit.log", 900))
    _, second, third, *_ = segments(layout)
    second.path.unlink()
    shutil.rmtree(layout.tiles)  # else the records that are missing are named one by one
    found = {finding.kind: finding for finding in verify(layout).findings if not finding.derived}
    assert f"record {second.first} should be first in it" in found["removed"].text
    assert found["removed"].where == str(third.path)


# ---- proofs ----


def lines_of(layout: Layout) -> list[bytes]:
    return b"".join(map(text_of, segments(layout))).splitlines()


def parts(proof: bytes) -> tuple[list[bytes], bytes]:
    """The lines of a proof's head, and its note."""
    head, _, note = proof.partition(b"\n\n")
    return head.split(b"\n"), note


def joined(lines: list[bytes], note: bytes) -> bytes:
    return b"\n".join(lines) + b"\n\n" + note


def test_each_record_is_proved_by_its_line_its_place_and_the_log_s_key(original):
    keys, lines = keys_of(original), lines_of(original)
    assert newest(original).size == len(lines) >= RECORDS
    for seq, line in enumerate(lines, 1):
        proof = inclusion_proof(original, seq)
        proven = check_inclusion(proof, keys)
        assert (proven.seq, proven.line, proven.checkpoint, proven.keys) == (seq, line, newest(original), tuple(keys))
        assert check_inclusion(proof, keys, line) == proven
        head, note = parts(proof)
        without = joined([part for part in head if not part.startswith(b"extra ")], note)
        assert check_inclusion(without, keys, line) == proven
        with pytest.raises(ProofError, match="does not carry the record"):
            check_inclusion(without, keys)
        with pytest.raises(ProofError, match="about another record"):
            check_inclusion(proof, keys, lines[seq - 2])
        with pytest.raises(ProofError, match="not in the log of the checkpoint"):
            check_inclusion(without, keys, lines[seq - 2])
        with pytest.raises(ProofError, match="not signed by a key that is trusted"):
            check_inclusion(proof, [])
    for seq in (-1, 0, len(lines) + 1):
        with pytest.raises(BadArgument, match=f"not among the {len(lines)} records"):
            inclusion_proof(original, seq)


HASH = b64encode(bytes(32))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda head: [b"c2sp.org/tlog-proof@v2", *head[1:]], "not a tlog-proof"),
        (lambda head: head[1:], "not a tlog-proof"),
        (lambda head: [*head[:1], b"extra !", *head[2:]], "base64|padding"),
        (lambda head: head[:1], "the index is missing"),
        (lambda head: head[:2], "the index is missing"),
        (lambda head: [*head[:2], b"place 5", *head[3:]], "the index is missing"),
        (lambda head: [*head[:2], b"5", *head[3:]], "the index is missing"),
        (lambda head: [*head[:2], b"index", *head[3:]], "the index is missing"),
        (lambda head: [*head[:2], b"index -5", *head[3:]], "the index is missing"),
        (lambda head: [*head[:2], b"index x", *head[3:]], "the index is missing"),
        (lambda head: [*head[:2], b"index 4", *head[3:]], "not in the log"),
        (lambda head: [*head[:2], b"index 99", *head[3:]], "no record 99"),
        (lambda head: [*head, HASH], "too long"),
        (lambda head: head[:-1], "too short"),
        (lambda head: [*head[:-1], b64encode(bytes(31))], "hashes of 32 bytes"),
        (lambda head: [*head[:-1], b64encode(bytes(33))], "hashes of 32 bytes"),
        (lambda head: [*head[:-1], head[-1][:9] + b"!" + head[-1][9:]], "base64"),
        (lambda head: [*head[:3], *[HASH] * 64], "too long"),
        (lambda head: [*head[:3], *[HASH] * 65], "hashes of 32 bytes"),
    ],
)
def test_a_proof_of_another_form_or_place_is_refused(original, change, why):
    head, note = parts(inclusion_proof(original, 6))
    assert check_inclusion(joined(head, note), keys_of(original)).seq == 6
    with pytest.raises(ProofError, match=why):
        check_inclusion(joined(change(head), note), keys_of(original))


def test_a_proof_without_its_checkpoint_or_of_bytes_that_are_no_text_is_refused(original):
    keys = keys_of(original)
    head, note = parts(inclusion_proof(original, 6))
    for proof in (b"", note, b"\n".join(head), joined([b"\xff", *head], note), joined(head, note[:-1])):
        with pytest.raises(ProofError):
            check_inclusion(proof, keys)


def test_of_a_record_that_was_pruned_the_proof_is_for_who_has_its_line(layout):
    [line, *_], keys = lines_of(layout), keys_of(layout)
    layout.log.write_bytes(b"")
    proof = inclusion_proof(layout, 1)
    assert check_inclusion(proof, keys, line).seq == 1
    with pytest.raises(ProofError, match="does not carry the record"):
        check_inclusion(proof, keys)


def test_no_proof_is_made_of_a_record_that_was_changed_or_of_tiles_of_another_log(layout):
    text = layout.log.read_bytes()
    layout.log.write_bytes(text.replace(b'"result":"ok"', b'"result":"no"', 1))
    changed = next(n for n, (a, b) in enumerate(zip(text.splitlines(), lines_of(layout), strict=True), 1) if a != b)
    with pytest.raises(ProofError, match=f"record {changed} was changed"):
        inclusion_proof(layout, changed)
    layout.log.write_bytes(text)
    assert inclusion_proof(layout, changed)
    layout.checkpoint.write_bytes(by_stranger(replace(newest(layout), root=bytes(32))))
    with pytest.raises(ProofError, match="do not belong to the checkpoint"):
        inclusion_proof(layout, changed)
    layout.checkpoint.write_bytes(b"nothing")
    with pytest.raises(BadArgument, match="blank line"):
        inclusion_proof(layout, changed)
    layout.checkpoint.unlink()
    with pytest.raises(BadArgument, match="no checkpoint yet"):
        inclusion_proof(layout, changed)


def test_a_log_proves_that_it_extends_its_older_checkpoints_and_no_others(original):
    now = newest(original)
    old = next(one for one in history(original.history)[0] if 0 < one.size < now.size)
    proof = consistency_proof(original, old)
    head, note = parts(proof)
    assert (head[0], note) == (f"old {old.size}".encode(), now.note)
    assert old.size < now.size
    assert parts(consistency_proof(original, now))[0] == [f"old {now.size}".encode()], "of one size: nothing to show"
    with pytest.raises(BadArgument, match=r"of the log example\.com/other"):
        consistency_proof(original, replace(old, origin="example.com/other"))
    with pytest.raises(ProofError, match=f"has {now.size} records, but had {now.size + 1}"):
        consistency_proof(original, replace(now, size=now.size + 1))
    for other in (replace(old, root=bytes(32)), replace(now, root=bytes(32))):
        with pytest.raises(ProofError):
            consistency_proof(original, other)
