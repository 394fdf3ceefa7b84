"""What a key with a policy signs: transactions that differ, and blocks at one position after the other."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from itertools import count
from secrets import randbits

import hsmcore
from hsmcore_bench.suite.child.protocol import check_message

_KEYS = bytes([1]) * 32 + bytes([2]) * 32
Sign = Callable[[bytes], Awaitable[bytes]]


def transactions(number: int, size: int) -> list[bytes]:
    """Messages of Solana's version 0 that call one program with data, `size` bytes long (106 to 233), each with another
    blockhash."""
    head = bytes([0x80, 1, 0, 1, 2]) + _KEYS
    data = size - len(head) - 32 - 5
    if not 0 <= data < 0x80:
        raise ValueError("the data's length is written in one byte: these transactions have 106 to 233 bytes")
    tail = bytes([1, 1, 0, data]) + check_message(data) + bytes([0])
    return [head + i.to_bytes(32) + tail for i in range(number)]


def block(position: int) -> bytes:
    """A payload of hsmcore's own form for ordered kinds."""
    return hsmcore.payload("block", "default", position, position.to_bytes(32))


def with_blocks(sign: Sign, share: float) -> Sign:
    """Sign a block in the place of each so-manieth message. No two runs use the same positions."""
    every, positions, calls = round(1 / share), count(randbits(40) << 20), count(1)

    async def signed(message: bytes) -> bytes:
        return await sign(message if next(calls) % every else block(next(positions)))

    return signed
