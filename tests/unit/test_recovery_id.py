"""The recovery id of a secp256k1 signature, against published ones and against arithmetic on Python integers."""

from __future__ import annotations

import hashlib

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.size import share
from tests.support.verifiers import SECP256K1, recovered

from hsmcore._native import Digest, recovery_id
from hsmcore.errors import BadArgument, SignatureInvalid

N = SECP256K1.n
# EIP-155, the example: the private key is 32 bytes 0x46, and v is 37, which is the recovery id plus 37.
EIP155 = (
    bytes.fromhex("daf5a779ae972f972197303d7b574746c7ef83eadac0f2791ad23db92e4c8e53"),
    bytes.fromhex("28ef61340bd939bc2195fe537567866003e1a15d3c71ff63e1590620aa636276")
    + bytes.fromhex("67cbe9d8997f761aecb703304b3800ccf555c9f3dc64214b297fb1966a3b6d83"),
)
# go-ethereum, crypto/signature_test.go: the last byte of its signature is the recovery id, 1.
GETH = (
    bytes.fromhex("04e32df42865e97135acfb65f3bae71bdc86f4d49150ad6a440b6f15878109880a")
    + bytes.fromhex("0a2b2667f7e725ceea70c673093bf67663e0312623c8e091b13cf2c0f11ef652"),
    bytes.fromhex("ce0677bb30baa8cf067c88db9811f4333d131bf8bcf12fe7065d211dce971008"),
    bytes.fromhex("90f27b8b488db00b00606796d2987f6a5f59ae62ea05effe84fef5b8b0e54998")
    + bytes.fromhex("4a691139ad57a3f0b906637673aa2f63d1f55cb1a69199d4009eea23ceaddc93"),
)


def encoded(point: tuple[int, int]) -> bytes:
    return b"\x04" + point[0].to_bytes(32) + point[1].to_bytes(32)


def public_of(secret: int) -> bytes:
    numbers = ec.derive_private_key(secret, ec.SECP256K1()).public_key().public_numbers()
    return encoded((numbers.x, numbers.y))


def signed(secret: int, nonce: int, digest: bytes) -> bytes:
    """r || s with a low s, by SEC 1 section 4.1.3."""
    r = int.from_bytes(public_of(nonce)[1:33]) % N
    s = pow(nonce, -1, N) * (int.from_bytes(digest) + r * secret) % N
    return r.to_bytes(32) + min(s, N - s).to_bytes(32)


def test_published_recovery_ids():
    digest, signature = EIP155
    assert recovery_id(public_of(int.from_bytes(b"\x46" * 32)), Digest(digest), signature) == 0
    key, digest, signature = GETH
    assert recovery_id(key, Digest(digest), signature) == 1


@settings(max_examples=share(40))
@given(st.integers(1, N - 1), st.integers(1, N - 1), st.binary(min_size=32, max_size=32))
def test_the_id_gives_the_key_back(secret, nonce, digest):
    signature = signed(secret, nonce, digest)
    assert recovered(public_of(secret), digest, signature) == [
        recovery_id(public_of(secret), Digest(digest), signature)
    ]


@pytest.mark.parametrize("odd", [0, 1])
def test_a_point_whose_x_is_beyond_the_order(odd):
    """No key makes one in practice; a key for which a given signature has one is made here, from the signature."""
    x = next(x for x in range(N + 1, SECP256K1.p) if pow(x**3 + 7, (SECP256K1.p - 1) // 2, SECP256K1.p) == 1)
    y = pow(x**3 + 7, (SECP256K1.p + 1) // 4, SECP256K1.p)
    y = y if y % 2 == odd else SECP256K1.p - y
    r, s, digest = x - N, 0x1234567890, hashlib.sha256(b"m").digest()
    w = pow(r, -1, N)
    key = SECP256K1.combine(-int.from_bytes(digest) * w % N, s * w % N, (x, y))
    assert key is not None
    signature = r.to_bytes(32) + s.to_bytes(32)
    assert recovery_id(encoded(key), Digest(digest), signature) == 2 + odd
    assert recovered(encoded(key), digest, signature) == [2 + odd]


def test_a_signature_that_is_not_the_key_s_has_none():
    key, digest, signature = GETH
    s = int.from_bytes(signature[32:])
    wrong = [
        (public_of(7), digest, signature),
        (key, hashlib.sha256(digest).digest(), signature),
        (key, digest, signature[:32] + (N - s).to_bytes(32)),  # the high s: its id would be another one
        (key, digest, signature[:32] + bytes(32)),
        (key, digest, bytes(32) + signature[32:]),
        (key, digest, signature[:32] + N.to_bytes(32)),
        (key, digest, signature[:31] + b"\0" + signature[32:]),
    ]
    for public, given_digest, given_signature in wrong:
        with pytest.raises(SignatureInvalid):
            recovery_id(public, Digest(given_digest), given_signature)
    with pytest.raises(BadArgument):
        recovery_id(key[:-1] + b"\0", Digest(digest), signature)
    for part in (key[:-1], b"\x06" + key[1:], key + b"\0"):
        with pytest.raises(BadArgument):
            recovery_id(part, Digest(digest), signature)
    with pytest.raises(BadArgument):
        recovery_id(key, Digest(digest), signature[:-1])
