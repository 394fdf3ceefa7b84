"""Proofs of batches: their tree, their form, and what verifiers refuse."""

from __future__ import annotations

import asyncio
import hashlib
import shutil
import subprocess
import weakref
from base64 import b64decode, b64encode
from random import Random

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pymerkle import InclusionProof, InmemoryTree, verify_inclusion
from tests.support import batches
from tests.support.batches import (
    EXAMPLES,
    OTHER_KEY,
    PUBLIC,
    Case,
    by_hsmcore,
    by_node,
    by_python,
    lines_of_signatures,
    malformed,
    manipulated,
)
from tests.support.rfc6962 import root_of
from tests.support.size import FULL, share

import hsmcore
from hsmcore._native import Gate, Leaves, Look, classify, leaks
from hsmcore.errors import EmptyMessage, InvalidMessageType, MessageTooLarge, WrongEventLoop
from hsmcore.tlog import batch_proof, note
from hsmcore.tlog import proof as tlog_proof

needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="no Node.js")


def sha256(*parts: bytes) -> bytes:
    return hashlib.sha256(b"".join(parts)).digest()


def head_of(proof: bytes) -> tuple[bytes, int, list[bytes]]:
    """Extra data, index and path."""
    lines = proof.partition(b"\n\n")[0].split(b"\n")
    return b64decode(lines[1][6:]), int(lines[2][6:]), [b64decode(line) for line in lines[3:]]


# ---- the tree --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [*range(1, 18), 31, 32, 33, 100, 257])
def test_roots_and_paths_are_those_of_pymerkle(count):
    messages = [b"m%d" % i for i in range(count)]
    tree = InmemoryTree(algorithm="sha256")
    made = batches.of(messages, first=7)
    for i, message in enumerate(messages):
        tree.append_entry(b"\x08" + (7 + i).to_bytes(8, "big") + sha256(message))
    assert {one.root for one in made} == {tree.get_root()}
    for i, one in enumerate(made):
        _, index, path = head_of(one.proof)
        theirs = tree.prove_inclusion(i + 1).serialize()
        own = theirs | {"path": [tree.get_leaf(i + 1).hex(), *(sibling.hex() for sibling in path)]}
        assert (index, own) == (i, theirs)
        verify_inclusion(tree.get_leaf(i + 1), one.root, InclusionProof.deserialize(own))  # raises if it does not hold


def path_by_definition(at: int, leaves: list[bytes]) -> list[bytes]:
    """PATH of RFC 6962, section 2.1.1."""
    if len(leaves) == 1:
        return []
    half = 1 << (len(leaves) - 1).bit_length() - 1
    if at < half:
        return [*path_by_definition(at, leaves[:half]), root_of(leaves[half:])]
    return [*path_by_definition(at - half, leaves[half:]), root_of(leaves[:half])]


@given(st.lists(st.binary(min_size=1, max_size=40).map(lambda data: b"m" + data), min_size=1, max_size=70),
       st.integers(0, 2**62), st.booleans())  # fmt: skip
@example([b"m" + bytes(31)], 0, False)  # fmt: skip
def test_any_batch_is_as_the_rfc_defines_it(messages, first, blind):
    made = batches.of(messages, first=first, blind=blind)
    kind, leaves = tlog_proof.KINDS.index("raw"), []  # a leaf is not looked at, of whatever kind it is
    for i, (message, one) in enumerate(zip(messages, made, strict=True)):
        extra, index, _ = head_of(one.proof)
        assert (extra[:9], index, one.index) == (bytes([kind]) + (first + i).to_bytes(8, "big"), i, first + i)
        assert len(extra) == (41 if blind else 9)
        leaves.append(sha256(b"\0", extra[:9], sha256(message), extra[9:]))
    assert made[0].root == root_of(leaves)
    for i, one in enumerate(made):
        assert head_of(one.proof)[2] == path_by_definition(i, leaves)
    cases = [Case("", message, one.proof) for message, one in zip(messages, made, strict=True)]
    assert by_hsmcore(cases) == by_python(cases) == [True] * len(messages)


