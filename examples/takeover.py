"""A signer dies between the bind and the signature of a block. The next one gets the block from the state store."""

from __future__ import annotations

import asyncio
import hashlib
import multiprocessing
import signal
from typing import Any

from _token import tokens

import hsmcore

DOMAIN = "example/block"


async def sign_and_die(config: dict[str, Any], block: bytes) -> None:
    async with hsmcore.create_key_manager(config) as km:
        await km.sign(block)
        signal.raise_signal(signal.SIGKILL)  # the signature was handed to nobody


def run(config: dict[str, Any], block: bytes) -> None:
    asyncio.run(sign_and_die(config, block))


async def main() -> None:
    with tokens("example") as made:
        policy = {"kinds": ["block"], "domain": "example"}
        state = str(made.folder / "state.db")
        config = {"keyManager": {**made.provider("example"), "policy": policy, "stateFile": state}}
        block = hsmcore.payload("block", "example", 42, hashlib.sha256(b"block 42").digest())
        signer = multiprocessing.get_context("spawn").Process(target=run, args=(config, block))
        signer.start()
        await asyncio.to_thread(signer.join)
        async with hsmcore.create_key_manager(config) as km:
            left = await km.unfinished(DOMAIN)  # with a fleet: km.fleet.unfinished, after a takeover
            assert left is not None
            assert left.message is not None
            print(f"bound      {left.kind} {left.position} {left.digest.hex()}")
            print(f"signed     {(await km.sign(left.message, kind=left.kind)).hex()}")
            print(f"unfinished {await km.unfinished(DOMAIN)}")


if __name__ == "__main__":
    asyncio.run(main())
