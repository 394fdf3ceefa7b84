"""Worlds by their seeds, each run in a process of its own: the simulation replaces time and threads for good."""

from __future__ import annotations

import asyncio
import hashlib
import os
import subprocess
import sys
from typing import Any

import pytest
from tests.simulation.calls import LABEL, OPTIONS, answers
from tests.support.paths import ROOT
from tests.support.size import FULL, share

from hsmcore._native import Engine

WORLDS = {"host": 400, "fleet": 120}
"""How many of each are played."""
MOST_SEEDS = 2000
FOUND = 4
"""Worlds in found.py."""
MUTANTS = (
    "second-key",
    "left-unbound",
    "bound-late",
    "bound-after",
    "another-answer",
    "dishonest",
    "no-weight",
    "gives-up",
    "deaf",
)
FLEET_MUTANTS = (
    "unfenced",
    "unwitnessed",
    "reclaimed",
    "long-lease",
    "impatient",
    "kept-open",
    "shy",
    "unshared",
    "idle",
)


def simulate(*arguments: str, module: str = "tests.simulation", **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )


@pytest.mark.slow("each world is a key manager's life")
@pytest.mark.parametrize("world", WORLDS)
def test_the_law_holds(world):
    done = simulate("--world", world, "--seeds", f"1-{share(WORLDS[world])}")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("world", WORLDS)
def test_a_seed_tells_the_same_story_in_each_process(world):
    """Nothing comes from the addresses of objects, from Python's hashes, or from the world before."""
    one = simulate("--world", world, "--seeds", "7-9", "--digests", PYTHONHASHSEED="1").stdout.splitlines()
    other = simulate("--world", world, "--seeds", "9-9", "--digests", PYTHONHASHSEED="2").stdout.splitlines()
    assert one[2].startswith("9 ")
    assert one[2] == other[0]


def test_what_was_found_stays_found():
    done = simulate("--world", "found", "--seeds", f"0-{FOUND - 1}")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow("some are seen late")
@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_fault_that_is_put_back_is_seen(mutant):
    done = simulate("--mutant", mutant, "--seeds", f"1-{MOST_SEEDS}")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "seed" in done.stdout


@pytest.mark.slow("some are seen late")
@pytest.mark.parametrize("mutant", FLEET_MUTANTS)
def test_a_fault_of_a_fleet_that_is_put_back_is_seen(mutant):
    done = simulate("--world", "fleet", "--mutant", mutant, "--seeds", f"1-{MOST_SEEDS}")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "seed" in done.stdout


@pytest.mark.integration
@pytest.mark.parametrize("seed", range(1, share(4) + 1))
async def test_the_simulated_engine_answers_as_the_real_one(fresh_token, seed):
    count = 1000 if FULL else 100
    secret = hashlib.sha256(LABEL.encode()).hexdigest()
    token = fresh_token(
        {"name": LABEL, "label": LABEL, "kind": "ed25519", "seed": secret, "public_key": public(secret)}
    )
    real: Any = Engine(**OPTIONS)
    try:
        pin = bytearray(token.pin.encode())
        await asyncio.to_thread(
            lambda: real.start(module_path=token.module, token_label=token.label, pin=pin, workers=2)
        )
        await asyncio.to_thread(lambda: real.add_key(label=token.keys[LABEL].label))
        real.attach(asyncio.get_running_loop())
        found = await answers(real, seed, count)
    finally:
        await asyncio.to_thread(lambda: real.stop(5.0))
        real.detach()
        real.release()
    done = simulate(str(seed), str(count), module="tests.simulation.calls")
    assert done.returncode == 0, done.stderr
    for number, (ours, theirs) in enumerate(zip(done.stdout.splitlines(), found, strict=True)):
        assert ours == theirs, f"call {number}"


def public(secret: str) -> str:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    return Ed25519PrivateKey.from_private_bytes(bytes.fromhex(secret)).public_key().public_bytes_raw().hex()
