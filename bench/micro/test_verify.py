"""Verification in software, with the GIL released."""

from __future__ import annotations

import pytest
from bench.micro.kit import PerCall
from nacl.signing import SigningKey

from hsmcore import _native

CALLS = 100
# RFC 6979 A.2.5: P-256, SHA-256, "sample"; s replaced by n - s, because a high s is rejected.
P256_KEY = bytes.fromhex(
    "04"
    "60FED4BA255A9D31C961EB74C6356D68C049B8923B61FA6CE669622E60F29FB6"
    "7903FE1008B8BC99A41AE9E95628BC64F2F1B20C2D7E9F5177A3C294D4462299"
)
P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
P256_R = 0xEFD48B2AACB6A8FD1140DD9CD45E81D69D2C877B56AAF991C34D0EA84EAF3716
P256_S = P256_ORDER - 0xF7CB1C942D657C41D436C7A1B6E29F65F3E900DBB9AFF4064DC4AB2F843ACDA8


@pytest.mark.benchmark(group="verify")
@pytest.mark.parametrize("size", [200, 16_000])
def test_ed25519(per_call: PerCall, size: int) -> None:
    signer = SigningKey(bytes(32))
    message = bytes(size)
    signature = signer.sign(message).signature
    public_key = bytes(signer.verify_key)

    def verify() -> None:
        for _ in range(CALLS):
            assert _native.verify("ed25519", public_key, message, signature)

    per_call(verify, CALLS)


@pytest.mark.benchmark(group="verify")
def test_p256(per_call: PerCall) -> None:
    signature = P256_R.to_bytes(32, "big") + P256_S.to_bytes(32, "big")

    def verify() -> None:
        for _ in range(CALLS):
            assert _native.verify("ecdsa-p256", P256_KEY, b"sample", signature)

    per_call(verify, CALLS)
