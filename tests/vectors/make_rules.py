"""Ed25519 signatures on the edge of the rules: which of them a verifier takes, and why.

`python -m tests.vectors.make_rules` prints ed25519_rules.json. RFC 8032 leaves open what verifiers do about points that
have a part of small order, and about second spellings; chains must agree. Solana's rule, and ours: S is below L, R and
key A are points of large order in their only spelling, and S·B = R + k·A holds as it stands, not times eight.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

from tests.support.edwards import BASE, EIGHTH, NEUTRAL, ORDER, P, Point, add, challenge, encoded, times

SECRET, NONCE = 0x1D5A7F3E9C, 0x2B8E6D4C1F
"""The key is SECRET times the base point, R is NONCE times it: a verifier cannot see how they come from a seed."""
KEY, R = times(SECRET, BASE), times(NONCE, BASE)
OTHER_NEUTRAL = (P + 1).to_bytes(32, "little")
"""The neutral element once more: y is 1 modulo p."""
NEGATIVE_NEUTRAL = (1 | 1 << 255).to_bytes(32, "little")
"""And again: its x is 0, of which there is no odd one."""


def messages() -> Iterator[bytes]:
    """As many as needed: a few cases depend on the challenge's remainder modulo eight."""
    return (b"ed25519 rule %d" % number for number in itertools.count())


def case(
    name: str,
    why: str,
    *,
    valid: bool,
    key: Point = KEY,
    r: Point = R,
    key_spelled: bytes | None = None,
    r_spelled: bytes | None = None,
    fits: Callable[[int], bool] = lambda _: True,
    more: int = 0,
    s: Callable[[int], int] = lambda k: NONCE + k * SECRET,
) -> dict[str, Any]:
    """A case with the first message whose challenge fits. `more` is added to S, which is below L."""
    key_bytes, r_bytes = key_spelled or encoded(key), r_spelled or encoded(r)
    message = next(each for each in messages() if fits(challenge(r_bytes, key_bytes, each)))
    k = challenge(r_bytes, key_bytes, message)
    whole = s(k) % ORDER + more
    sides = times(whole, BASE), add(r, times(k, key))
    return {
        "name": name,
        "why": why,
        "valid": valid,
        "key": key_bytes.hex(),
        "message": message.hex(),
        "signature": (r_bytes + whole.to_bytes(32, "little")).hex(),
        "holds": sides[0] == sides[1],
        "holdsTimesEight": times(8, sides[0]) == times(8, sides[1]),
    }


def cases() -> list[dict[str, Any]]:
    """All of them."""
    mixed_key, mixed_r = add(KEY, EIGHTH), add(R, EIGHTH)
    quarter = times(2, EIGHTH)
    assert quarter[1] == 0
    return [
        case("plain", "a signature as any signer makes it", valid=True),
        case("s + L", "S has one spelling, else a stranger makes a second signature", valid=False, more=ORDER),
        case("s + 8 L", "as before, with a bit of S above the 253rd", valid=False, more=8 * ORDER),
        *(
            case(
                f"small key {number}",
                "a key of small order signs everything whose challenge its order divides",
                valid=False,
                key=times(number, EIGHTH),
                fits=lambda k: k % 8 == 0,
                s=lambda _: NONCE,
            )
            for number in range(8)
        ),
        case(
            "small key and small R",
            "as before, and S is zero",
            valid=False,
            key=EIGHTH,
            r=times(4, EIGHTH),
            fits=lambda k: k % 8 == 4,
            s=lambda _: 0,
        ),
        *(
            case(
                f"small R {number}, mixed key",
                "R cancels the key's part of small order: the equation holds, with S = k·a, which hides no nonce",
                valid=False,
                key=mixed_key,
                r=times(number, EIGHTH),
                fits=lambda k, number=number: (k + number) % 8 == 0,
                s=lambda k: k * SECRET,
            )
            for number in range(8)
        ),
        case(
            "mixed key, no remainder",
            "the equation holds as it stands, and the key is of large order",
            valid=True,
            key=mixed_key,
            fits=lambda k: k % 8 == 0,
        ),
        case(
            "mixed key and mixed R, cancelled",
            "the two parts of small order cancel each other: the equation holds as it stands",
            valid=True,
            key=mixed_key,
            r=mixed_r,
            fits=lambda k: k % 8 == 7,
        ),
        case(
            "mixed key",
            "the equation holds times eight alone",
            valid=False,
            key=mixed_key,
            fits=lambda k: k % 8 == 3,
        ),
        case("mixed R", "the equation holds times eight alone", valid=False, r=mixed_r),
        case(
            "mixed key and mixed R",
            "the equation holds times eight alone",
            valid=False,
            key=mixed_key,
            r=mixed_r,
            fits=lambda k: k % 8 == 2,
        ),
        case(
            "second spelling of R",
            "R is the neutral element, with a y that is not below p",
            valid=False,
            r=NEUTRAL,
            r_spelled=OTHER_NEUTRAL,
            s=lambda k: k * SECRET,
        ),
        case(
            "negative zero in R",
            "R is the neutral element, with the sign of an x that has none",
            valid=False,
            r=NEUTRAL,
            r_spelled=NEGATIVE_NEUTRAL,
            s=lambda k: k * SECRET,
        ),
        case(
            "second spelling of the key",
            "the key is the neutral element, with a y that is not below p",
            valid=False,
            key=NEUTRAL,
            key_spelled=OTHER_NEUTRAL,
            s=lambda _: NONCE,
        ),
        case(
            "negative zero in the key",
            "the key is the neutral element, with the sign of an x that has none",
            valid=False,
            key=NEUTRAL,
            key_spelled=NEGATIVE_NEUTRAL,
            s=lambda _: NONCE,
        ),
        case(
            "second spelling of a key of order four",
            "its y is p, which is 0",
            valid=False,
            key=quarter,
            key_spelled=(P | (quarter[0] & 1) << 255).to_bytes(32, "little"),
            fits=lambda k: k % 4 == 0,
            s=lambda _: NONCE,
        ),
    ]


if __name__ == "__main__":
    sys.stdout.write(json.dumps(cases(), indent=1, ensure_ascii=False) + "\n")
