"""The binary form of a proof: the same text again, and nothing that is good from bytes that were changed."""

from __future__ import annotations

import shutil
from base64 import b64encode
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support import batches
from tests.support.batches import OTHER_KEY, PUBLIC, Case, by_hsmcore, by_node, by_python, changed_bytes, rebuilt

import hsmcore
from hsmcore.tlog import batch_proof, note
from hsmcore.tlog.proof import leaf_of

needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="no Node.js")


@pytest.mark.parametrize("count", [1, 2, 3, 13, 64, 65])
@pytest.mark.parametrize("blind", [False, True])
def test_the_text_is_made_again(count, blind):
    messages = [b"message %d" % i for i in range(count)]
    for first, domain, epoch in ((0, "default", 0), (127, "a/b.example", 128), (2**63 - 1 - count, "~" * 64, 10**18)):
        made = batches.of(messages, first=first, domain=domain, epoch=epoch, blind=blind)
        for message, one in zip(messages, made, strict=True):
            data = hsmcore.proof_to_bytes(one.proof)
            assert len(data) < len(one.proof) * 2 / 3
            assert hsmcore.proof_from_bytes(data, message, PUBLIC, domain) == one.proof


@given(st.integers(0, 10**19 - 1), st.integers(0, 10**19 - 1), st.integers(0, 10**19 - 1), st.binary())
def test_each_number_that_a_proof_may_have_is_kept(epoch, first, time_ns, message):
    extra = b"\x08" + first.to_bytes(8)
    leaf = leaf_of(extra, message)
    text = batch_proof.checkpoint("d", epoch, 1, leaf, first, time_ns)
    head = b"c2sp.org/tlog-proof@v1\nextra %s\nindex 0\n\n" % b64encode(extra)
    proof = head + note.signed(text, batch_proof.signer(text, PUBLIC), bytes(64))
    assert hsmcore.proof_from_bytes(hsmcore.proof_to_bytes(proof), message, PUBLIC, "d") == proof


def test_a_proof_among_65_536_messages_has_at_most_600_bytes():
    made = batches.of([b"m%d" % i for i in range(65_536)], first=10**14, epoch=100, domain="my-rollup.example")
    assert {len(hsmcore.proof_to_bytes(made[i].proof)) <= 600 for i in (0, 1, 32_767, 65_535)} == {True}


def test_what_is_no_proof_has_no_binary_form():
    [one] = batches.of([b"hello"])
    text = one.proof.partition(b"\n\n")[2].rpartition(b"\n\n")[0] + b"\n"
    witness = note.VerifierKey("witness.example", note.ED25519, bytes(OTHER_KEY.verify_key))
    more = one.proof + note.signature_line(witness, OTHER_KEY.sign(text).signature)
    assert hsmcore.verify_batched(PUBLIC, b"hello", more)
    short = (
        one.proof.rpartition(b"\n\n")[0] + b"\n\n" + note.signature_line(batch_proof.signer(text, PUBLIC), bytes(63))
    )
    index = one.proof.replace(b"extra CAAAAAAAAAAA", b"extra CAAAAAAAAAAB")
    long_path = batches.of([b"hello", b"m"])[0].proof.replace(b"index 0\n", b"index 0\n" + b64encode(bytes(32)) + b"\n")
    for bad in (b"", b"x", one.proof[:-1], long_path, more, short, index, one.proof + one.proof[-96:]):
        with pytest.raises(ValueError, match=r"proof|note|signature"):
            hsmcore.proof_to_bytes(bad)


def test_what_is_no_binary_form_is_refused():
    messages = [b"m%d" % i for i in range(5)]
    for blind in (False, True):
        data = hsmcore.proof_to_bytes(batches.of(messages, first=300, blind=blind)[3].proof)
        at = 65 + 1  # where the number of messages stands
        bad = [data[:end] for end in range(len(data))] + [data + b"\0", data + bytes(32)]
        bad += [bytes([form]) + data[1:] for form in (0x00, 0x08, 0x30, 0xF8, data[0] ^ 0x30, data[0] & 0xF0 | 6)]
        bad += [data[:at] + b"\x85\x00" + data[at + 1 :], data[:at] + b"\xff" * 10 + data[at + 1 :]]
        bad += [data[:at] + b"\x03" + data[at + 1 :], data[:at] + b"\x00" + data[at + 1 :], data + bytes(1 << 16)]
        for one in bad:
            assert rebuilt(one, b"m3") is None, one.hex()
        for domain in ("", "a b", "a+b", "a" * 65, "a\nb", "é"):
            with pytest.raises(ValueError, match="domain"):
                hsmcore.proof_from_bytes(data, b"m3", PUBLIC, domain)
        with pytest.raises(ValueError, match="key"):
            hsmcore.proof_from_bytes(data, b"m3", PUBLIC[:31], "default")


def refuse(chance: Random, count: int) -> None:
    given = list(changed_bytes(chance, count))
    cases = [Case("", message, proof) for data, message in given if (proof := rebuilt(data, message)) is not None]
    assert len(cases) > count // 2
    for verifier in (by_hsmcore, by_python, by_node):
        assert not any(verifier(cases))


@needs_node
def test_bytes_that_were_changed_show_nothing():
    refuse(Random(60), 4000)


@needs_node
@pytest.mark.deep
@pytest.mark.timeout(900)
def test_100_000_changes_show_nothing():
    for seed in range(25):
        refuse(Random(seed), 4000)
