"""Signed notes and checkpoints, with the specification's own examples."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nacl.signing import SigningKey

from hsmcore.tlog.checkpoint import Checkpoint, history
from hsmcore.tlog.note import COSIGNATURE, ED25519, Note, NoteError, VerifierKey, signature_line, signed

LOGS_SIGNATURE = "Az3grlgtzPICa5OS8npVmf1Myq/5IZniMp+ZJurmRDeOoRDe4URYN7u5/Zhcyv2q1gGzGku9nTo+zyWE+xeMcTOAYQ8="
WITNESS_SIGNATURE = (
    "jWbPPwAAAABkGFDLEZMHwSRaJNiIDoe9DYn/zXcrtPHeolMI5OWXEhZCB9dlrDJsX3b2oyin1nPZqhf5nNo0xUe+mbIUBkBIfZ+qnA=="
)
EXAMPLE = f"""\
example.com/behind-the-sofa
20852163
CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=

— example.com/behind-the-sofa {LOGS_SIGNATURE}
— witness.example.com/w1 {WITNESS_SIGNATURE}
""".encode()
# golang.org/x/mod/sumdb/note's documentation.
PETER = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
PETERS_NOTE = """\
If you think cryptography is the answer to your problem,
then you don't know what your problem is.

— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=
""".encode()

secret = SigningKey(bytes(range(32)))
key = VerifierKey("example.com/log", ED25519, bytes(secret.verify_key))


def note_of(text: bytes) -> bytes:
    return signed(text, key, secret.sign(text).signature)


def test_another_implementations_note_is_verified():
    peter = VerifierKey.parse(PETER)
    assert str(peter) == PETER
    assert Note.parse(PETERS_NOTE).signers([peter]) == [peter]
    with pytest.raises(NoteError, match="wrong"):
        Note.parse(PETERS_NOTE.replace(b"answer", b"enigma")).signers([peter])


def test_the_checkpoint_of_the_specification_is_read():
    checkpoint = Checkpoint.parse(EXAMPLE)
    assert (checkpoint.origin, checkpoint.size) == ("example.com/behind-the-sofa", 20852163)
    assert checkpoint.root == base64.b64decode("CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=")
    assert checkpoint.text == EXAMPLE[: EXAMPLE.index(b"\n\n") + 1]
    assert [name for name, _ in Note.parse(EXAMPLE).signatures] == [checkpoint.origin, "witness.example.com/w1"]


def test_a_cosignature_covers_its_time():
    text = b"example.com/log\n5\n" + base64.b64encode(bytes(32)) + b"\n"
    witness = VerifierKey("witness.example", COSIGNATURE, bytes(secret.verify_key))
    message = b"cosignature/v1\ntime 1679315147\n" + text
    stamp = (1679315147).to_bytes(8, "big")
    good = note_of(text) + signature_line(witness, stamp + secret.sign(message).signature)
    assert Note.parse(good).signers([key, witness]) == [key, witness]
    late = note_of(text) + signature_line(witness, (1679315148).to_bytes(8, "big") + secret.sign(message).signature)
    with pytest.raises(NoteError, match=r"witness\.example"):
        Note.parse(late).signers([witness])


@given(st.text(st.characters(min_codepoint=32, exclude_characters="\x7f", exclude_categories=["Cs", "Cc"])))
def test_a_note_goes_around(line):
    text = (line + "\nsecond line\n").encode()
    note = Note.parse(note_of(text))
    assert note.text == text
    assert note.signers([key]) == [key]


@given(st.binary(max_size=400))
def test_no_bytes_upset_the_parser(data):
    for parse in (Note.parse, Checkpoint.parse):
        try:
            parse(data)
        except NoteError:
            continue


def test_bits_that_mean_nothing_are_refused():
    note = note_of(b"example.com/log\n5\n" + base64.b64encode(bytes(32)) + b"\n")
    digits = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    last = digits.index(note[-3])
    assert note.endswith(b"=\n")
    assert last % 4 == 0
    changed = note[:-3] + digits[last + 1 : last + 2] + note[-2:]
    assert base64.b64decode(changed.split()[-1]) == base64.b64decode(note.split()[-1])
    with pytest.raises(NoteError, match="not base64"):
        Note.parse(changed)


@given(st.data())
def test_a_note_that_was_changed_is_not_signed(data):
    note = note_of(b"example.com/log\n5\n" + base64.b64encode(bytes(32)) + b"\n")
    place = data.draw(st.integers(0, len(note) - 1))
    bit = data.draw(st.integers(0, 7))
    changed = note[:place] + bytes([note[place] ^ 1 << bit]) + note[place + 1 :]
    try:
        assert Note.parse(changed).signers([key]) == []
    except NoteError:
        return


@pytest.mark.parametrize(
    "text",
    ["", "a+b", "log+00000000+AQ==", PETER.replace("c74f20a3", "c74f20a4"), PETER[:-4], "x" + PETER, PETER + "AAAA"],
)
def test_a_bad_verifier_key_is_refused(text):
    with pytest.raises(NoteError):
        VerifierKey.parse(text)


@pytest.mark.parametrize(
    "body",
    [b"log\n5\n", b"log\n05\n%s\n", b"log\n-1\n%s\n", b"log\n5\nAAAA\n", b"log\nx\n%s\n", b"\n5\n%s\n"],
)
def test_what_is_no_checkpoint_is_refused(body):
    with pytest.raises(NoteError):
        Checkpoint.parse(note_of(body.replace(b"%s", base64.b64encode(bytes(32)))))


@given(st.integers(0, 4), st.integers(0, 300))
def test_a_history_that_is_cut_off_keeps_its_whole_notes(tmp_path_factory, count, cut):
    notes = [
        note_of(b"example.com/log\n%d\n%s\n" % (size, base64.b64encode(bytes([size]) * 32))) for size in range(count)
    ]
    whole = b"".join(note + b"\n" for note in notes)
    path = tmp_path_factory.getbasetemp() / "history"
    path.write_bytes(whole[: max(0, len(whole) - cut)])
    found, length = history(path)
    assert [one.note for one in found] == notes[: len(found)]
    assert length == sum(len(note) + 1 for note in notes[: len(found)])
    assert len(found) >= count - 1 - cut // 100
