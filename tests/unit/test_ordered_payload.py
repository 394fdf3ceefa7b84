"""hsmcore's own form of ordered payloads, and texts that a verifier of checkpoints takes."""

from __future__ import annotations

import json
from base64 import b64encode

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from nacl.signing import SigningKey
from tests.support import c2sp
from tests.support.paths import ROOT
from tests.support.payloads import ordered

import hsmcore
from hsmcore._native import Gate, classify
from hsmcore.errors import BadArgument

VECTORS = json.loads((ROOT / "tests/vectors/payloads.json").read_text())
KINDS = ("tx-legacy", "tx-v0", "tx-v1", "off-chain", "digest32", "raw")
KEY = SigningKey(b"\1" * 32)
PUBLIC = bytes(KEY.verify_key)
DIGEST = bytes(range(32))
NAMES = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E, exclude_characters="+"), min_size=1, max_size=64)


@pytest.mark.parametrize("one", VECTORS["good"], ids=lambda one: f"{one['kind']} {one['position']}")
def test_a_payload_has_the_bytes_that_the_document_says(one):
    digest, position = bytes.fromhex(one["digest"]), int(one["position"])
    made = hsmcore.payload(one["kind"], one["domain"], position, digest)
    assert made.hex() == one["payload"]
    assert made == ordered(one["kind"], position, one["domain"], digest)
    for buffer in (bytearray(digest), memoryview(digest)):
        assert hsmcore.payload(one["kind"], one["domain"], position, buffer) == made


@given(st.sampled_from(["block", "state-root"]), NAMES, st.integers(0, 2**63 - 1), st.binary(min_size=32, max_size=32))
def test_the_gate_reads_back_what_a_payload_was_made_of(kind, domain, position, digest):
    made = hsmcore.payload(kind, domain, position, digest)
    look = Gate(kinds=[kind], domain=domain).look(made, kind)
    assert (look.kind, look.domain, look.position, look.refusal) == (kind, domain, position, None)
    assert made.endswith(digest)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        *(({"kind": kind}, "block, state-root") for kind in ("raw", "batch-root", 1, None, [])),
        *(({"domain": domain}, "ASCII") for domain in ("", "a b", "a+b", "a\n", "\xe4", "a" * 65, b"a", None)),
        *(({"position": position}, "2^63-1") for position in (-1, 2**63, 1.0, True, "1", None)),
        *(({"digest": digest}, "32 bytes") for digest in (bytes(31), bytes(33), 32, "a" * 32, None)),
    ],
    ids=repr,
)
def test_what_is_no_payload_is_refused(changed, says):
    given = {"kind": "block", "domain": "d", "position": 1, "digest": DIGEST}
    with pytest.raises(BadArgument, match=says.replace("^", r"\^")):
        hsmcore.payload(**given | changed)


@pytest.mark.parametrize("kind", ["block", "state-root"])
def test_a_bare_digest_of_an_ordered_kind_is_refused_by_an_error_that_names_the_function(kind):
    gate = Gate(kinds=[kind], domain="d")
    assert not gate.passes(DIGEST, kind)
    assert f"hsmcore.payload('{kind}', domain, position, digest)" in str(gate.look(DIGEST, kind).refusal)


@pytest.mark.parametrize(
    "kind", ["nonsense", "Block", "batch-root", "key-set", "prehashed", "unknown", 5, b"raw", [], ""]
)
def test_a_kind_that_no_message_has_is_no_argument(kind):
    gate = Gate(kinds=["raw"], domain="d")
    assert not gate.passes(b"m", kind)
    with pytest.raises(BadArgument, match=r"kinds are tx-legacy, .*, raw"):
        gate.look(b"m", kind)


# ---- checkpoints -----------------------------------------------------------------------------------------------------

ROOT_LINE = b64encode(bytes(32)).decode()


def takes(text: bytes) -> bool:
    """Whether a verifier takes a signature over this text for one of a checkpoint, by the log or by a witness."""
    begin, _, rest = text.partition(b"\n")
    stamp, _, below = rest.partition(b"\n")
    signature = KEY.sign(text).signature
    shown = [(text, begin, c2sp.ED25519, signature)]
    if begin == b"cosignature/v1" and stamp.startswith(b"time ") and stamp[5:].isdigit() and int(stamp[5:]) < 2**64:
        shown.append((below, b"witness", c2sp.COSIGNATURE, int(stamp[5:]).to_bytes(8) + signature))
    for signed, name, kind, value in shown:
        try:
            c2sp.checkpoint(c2sp.note(signed, name.decode(), kind, PUBLIC, value), name.decode(), PUBLIC)
        except ValueError:
            continue
        return True
    return False


LINES = st.one_of(
    st.sampled_from(
        [
            "my-rollup/0",
            "example.com/log",
            "é",
            "0",
            "12",
            "007",
            ROOT_LINE,
            ROOT_LINE[:-1],
            "cosignature/v1",
            "time 7",
            "",
        ]
    ),
    st.text(max_size=50),
    st.integers(0, 2**70).map(str),
    st.binary(min_size=32, max_size=32).map(lambda data: b64encode(data).decode()),
)
TEXTS = st.one_of(
    st.lists(LINES, max_size=7).map(lambda lines: "".join(f"{line}\n" for line in lines).encode()),
    st.tuples(
        st.text(min_size=1, max_size=20), st.integers(0, 2**64), st.binary(min_size=32, max_size=32), st.text()
    ).map(lambda parts: f"{parts[0]}\n{parts[1]}\n{b64encode(parts[2]).decode()}\n{parts[3]}".encode()),
)


@given(TEXTS)
@example(f"my-rollup/0\n1\n{ROOT_LINE}\n".encode())
@example(f"my-rollup/0\n1\n{ROOT_LINE}\nhsmcore/batch-root/v1 0\ntime 1\nmore\n".encode())
@example(f"é\n1\n{ROOT_LINE}\n".encode())
@example(f"cosignature/v1\ntime 7\nexample.com/log\n1\n{ROOT_LINE}\n".encode())
@example(f"go.sum database tree\n1\n{ROOT_LINE}\n".encode())
def test_no_signature_that_a_caller_gets_is_one_of_a_checkpoint(text):
    gate = Gate(kinds=KINDS, domain="d")
    if takes(text):
        assert classify(text) in ("unknown", "batch-root")
        assert gate.look(text).refusal is not None
        assert not gate.passes(text, None)


def test_the_verifier_takes_what_it_should():
    for head in ("my-rollup/0", "a"):
        assert takes(f"{head}\n1\n{ROOT_LINE}\n".encode())
        assert takes(f"{head}\n1\n{ROOT_LINE}\nmore\n".encode())
        assert takes(f"cosignature/v1\ntime 7\n{head}\n1\n{ROOT_LINE}\n".encode())
        for text in (
            f"{head}\n1\n{ROOT_LINE[:-1]}\n",
            f"{head}\n01\n{ROOT_LINE}\n",
            f"{head}\n",
            f"{head} b\n1\n{ROOT_LINE}\n",
        ):
            assert not takes(text.encode())


@pytest.mark.parametrize(
    "text",
    [
        "a title\n2026\nfollowed by a sentence that is longer than a root in base64\n",
        "a\nb\n",
        "1\n2\n3\n",
        f"{ROOT_LINE}\n",
    ],
)
def test_other_texts_are_raw(text):
    assert classify(text.encode()) == "raw"
