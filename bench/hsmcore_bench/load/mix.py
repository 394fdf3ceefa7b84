"""What is signed: kinds of messages, their sizes and shares, and repeats of earlier ones, which a cache can answer."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from hsmcore_bench.load.problems import UsageProblem
from hsmcore_bench.load.shapes import Random

DEFAULT: Final = "transactions=1:180-1232"
"""A Solana transaction has at most 1,232 bytes: an IPv6 packet of 1,280 less its headers."""
ENTRIES: Final = 4096
"""Request n is of the kind that entry n % ENTRIES says."""
SMALLEST: Final = 8
"""Bytes: the request's number."""
LARGEST: Final = 1 << 20
POOL: Final = 65_536
RECENT: Final = 256
"""How many requests ago a message was that is repeated, at most, where one of these is no repeat itself."""
_STRIDE: Final = 64
_REPEATS: Final = "repeats"


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of message; `share` of all requests (0..1), sizes in bytes. Repeats have no size of their own."""

    name: str
    share: float
    smallest: int = 0
    largest: int = 0

    @property
    def repeats(self) -> bool:
        """Whether it repeats earlier messages."""
        return self.name == _REPEATS


def kinds_of(text: str) -> tuple[Kind, ...]:
    """Parse "transactions=0.9:180-1232,blocks=0.02:32,repeats=0.08". Raises UsageProblem."""
    kinds = tuple(_kind(part.strip()) for part in text.split(","))
    names = [kind.name for kind in kinds]
    if len(set(names)) != len(names):
        raise UsageProblem(f"--mix {text!r}: each kind once")
    total = sum(kind.share for kind in kinds)
    if abs(total - 1) > 1e-6:
        raise UsageProblem(f"--mix {text!r}: the shares add up to {total:g} and not to 1")
    if all(kind.repeats for kind in kinds):
        raise UsageProblem(f"--mix {text!r}: something must be there to be repeated")
    return kinds


def _kind(text: str) -> Kind:
    match = re.fullmatch(r"([a-z][a-z0-9-]*)=(\d*\.?\d+)(?::(\d+)(?:-(\d+))?)?", text)
    if match is None:
        raise UsageProblem(f"--mix {text!r}: expected NAME=SHARE:BYTES, NAME=SHARE:FROM-TO or repeats=SHARE")
    name, share = match[1], float(match[2])
    if (name == _REPEATS) != (match[3] is None):
        raise UsageProblem(
            f"--mix {text!r}: repeats have the sizes of what they repeat"
            if name == _REPEATS
            else f"--mix {text!r}: say how many bytes, such as {name}={match[2]}:180-1232; "
            "a kind without a size can only be repeats"
        )
    if name == _REPEATS:
        return Kind(name, share)
    smallest, largest = int(match[3]), int(match[4] or match[3])
    if not SMALLEST <= smallest <= largest <= LARGEST:
        raise UsageProblem(f"--mix {text!r}: sizes go from {SMALLEST} to {LARGEST} bytes")
    return Kind(name, share, smallest, largest)


def largest_of(kinds: Sequence[Kind]) -> int:
    """Bytes of the longest message."""
    return max(kind.largest for kind in kinds)


def table_of(kinds: Sequence[Kind], seed: int) -> list[int]:
    """ENTRIES numbers: a size, or minus how many requests ago the message was that is repeated. Shares are exact to
    1/ENTRIES; the order is drawn from `seed`. No repeat leads to another one."""
    drawn = random.Random(seed)
    rows: list[int] = []
    left, share_left = ENTRIES, 1.0
    for kind in kinds:
        count = min(left, round(left * kind.share / share_left)) if share_left > 1e-9 else 0
        rows += [0 if kind.repeats else drawn.randint(kind.smallest, kind.largest) for _ in range(count)]
        left -= count
        share_left -= kind.share
    rows += [rows[0] or largest_of(kinds)] * left
    drawn.shuffle(rows)
    repeats = [not row for row in rows]
    if all(repeats):
        raise UsageProblem(f"--mix: less than one request in {ENTRIES} is no repeat")
    for index, row in enumerate(rows):
        if not row:
            back = drawn.randint(1, RECENT)
            while repeats[(index - back) % ENTRIES]:
                back += 1
            rows[index] = -back
    return rows


class Messages:
    """Makes the message of each request from its number. As bench/native/load/messages.c."""

    __slots__ = ("_pool", "_salt", "_table")

    def __init__(self, table: Sequence[int], largest: int, seed: int) -> None:
        drawn = Random(seed)
        self._table = table
        self._salt = drawn.next()
        self._pool = b"".join(drawn.next().to_bytes(8, "little") for _ in range((POOL + largest + 8) // 8))

    def message(self, number: int) -> bytes:
        """The message of the request with this number."""
        size = self._table[number % ENTRIES]
        if size < 0 and -size <= number:
            number += size
            size = self._table[number % ENTRIES]
        place = number * _STRIDE % POOL
        head = (number ^ self._salt).to_bytes(8, "little")
        return head + self._pool[place : place + size - SMALLEST] if size > SMALLEST else head
