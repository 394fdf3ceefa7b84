"""Proofs of batches: none that was changed shows its message to be in the batch."""

from __future__ import annotations

from tests.fuzz.engine import main
from tests.support import batches

import hsmcore

MESSAGE = b"m2"
PUBLIC = bytes(batches.KEY.verify_key)


def seeds() -> list[bytes]:
    """Proofs of small batches, of another message, and of another key."""
    made = [one.proof for count in (1, 3, 7) for one in batches.of([b"m%d" % i for i in range(count)])]
    return [*made, batches.of([MESSAGE], key=batches.OTHER_KEY)[0].proof]


SEEDS = frozenset(seeds())


def one(data: bytes) -> str:
    """Verify it."""
    good = hsmcore.verify_batched(PUBLIC, MESSAGE, data)
    assert not good or data in SEEDS, data
    return f"{good}:{min(data.count(10), 12)}"


if __name__ == "__main__":
    main(seeds, one)
