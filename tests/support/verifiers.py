"""Verifiers that share no code with what they verify: PyNaCl for Ed25519, and ECDSA in Python integers (SEC 1, section
4.1.4), since the native core and SoftHSM both use OpenSSL."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from nacl.exceptions import BadSignatureError
from nacl.signing import VerifyKey

Point = tuple[int, int] | None


@dataclass(frozen=True)
class Curve:
    """y² = x³ + ax + b over the integers modulo p; the base point g has order n."""

    p: int
    a: int
    b: int
    g: tuple[int, int]
    n: int

    def holds(self, point: tuple[int, int]) -> bool:
        """Whether the point lies on the curve."""
        x, y = point
        return 0 <= x < self.p and 0 <= y < self.p and (y * y - x * x * x - self.a * x - self.b) % self.p == 0

    def add(self, left: Point, right: Point) -> Point:
        """The sum; None is the point at infinity."""
        if left is None or right is None:
            return right if left is None else left
        (x1, y1), (x2, y2) = left, right
        if x1 == x2 and (y1 + y2) % self.p == 0:
            return None
        top, bottom = (3 * x1 * x1 + self.a, 2 * y1) if left == right else (y2 - y1, x2 - x1)
        slope = top * pow(bottom, -1, self.p) % self.p
        x = (slope * slope - x1 - x2) % self.p
        return x, (slope * (x1 - x) - y1) % self.p

    def combine(self, u1: int, u2: int, point: tuple[int, int]) -> Point:
        """u1·g + u2·point."""
        both = self.add(self.g, point)
        total: Point = None
        for bit in range(self.n.bit_length() - 1, -1, -1):
            total = self.add(total, total)
            one, two = u1 >> bit & 1, u2 >> bit & 1
            if one or two:
                total = self.add(total, both if one and two else self.g if one else point)
        return total


P256 = Curve(
    p=0xFFFFFFFF00000001000000000000000000000000FFFFFFFFFFFFFFFFFFFFFFFF,
    a=0xFFFFFFFF00000001000000000000000000000000FFFFFFFFFFFFFFFFFFFFFFFC,
    b=0x5AC635D8AA3A93E7B3EBBD55769886BC651D06B0CC53B0F63BCE3C3E27D2604B,
    g=(
        0x6B17D1F2E12C4247F8BCE6E563A440F277037D812DEB33A0F4A13945D898C296,
        0x4FE342E2FE1A7F9B8EE7EB4A7C0F9E162BCE33576B315ECECBB6406837BF51F5,
    ),
    n=0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551,
)
SECP256K1 = Curve(
    p=0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEFFFFFC2F,
    a=0,
    b=7,
    g=(
        0x79BE667EF9DCBBAC55A06295CE870B07029BFCDB2DCE28D959F2815B16F81798,
        0x483ADA7726A3C4655DA4FBFC0E1108A8FD17B448A68554199C47D08FFB10D4B8,
    ),
    n=0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141,
)
CURVES = {"ecdsa-p256": P256, "ecdsa-secp256k1": SECP256K1}


def is_low_s(algorithm: str, signature: bytes) -> bool:
    """Whether s is in the lower half: then the signature has no twin that verifies too."""
    return int.from_bytes(signature[32:]) <= CURVES[algorithm].n // 2


def verify_ecdsa(algorithm: str, public_key: bytes, message: bytes, signature: bytes) -> bool:
    """Whether r || s is good for the SHA-256 digest of the message. `public_key` is 0x04 || X || Y."""
    curve = CURVES[algorithm]
    point = int.from_bytes(public_key[1:33]), int.from_bytes(public_key[33:])
    assert len(public_key) == 65, len(public_key)
    assert public_key[0] == 4
    assert curve.holds(point)
    r, s = int.from_bytes(signature[:32]), int.from_bytes(signature[32:])
    if len(signature) != 64 or not (0 < r < curve.n and 0 < s < curve.n):
        return False
    e = int.from_bytes(hashlib.sha256(message).digest())
    w = pow(s, -1, curve.n)
    found = curve.combine(e * w % curve.n, r * w % curve.n, point)
    return found is not None and found[0] % curve.n == r


def is_good(algorithm: str, public_key: bytes, message: bytes, signature: bytes) -> bool:
    """Whether the signature is good."""
    if algorithm != "ed25519":
        return verify_ecdsa(algorithm, public_key, message, signature)
    try:
        VerifyKey(public_key).verify(message, signature)
    except BadSignatureError:
        return False
    return True


def recovered(public_key: bytes, digest: bytes, signature: bytes) -> list[int]:
    """The recovery ids by which a secp256k1 signature of a digest gives this public key (SEC 1, section 4.1.6)."""
    curve = SECP256K1
    r, s, e = int.from_bytes(signature[:32]), int.from_bytes(signature[32:]), int.from_bytes(digest)
    found = []
    for number in range(4):
        x = r + (number >> 1) * curve.n
        square = (x**3 + curve.b) % curve.p
        y = pow(square, (curve.p + 1) // 4, curve.p)
        if x >= curve.p or y * y % curve.p != square:
            continue
        y = y if y % 2 == number & 1 else curve.p - y
        w = pow(r, -1, curve.n)
        point = curve.combine(-e * w % curve.n, s * w % curve.n, (x, y))
        if point is not None and b"\x04" + point[0].to_bytes(32) + point[1].to_bytes(32) == public_key:
            found.append(number)
    return found
