"""Conversion of KMS's keys and signatures to the encodings of the rest of hsmcore. Other encodings are refused."""

from __future__ import annotations

import base64
import binascii
from typing import Final, NamedTuple

from hsmcore.members.control.curves import ORDERS, Algorithm, der_integers

MAX_RAW_MESSAGE: Final = 4096
"""Bytes; KMS API reference, Sign: MessageType RAW."""


class Form(NamedTuple):
    """A key spec: hsmcore's algorithm, KMS's signing algorithm, the bytes before the public key in its
    SubjectPublicKeyInfo, the public key's length, and the order of the group (0: EdDSA)."""

    algorithm: Algorithm
    signing: str
    prefix: bytes
    public_bytes: int
    order: int


# RFC 8410 section 4 and RFC 5480 section 2: SEQUENCE of the algorithm's OIDs, then the key as a BIT STRING.
FORMS: Final[dict[str, Form]] = {
    "ECC_NIST_EDWARDS25519": Form("ed25519", "ED25519_SHA_512", bytes.fromhex("302a300506032b6570032100"), 32, 0),
    "ECC_NIST_P256": Form(
        "ecdsa-p256",
        "ECDSA_SHA_256",
        bytes.fromhex("3059301306072a8648ce3d020106082a8648ce3d030107034200"),
        65,
        ORDERS["ecdsa-p256"],
    ),
    "ECC_SECG_P256K1": Form(
        "ecdsa-secp256k1",
        "ECDSA_SHA_256",
        bytes.fromhex("3056301006072a8648ce3d020106052b8104000a034200"),
        65,
        ORDERS["ecdsa-secp256k1"],
    ),
}
SPEC_OF: Final[dict[Algorithm, str]] = {form.algorithm: spec for spec, form in FORMS.items()}


def raw_public_key(form: Form, spki: bytes) -> bytes | None:
    """Return the public key in a SubjectPublicKeyInfo: 32 bytes or 0x04 || X || Y; None if it is not of that form."""
    key = spki[len(form.prefix) :]
    if not spki.startswith(form.prefix) or len(key) != form.public_bytes:
        return None
    return None if form.order and key[0] != 0x04 else key


def raw_signature(form: Form, signature: bytes) -> bytes | None:
    """Return 64 bytes: an EdDSA signature unchanged, or r || s of an ECDSA-Sig-Value with s made low, as in the native
    core. Return None if malformed."""
    if not form.order:
        return signature if len(signature) == 64 else None
    numbers = der_integers(signature)
    if numbers is None or not all(0 < number < form.order for number in numbers):
        return None
    r, s = numbers
    return r.to_bytes(32) + min(s, form.order - s).to_bytes(32)


def decoded(value: object) -> bytes:
    """Decode base64 of an answer; b"" for anything else."""
    try:
        return base64.b64decode(value, validate=True) if isinstance(value, str) else b""
    except binascii.Error:
        return b""
