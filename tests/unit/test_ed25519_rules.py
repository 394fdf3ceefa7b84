"""Ed25519 signatures on the edge of the rules: every verifier of ours takes what Solana takes, and nothing else.

OpenSSL is not asked: it takes points of small order. The client's verifier: clients/typescript/test/vectors.test.ts."""

from __future__ import annotations

import json

import pytest
from nacl.exceptions import BadSignatureError
from nacl.signing import VerifyKey
from solders.pubkey import Pubkey
from solders.signature import Signature
from tests.support.loops import one_loop
from tests.support.paths import ROOT
from tests.vectors.make_rules import cases

from hsmcore._native import verify
from hsmcore.base.keyring import KeyVersion
from hsmcore.manager.verification import VerifierPool
from hsmcore.tlog.note import ED25519, VerifierKey
from hsmcore_client._pure import verify as pure_verify

CASES = json.loads((ROOT / "tests" / "vectors" / "ed25519_rules.json").read_text())
each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])


def bytes_of(case):
    return [bytes.fromhex(case[part]) for part in ("key", "message", "signature")]


def test_the_file_is_what_the_mathematics_give():
    assert cases() == CASES
    assert [case["name"] for case in CASES if case["valid"] and not case["holds"]] == []
    assert {(case["valid"], case["holds"], case["holdsTimesEight"]) for case in CASES} == {
        (True, True, True),
        (False, True, True),  # refused for R, key or S alone
        (False, False, True),
    }


@each_case
@one_loop
async def test_a_signature_is_good_where_solana_says_so(case):
    key, message, signature = bytes_of(case)
    assert Signature(signature).verify(Pubkey(key), message) is case["valid"], "Solana's own rule"
    assert verify("ed25519", key, message, signature) is case["valid"]
    assert pure_verify("ed25519", key, message, signature) is case["valid"], "the client alone"
    assert VerifierKey("vectors", ED25519, key).accepts(message, signature) is case["valid"]
    pool = VerifierPool()
    try:
        version = KeyVersion("00", "key", "ed25519", key, 0)
        assert await pool.verify([version], message, signature) is case["valid"], "what km.verify asks"
    finally:
        pool.close()


@each_case
def test_pynacl_agrees(case):
    """It verifies approvals."""
    key, message, signature = bytes_of(case)
    try:
        VerifyKey(key).verify(message, signature)
        good = True
    except BadSignatureError:
        good = False
    assert good is case["valid"]
