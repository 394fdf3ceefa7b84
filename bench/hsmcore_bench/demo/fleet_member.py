"""One sequencer of a fleet: while it holds the epoch it signs transfers and, over them, a block.

    python -m hsmcore_bench.demo.fleet_member SPEC.json

It writes a line of JSON for each block and each change; from standard input it learns which blocks the chain has. It
ends with its standard input.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import structlog
import uvloop
from solders.hash import Hash
from solders.message import MessageV0, to_bytes_versioned
from solders.pubkey import Pubkey
from solders.system_program import TransferParams, transfer

import hsmcore
from hsmcore.errors import DoubleSign, HsmError, NotHolder
from hsmcore_bench.demo.steady import silent

DOMAIN: Final = "demo"
CHAIN: Final = f"{DOMAIN}/block"
TRANSFERS: Final = 20
"""In a block."""
PAUSE: Final = 0.05
"""Seconds between blocks, and between two looks of a host that waits."""
LEAST: Final = 1_000_000
"""Lamports of the first transfer; each one has one more, so no two are the same."""


def transfer_of(number: int, payer: Pubkey, blockhash: Hash) -> MessageV0:
    """The transfer with that number: the same one on each host."""
    recipient = Pubkey(hashlib.sha256(b"recipient %d" % (number % 16)).digest())
    instruction = transfer(TransferParams(from_pubkey=payer, to_pubkey=recipient, lamports=LEAST + number))
    return MessageV0.try_compile(payer, [instruction], [], blockhash)


def block_of(position: int, content: bytes) -> bytes:
    """A block in hsmcore's own form (docs/POLICY.md)."""
    return hsmcore.payload("block", DOMAIN, position, hashlib.sha256(content).digest())


class Sequencer:
    """One host. Belongs to one event loop."""

    def __init__(self, host: str, manager: hsmcore.KeyManager, blockhash: Hash) -> None:
        assert manager.fleet is not None
        self._host, self._manager, self._fleet, self._blockhash = host, manager, manager.fleet, blockhash
        self._payer = Pubkey.from_bytes(manager.public_key)
        self._next = self._executed = 0
        """The next block, and the count of transfers that the chain has."""

    async def run(self, lines: AsyncIterator[bytes]) -> None:
        """Go on until the input ends."""
        tell("open", host=self._host, key=self._manager.public_key.hex())
        self._manager.on("fleet", lambda _details: self._told())
        building = asyncio.ensure_future(self._build())
        try:
            async for line in lines:
                self._learn(json.loads(line))
        finally:
            building.cancel()
            await asyncio.gather(building, return_exceptions=True)

    def _told(self) -> None:
        tell("state", host=self._host, state=self._fleet.state, epoch=self._fleet.epoch)

    def _learn(self, block: dict[str, int]) -> None:
        self._next = max(self._next, block["position"] + 1)
        self._executed = max(self._executed, block["executed"])
        self._fleet.caught_up(CHAIN, block["position"])

    async def _build(self) -> None:
        while True:
            if self._fleet.state == "holder":
                await self._block()
            await asyncio.sleep(PAUSE)

    async def _block(self) -> None:
        position, first = self._next, self._executed
        messages = [transfer_of(first + n, self._payer, self._blockhash) for n in range(TRANSFERS)]
        payloads = [to_bytes_versioned(message) for message in messages]
        try:
            signatures = await self._manager.sign_many(payloads)
            block = block_of(position, self._host.encode() + b"".join(signatures))
            signature = await self._manager.sign(block, kind="block")
        except DoubleSign as error:
            self._next = max(self._next, position + 1)
            tell("taken", host=self._host, position=position, by=error.holder)
        except NotHolder:
            tell("refused", host=self._host, position=position)
        except HsmError as error:
            tell("failed", host=self._host, status=error.status)
        else:
            self._next, self._executed = position + 1, first + TRANSFERS
            made = {"position": position, "first": first, "epoch": self._fleet.epoch, "block": block.hex()}
            tell("block", host=self._host, **made, signature=signature.hex(), signatures=[s.hex() for s in signatures])


def tell(what: str, **fields: Any) -> None:
    """Write a line, at once and whole."""
    sys.stdout.write(json.dumps({"what": what, **fields}) + "\n")
    sys.stdout.flush()


@asynccontextmanager
async def _input() -> AsyncIterator[asyncio.StreamReader]:
    reader, loop = asyncio.StreamReader(), asyncio.get_running_loop()
    transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    try:
        yield reader
    finally:
        transport.close()


async def _main(spec: dict[str, Any]) -> None:
    async with hsmcore.create_key_manager(spec["config"]) as manager, _input() as reader:
        await Sequencer(spec["host"], manager, Hash.from_string(spec["blockhash"])).run(reader)


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    structlog.configure(processors=[silent])
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_main(json.loads(Path(sys.argv[1]).read_bytes())))
