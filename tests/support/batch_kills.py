"""Signers of batches that are killed in the middle, again and again, on one state store."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import traceback
from base64 import b64decode, b64encode
from typing import Any

import hsmcore
from hsmcore.tlog import batch_proof

IN_FLIGHT = 64


def batches_under_kills(config: dict[str, Any], *, kills: int, seed: int) -> dict[str, int]:
    """Kill `kills` processes that sign batches, two at a time, and look at what they handed out: no number is in two
    trees. Raises AssertionError."""
    chance = random.Random(seed)
    roots: dict[int, bytes] = {}
    counts = {"signatures": 0, "roots": 0}
    for _ in range(kills):
        lives = [_begin(config) for _ in range(2)]
        try:
            lines = [line for _, answers in lives for line in _some(answers, chance.randrange(1, 120))]
        finally:
            for child, _ in lives:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
        for _, answers in lives:
            lines += answers.readlines()
            answers.close()
        for message, proof, key in (line.split() for line in lines):
            found = batch_proof.read(b64decode(key), b64decode(message), b64decode(proof))
            assert found is not None
            first = found.index - int(b64decode(proof).split(b"\n")[2][6:])
            for number in range(first, first + found.size):
                assert roots.setdefault(number, found.root) == found.root, f"two roots for number {number}"
            counts["signatures"] += 1
    counts["roots"] = len(set(roots.values()))
    return counts


def _some(answers: Any, count: int) -> list[bytes]:
    assert answers.readline() == b"ready\n", "the signer ended before it was killed"
    return [answers.readline() for _ in range(count)]


def _begin(config: dict[str, Any]) -> tuple[int, Any]:
    reads, writes = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reads)
            asyncio.run(_sign(config, writes))
        except BaseException:
            traceback.print_exc()
            raise
        finally:
            os._exit(1)
    os.close(writes)
    return child, os.fdopen(reads, "rb")


async def _sign(config: dict[str, Any], writes: int) -> None:
    async with hsmcore.create_key_manager(config) as manager:
        os.write(writes, b"ready\n")

        async def one(number: int) -> None:
            for i in range(1 << 30):
                message = b"%d %d %d" % (os.getpid(), number, i)
                signed = await manager.sign_batched(message)
                # One write of less than PIPE_BUF: whole or not at all.
                os.write(writes, b" ".join(map(b64encode, (message, signed.proof, signed.public_key))) + b"\n")

        await asyncio.gather(*(one(number) for number in range(IN_FLIGHT)))
