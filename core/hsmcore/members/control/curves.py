"""Curves and points: a token's CKA_EC_PARAMS and CKA_EC_POINT as algorithm and public key.

Tokens disagree about CKA_EC_POINT: the standard asks for a DER OCTET STRING, some return the raw bytes, some a BIT
STRING. A raw key may begin with the bytes of a DER header, so a DER parser could misread it: the length decides, and
the header is checked afterwards.
"""

from __future__ import annotations

from typing import Final, Literal, get_args

Algorithm = Literal["ed25519", "ecdsa-p256", "ecdsa-secp256k1"]
ALGORITHMS: Final[tuple[Algorithm, ...]] = get_args(Algorithm)

ED25519_OID: Final = bytes.fromhex("06032b6570")  # RFC 8410: 1.3.101.112
ED25519_NAME: Final = b"\x13\x0cedwards25519"  # PKCS#11 v3.0: curveName, a PrintableString
_ED25519_OLD_OID: Final = bytes.fromhex("06092b06010401da470f01")  # 1.3.6.1.4.1.11591.15.1
P256_OID: Final = bytes.fromhex("06082a8648ce3d030107")
SECP256K1_OID: Final = bytes.fromhex("06052b8104000a")

# The orders of the groups (SEC 2, sections 2.4.1 and 2.4.2).
ORDERS: Final = {
    "ecdsa-p256": 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551,
    "ecdsa-secp256k1": 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141,
}

_CURVES: Final[dict[bytes, Algorithm]] = {
    ED25519_OID: "ed25519",
    ED25519_NAME: "ed25519",
    _ED25519_OLD_OID: "ed25519",
    P256_OID: "ecdsa-p256",
    SECP256K1_OID: "ecdsa-secp256k1",
}

# total length -> header that must stand before the key
_ED25519_FORMS: Final[dict[int, bytes]] = {32: b"", 34: b"\x04\x20", 35: b"\x03\x21\x00"}
_ECDSA_FORMS: Final[dict[int, bytes]] = {65: b"", 67: b"\x04\x41", 68: b"\x03\x42\x00"}
_UNCOMPRESSED: Final = 0x04


def algorithm_of_params(params: bytes) -> Algorithm | None:
    """The algorithm for a CKA_EC_PARAMS value, or None for a curve that hsmcore doesn't sign with."""
    return _CURVES.get(bytes(params))


def decode_point(algorithm: Algorithm, point: bytes) -> bytes | None:
    """The public key in a CKA_EC_POINT value: 32 bytes (Ed25519) or 0x04 || X || Y; None if it has no known form."""
    header = (_ED25519_FORMS if algorithm == "ed25519" else _ECDSA_FORMS).get(len(point))
    if header is None or not point.startswith(header):
        return None
    key = bytes(point[len(header) :])
    if algorithm != "ed25519" and key[0] != _UNCOMPRESSED:
        return None
    return key


def low_s(algorithm: str, signature: bytes) -> bytes:
    """Return the one of the two equivalent ECDSA signatures that the signing engine makes: that with the low s."""
    r, s = signature[:32], int.from_bytes(signature[32:], "big")
    return r + min(s, ORDERS[algorithm] - s).to_bytes(32, "big")


def der_integers(data: bytes) -> tuple[int, int] | None:
    """Return r and s of an ECDSA-Sig-Value (RFC 3279, 2.2.3), SEQUENCE { INTEGER, INTEGER }, if it is DER and they are
    not negative, else None."""
    if len(data) < 8 or data[0] != 0x30 or data[1] != len(data) - 2 or data[1] > 0x7F:
        return None
    numbers = []
    rest = data[2:]
    for _ in range(2):
        if len(rest) < 3 or rest[0] != 0x02 or not 1 <= rest[1] <= len(rest) - 2:
            return None
        value, rest = rest[2 : 2 + rest[1]], rest[2 + rest[1] :]
        if value[0] & 0x80 or (len(value) > 1 and value[0] == 0 and not value[1] & 0x80):
            return None  # negative, or longer than necessary
        numbers.append(int.from_bytes(value))
    return None if rest else (numbers[0], numbers[1])
