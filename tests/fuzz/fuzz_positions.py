"""Files of positions, which an operator brings from elsewhere: refused with their faults, or read and written alike."""

from __future__ import annotations

import json

from tests.fuzz.engine import main

from hsmcore.errors import BadArgument
from hsmcore.recovery.interchange import parse, text_of


def seeds() -> list[bytes]:
    """One with everything in it."""
    bound = [{"position": 5, "digest": "ab" * 32}, {"position": 9, "digest": "cd" * 32}]
    first = {"domain": "chain/block", "floor": 3, "high": 9, "reason": "final", "bound": bound}
    domains = [first, {"domain": "chain/state-root", "floor": -1, "high": -1}]
    return [json.dumps({"hsmcoreFleet": 1, "fleet": "sequencer", "domains": domains}).encode()]


def one(data: bytes) -> str:
    """Read it."""
    try:
        found = parse(data)
    except BadArgument as error:
        return str(error)[45:80]
    assert parse(text_of(found)) == found
    return f"read {len(found.domains)}"


if __name__ == "__main__":
    main(seeds, one)
