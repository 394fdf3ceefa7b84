"""The public log of positions: what is bound becomes a leaf, witnessed, and proven to a program that knows neither."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import pytest
from tests.integration.test_policy import policed
from tests.support.loops import one_loop
from tests.support.managers import opened
from tests.support.policed import ordered
from tests.support.witness_server import WitnessServer

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
from verify_position import verify

pytestmark = pytest.mark.integration
ORIGIN = "example.com/my-rollup/block"


def publishing(token, folder, *witnesses, more=None, **publish):
    listed = [{"url": one.url, "key": one.key} for one in witnesses]
    said = {
        "folder": str(folder / "public"),
        "chains": {"block": {"origin": ORIGIN}},
        "everyMillis": 10,
        **({"witnesses": listed} if listed else {}),
        **publish,
    }
    return policed(token, folder, rules={"publish": said, **(more or {})})


DOMAIN = "default/block"


def policy(*witnesses, first=0, quorum=None):
    """What a verifier is given."""
    lines = [f"origin {ORIGIN}", f"first {first}", f"quorum {quorum or len(witnesses)}"]
    return "".join(f"{line}\n" for line in [*lines, *(f"witness {one.key}" for one in witnesses)]).encode()


def digest(payload):
    return hashlib.sha256(payload).digest()


@one_loop
async def test_a_position_that_was_signed_is_proven(world, tmp_path):
    with WitnessServer() as one, WitnessServer(name="witness.example/w2") as two:
        async with opened(publishing(world, tmp_path, one, two)) as manager:
            one.logs[ORIGIN] = two.logs[ORIGIN] = manager.public_key
            for position in range(300):
                await manager.sign(ordered(position))
            for position in (0, 1, 255, 256, 299):
                proof = await manager.position_proof(DOMAIN, position)
                known = policy(one, two)
                assert verify(known, digest(ordered(position)), position, proof) == 2
                assert verify(known, digest(ordered(position, b"other")), position, proof) is None
                assert verify(known, digest(ordered(position)), position + 1, proof) is None
                assert verify(policy(one, two, first=1), digest(ordered(position)), position, proof) is None