def test_the_published_vectors_of_rfc_6962_hold():
    """The entries and roots of Certificate Transparency's reference implementation."""
    entries = ("", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f")
    leaves = [sha256(b"\0", bytes.fromhex(entry)) for entry in entries]
    assert root_of(leaves).hex() == "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328"
    path = path_by_definition(0, leaves)
    assert tlog_proof.root_of_inclusion(leaves[0], 0, 8, path) == root_of(leaves)


def test_a_blinder_is_another_one_in_each_leaf():
    one, other = (head_of(signature.proof)[0][9:] for signature in batches.of([b"same", b"same"], blind=True))
    assert len(one) == len(other) == 32
    assert one != other


def test_a_proof_for_ten_thousand_messages_has_at_most_1100_bytes():
    made = batches.of([b"m%d" % i for i in range(10_000)], first=10**9, epoch=1000, domain="my-rollup.example")
    assert max(len(one.proof) for one in made[::97]) <= 1100


# ---- verifiers -------------------------------------------------------------------------------------------------------


@needs_node
@pytest.mark.parametrize("count", [1, 2, 3, 13, 64, 65])
def test_every_verifier_accepts_what_is_good(count):
    messages = [b"message %d" % i for i in range(count)]
    for blind in (False, True):
        made = batches.of(messages, first=41, blind=blind, domain="a/b.example", epoch=7)
        cases = [Case("", message, one.proof) for message, one in zip(messages, made, strict=True)]
        assert by_hsmcore(cases) == by_python(cases) == by_node(cases) == [True] * count


@needs_node
@pytest.mark.parametrize("verifier", [by_hsmcore, by_python, by_node])
def test_2000_manipulations_are_refused(verifier):
    cases = list(manipulated(Random(22), 2000))
    assert len({case.what for case in cases}) >= 18
    cases += malformed()
    assert [case for case, accepted in zip(cases, verifier(cases), strict=True) if accepted] == []


@needs_node
@pytest.mark.parametrize("verifier", [by_hsmcore, by_python, by_node])
def test_signature_lines_have_one_form(verifier):
    cases = list(lines_of_signatures())
    accepted = verifier([case for case, _ in cases])
    assert [case.what for (case, good), found in zip(cases, accepted, strict=True) if found is not good] == []


def test_a_verifier_has_at_most_80_lines():
    found = {path.name: len(path.read_text().splitlines()) for path in EXAMPLES.glob("verify_batched.*")}
    assert len(found) == 3
    assert {name: lines for name, lines in found.items() if lines > 80} == {}


def shell(folder, case: Case) -> subprocess.CompletedProcess[str]:
    der = bytes.fromhex("302a300506032b6570032100") + case.public_key
    pem = f"-----BEGIN PUBLIC KEY-----\n{b64encode(der).decode()}\n-----END PUBLIC KEY-----\n"
    for name, data in (("key.pem", pem.encode()), ("message", case.message), ("proof", case.proof)):
        (folder / name).write_bytes(data)
    script = [EXAMPLES / "verify_batched.sh", "key.pem", "message", "proof"]
    return subprocess.run(script, cwd=folder, capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.timeout(300)
def test_the_recipe_with_openssl_and_sha256sum_verifies(tmp_path):
    for blind in (False, True):
        messages = [b"message 0", "Привет".encode(), b"\x82\xa1a\x07", b"\xff", bytes(32)]
        made = batches.of(messages, first=41, blind=blind)
        for i, message in enumerate(messages):
            done = shell(tmp_path, Case("", message, made[i].proof))
            assert (done.returncode, done.stdout) == (0, f"default/0 {41 + i}\n"), done.stderr
    forms = [(case, good) for case, good in lines_of_signatures() if len(case.public_key) == 32]  # as openssl takes it
    for case in (case for case, good in forms if good):
        assert shell(tmp_path, case).stdout == f"my-rollup/3 {10**18 + 5}\n", case.what
    bad = [case for case, good in forms if not good]
    refused_by_the_recipe(tmp_path, [*bad[:: 3 if FULL else 24], *manipulated(Random(5), share(12)), *malformed()])


@pytest.mark.deep
@pytest.mark.timeout(3000)
def test_the_recipe_refuses_2000_manipulations(tmp_path):
    forms = [case for case, good in lines_of_signatures() if not good and len(case.public_key) == 32]
    refused_by_the_recipe(tmp_path, [*forms, *manipulated(Random(22), 2000)])


def refused_by_the_recipe(folder, cases):
    for case in cases:
        done = shell(folder, case)
        assert (done.returncode, done.stdout) == (1, ""), case


def test_the_recipe_takes_the_highest_number_and_none_above(tmp_path):
    highest = 2**63 - 1
    [one] = batches.of([b"m"], first=highest)
    assert shell(tmp_path, Case("", b"m", one.proof)).stdout == f"default/0 {highest}\n"
    for above in (
        batches.of([b"m", b"n"], first=highest)[1].proof,
        batches.of([b"m", b"n"], first=highest + 1)[1].proof,
    ):
        assert shell(tmp_path, Case("", b"n", above)).returncode == 1


def test_what_a_proof_says(tmp_path):
    [one] = batches.of([b"hello"], first=9, domain="my-rollup", epoch=3)
    found = batch_proof.read(PUBLIC, b"hello", one.proof)
    assert found is not None
    shown = (found.domain, found.epoch, found.index, found.kind, found.size, found.root)
    assert shown == ("my-rollup", 3, 9, "raw", 1, one.root)
    for wanted in ({"domain": "my-rollup"}, {"kind": "raw"}, {"epoch": 3}, {"domain": "my-rollup", "kind": "raw"}):
        assert hsmcore.verify_batched(PUBLIC, b"hello", one.proof, **wanted)
    for other in ({"domain": "my-rollup/3"}, {"kind": "tx-v0"}, {"epoch": 0}):
        assert not hsmcore.verify_batched(PUBLIC, b"hello", one.proof, **other)
    assert not hsmcore.verify_batched(bytes(33), b"hello", one.proof)
    assert hsmcore.verify_batched(PUBLIC, bytearray(b"hello"), memoryview(one.proof))
    with pytest.raises(InvalidMessageType):
        hsmcore.verify_batched(PUBLIC, "hello", one.proof)


def test_signatures_of_other_names_do_not_matter_and_one_of_the_key_must_hold():
    [one] = batches.of([b"hello"])
    text = one.proof.partition(b"\n\n")[2].rpartition(b"\n\n")[0] + b"\n"
    witness = note.VerifierKey("witness.example", note.ED25519, bytes(OTHER_KEY.verify_key))
    more = one.proof + note.signature_line(witness, OTHER_KEY.sign(text).signature)
    wrong = one.proof + note.signature_line(batch_proof.signer(text, PUBLIC), bytes(64))
    cases = [Case("", b"hello", more), Case("", b"hello", wrong)]
    assert by_hsmcore(cases) == by_python(cases) == [True, False]


# ---- what the key signs ----------------------------------------------------------------------------------------------


def test_every_text_that_a_verifier_takes_for_a_root_is_one_to_the_gate():
    """So that a key that signs raw messages signs none of them."""
    for domain, epoch, size, first, at in (("d", 0, 1, 0, 0), ("a/b!~" * 12, 2**62, 10**18, 2**62, 10**18)):
        text = batch_proof.checkpoint(domain, epoch, size, bytes(32), first, at)
        assert classify(text) == "batch-root"
        look = Gate(kinds=("raw", "batch-root"), domain=domain).look(text)
        assert "only hsmcore itself" in str(look.refusal)
        assert not Gate(kinds=("raw", "batch-root"), domain=domain).passes(text, None)


@given(st.data())
def test_what_differs_from_a_root_is_no_root_and_no_verifier_takes_it(data):
    text = batch_proof.checkpoint("my-rollup", 12, 5, b"\7" * 32, 40, 99)
    at = data.draw(st.integers(0, len(text)))
    changed = text[:at] + data.draw(st.binary(max_size=2)) + text[at + data.draw(st.integers(0, 2)) :]
    taken = tlog_proof._FORM.fullmatch(
        b"c2sp.org/tlog-proof@v1\nextra CAAAAAAAAAAD\nindex 0\n\n" + changed + b"\n\xe2\x80\x94 x"
    )
    if taken is not None:  # what is added behind the text belongs to the signatures
        assert classify(taken[4]) == "batch-root"


@given(st.binary(min_size=1, max_size=300))
@example("Привет".encode())
@example(b"\x80")
def test_any_bytes_are_a_leaf(message):
    leaves = Gate(kinds=None, domain="d")
    assert leaves.passes(message, None)
    assert leaves.look(message) == Look("raw", None, None, None)
    kind = classify(message)
    claims = ("tx-legacy", "tx-v0", "tx-v1", "off-chain", "digest32", "raw")
    assert [one for one in claims if leaves.passes(message, one)] == [kind] * (kind in claims)
    assert [one for one in claims if leaves.look(message, one).refusal is None] == [kind] * (kind in claims)


# ---- the collector ---------------------------------------------------------------------------------------------------


async def test_a_collector_refuses_what_cannot_be_signed():
    gate = Gate(kinds=("raw",), domain="default")
    leaves = Leaves(asyncio.get_running_loop())
    with pytest.raises(EmptyMessage):
        leaves.add(gate, b"", None, 10**9, 100)
    with pytest.raises(MessageTooLarge):
        leaves.add(gate, b"m" * 101, None, 10**9, 100)
    assert leaves.add(gate, bytes(32), None, 10**9, 100) is None  # a digest, which the gate does not pass
    assert leaves.add(gate, b"m", "tx-v0", 10**9, 100) is None
    with pytest.raises(WrongEventLoop):
        await asyncio.to_thread(leaves.add, gate, b"m", None, 10**9, 100)
    assert leaves.count == 0


async def test_nothing_of_a_batch_is_left():
    before = leaks()
    made = await batches.signed([b"m%d" % i for i in range(300)], blind=True)
    assert made[299].proof
    del made
    assert leaks() == before


async def test_a_caller_that_is_answered_is_kept_no_longer():
    gate, leaves = Gate(kinds=("raw",), domain="default"), Leaves(asyncio.get_running_loop())
    futures = [leaves.add(gate, b"m%d" % i, None, 10**12, 100) for i in range(3)]
    leaves.build(0, False)
    leaves.signed(b"note", "id", b"key", None)
    assert leaves.answer(1)  # the others are answered in other turns of the loop: tens of thousands of them
    seen = weakref.ref(futures[0])
    assert futures.pop(0).result().index == 0
    assert seen() is None
    assert not leaves.answer(2)
    assert [future.result().index for future in futures] == [1, 2]
