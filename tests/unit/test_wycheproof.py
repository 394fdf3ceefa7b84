"""Wycheproof's vectors: Ed25519, and ECDSA with P-256 and secp256k1 as r‖s. Their origin: tests/vectors/README.md."""

from __future__ import annotations

import json

import pytest
from tests.support.paths import ROOT
from tests.support.verifiers import CURVES, is_low_s

from hsmcore._native import verify as native_verify
from hsmcore.errors import BadArgument, InvalidMessageType
from hsmcore_client._pure import verify as pure_verify

EXPECTED = {
    "valid": True,
    "invalid": False,
    # What the origin leaves open: RFC 8032 allows both.
    "SmallOrderPublicKey": False,
    "MixedOrderPublicKey": True,
}

each_verifier = pytest.mark.parametrize("verify", [native_verify, pure_verify], ids=["native", "pure"])


def vectors(algorithm):
    """Number, public key, message, signature and result of each."""
    text = (ROOT / "tests" / "vectors" / "wycheproof" / f"{algorithm}.json").read_text()
    for key, tests in json.loads(text)["keys"].items():
        for number, message, signature, result in tests:
            yield number, bytes.fromhex(key), bytes.fromhex(message), bytes.fromhex(signature), result


@each_verifier
def test_ed25519(verify):
    found = {
        number: (result, verify("ed25519", key, message, signature))
        for number, key, message, signature, result in vectors("ed25519")
    }
    assert {number: each for number, each in found.items() if each[1] is not EXPECTED[each[0]]} == {}
    assert (len(found), sum(good for _, good in found.values())) == (210, 117 + 21)


@each_verifier
@pytest.mark.parametrize(("algorithm", "total", "good"), [("ecdsa-p256", 262, 173), ("ecdsa-secp256k1", 252, 167)])
def test_ecdsa_takes_what_is_valid_with_a_low_s_and_nothing_else(algorithm, total, good, verify):
    order, count, high = CURVES[algorithm].n, {"valid": 0, "invalid": 0}, 0
    for number, key, message, signature, result in vectors(algorithm):
        count[result] += 1
        low = len(signature) == 64 and is_low_s(algorithm, signature)
        assert verify(algorithm, key, message, signature) is (result == "valid" and low), number
        twin = signature[:32] + ((order - int.from_bytes(signature[32:64])) % order).to_bytes(32)
        if len(signature) == 64 and not low:
            high += result == "valid"
            assert verify(algorithm, key, message, twin) is (result == "valid"), number
    assert count == {"valid": good, "invalid": total - good}
    assert high > 0


@each_verifier
@pytest.mark.parametrize("algorithm", CURVES)
def test_a_key_has_one_spelling_and_is_a_point_of_its_curve(algorithm, verify):
    _, key, message, signature, _ = next(one for one in vectors(algorithm) if one[-1] == "valid")
    odd = key[-1] & 1
    wrong = [b"", key[:-1], key + b"\0", bytes((6 + odd,)) + key[1:], bytes((2 + odd,)) + key[1:33], bytes(65)]
    wrong += [key[:1] + key[33:] + key[1:33], key[:-1] + bytes((key[-1] ^ 1,)), bytes(1)]
    for each in wrong:
        with pytest.raises(BadArgument):
            verify(algorithm, each, message, signature)
    with pytest.raises(BadArgument):
        verify("ecdsa-p384", key, message, signature)
    with pytest.raises(InvalidMessageType):
        verify(algorithm, key, "text", signature)
    assert not any(
        verify(algorithm, key, message, each) for each in (b"", signature[:-1], signature + b"\0", bytes(64))
    )
