"""Signers of blocks that are killed in the middle, again and again, and want other blocks each time."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from pathlib import Path
from typing import Any

from tests.support.policed import ordered
from tests.support.verifiers import is_good

import hsmcore
from hsmcore.errors import DoubleSign

POSITIONS = 24
IN_FLIGHT = 32


def sign_under_kills(config: dict[str, Any], *, kills: int, seed: int) -> dict[str, int]:
    """Kill `kills` processes that sign different blocks for the same positions, and look at what they handed out. Each
    position has one block, which is signed again; the counts say that something happened. Raises AssertionError."""
    chance = random.Random(seed)
    signed: dict[int, bytes] = {}
    counts = {"kills": 0, "signatures": 0, "positions": 0}
    for trial in range(kills):
        first = trial // 8 * POSITIONS  # eight lives want the same positions
        for position, content, signature, key in _life(config, first, chance):
            payload = ordered(position, content)
            assert is_good("ed25519", key, payload, signature)
            assert signed.setdefault(position, content) == content, f"two signatures at position {position}"
            counts["signatures"] += 1
        counts["kills"] += 1
    asyncio.run(_all_again(config, signed))
    counts["positions"] = len(signed)
    return counts


def _life(config: dict[str, Any], first: int, chance: random.Random) -> list[tuple[int, bytes, bytes, bytes]]:
    seed, most = chance.random(), chance.randrange(1, 60)
    reads, writes = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reads)
            asyncio.run(_sign(config, first, random.Random(seed), writes))
        finally:
            os._exit(1)
    os.close(writes)
    with os.fdopen(reads, "rb") as answers:
        ready = answers.readline()
        assert ready == b"ready\n", "the signer ended before it was killed"
        lines = [answers.readline() for _ in range(most)]
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        lines += answers.readlines()
    fields = [line.split() for line in lines]
    return [(int(position), *(bytes.fromhex(part.decode()) for part in rest)) for position, *rest in fields]  # type: ignore[misc]


async def _sign(config: dict[str, Any], first: int, chance: random.Random, writes: int) -> None:
    async with hsmcore.create_key_manager(config) as manager:
        os.write(writes, b"ready\n")
        key = manager.public_key.hex()

        async def one() -> None:
            while True:
                position, content = first + chance.randrange(POSITIONS), chance.choice((b"a", b"b", b"c"))
                try:
                    signature = await manager.sign(ordered(position, content))
                except DoubleSign:
                    continue
                # One write of less than PIPE_BUF: whole or not at all.
                os.write(writes, f"{position} {content.hex()} {signature.hex()} {key}\n".encode())

        await asyncio.gather(*(one() for _ in range(IN_FLIGHT)))


async def _all_again(config: dict[str, Any], signed: dict[int, bytes]) -> None:
    async with hsmcore.create_key_manager(config) as manager:
        for position, content in signed.items():
            assert await manager.sign(ordered(position, content))
            try:
                await manager.sign(ordered(position, b"another"))
            except DoubleSign as error:
                assert error.position == position  # noqa: PT017  # the other outcome is a signature
                continue
            raise AssertionError(f"two signatures at position {position}")


def config_of(token: Any, folder: Path) -> dict[str, Any]:
    """A configuration whose store is sealed."""
    config: dict[str, Any] = token.config(stateFile=str(folder / "state.db"), policy={"kinds": ["block"]})
    config["sequencer"]["stateSecret"] = "s" * 32
    return config
