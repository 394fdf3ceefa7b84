"""The group of Ed25519 (RFC 8032, section 5.1) in Python integers, for signatures that no signer would make."""

from __future__ import annotations

import hashlib

P = 2**255 - 19
ORDER = 2**252 + 27742317777372353535851937790883648493
"""Of the base point: the prime L. The whole group has eight times as many points."""
D = -121665 * pow(121666, -1, P) % P

Point = tuple[int, int]
NEUTRAL: Point = (0, 1)


def add(left: Point, right: Point) -> Point:
    """The sum."""
    (x1, y1), (x2, y2) = left, right
    both = D * x1 * x2 * y1 * y2
    return (x1 * y2 + x2 * y1) * pow(1 + both, -1, P) % P, (y1 * y2 + x1 * x2) * pow(1 - both, -1, P) % P


def times(number: int, point: Point) -> Point:
    """The point, so many times; a negative number is one of the whole group's order."""
    total, number = NEUTRAL, number % (8 * ORDER)
    while number:
        if number & 1:
            total = add(total, point)
        point, number = add(point, point), number >> 1
    return total


def lift(y: int, odd: int) -> Point | None:
    """The point with this y and an x that is odd or even; None if there is none."""
    square = (y * y - 1) * pow(D * y * y + 1, -1, P) % P
    x = pow(square, (P + 3) // 8, P)
    if (x * x - square) % P:
        x = x * pow(2, (P - 1) // 4, P) % P
    if (x * x - square) % P:
        return None
    return (x if x & 1 == odd else (P - x) % P), y


def encoded(point: Point) -> bytes:
    """In the one form that a point should have."""
    x, y = point
    return (y | (x & 1) << 255).to_bytes(32, "little")


def challenge(r: bytes, a: bytes, message: bytes) -> int:
    """The number that binds a signature to R, key and message, as they are spelled; below L."""
    return int.from_bytes(hashlib.sha512(r + a + message).digest(), "little") % ORDER


def _base() -> Point:
    found = lift(4 * pow(5, -1, P) % P, 0)
    assert found is not None
    return found


def _eighth() -> Point:
    """A point of order eight: of the first point beside the base point's group that has all of the torsion."""
    for y in range(2, 100):
        point = lift(y, 0)
        if point is not None and times(4, found := times(ORDER, point)) != NEUTRAL:
            return found
    raise AssertionError


BASE = _base()
EIGHTH = _eighth()
