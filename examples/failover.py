"""Two tokens with one key: take the primary away while requests come, put it back, and lose none."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

from _token import Tokens, tokens

import hsmcore


def configuration(made: Tokens) -> dict[str, object]:
    """The primary level has token a, the secondary level token b."""
    failover = {
        "primary": [made.provider("a", isolation="process")],  # each module in a process of its own
        "secondary": [made.provider("b", isolation="process")],
        "primaryRetryIntervalMs": 300,  # between two probes of a member that is out
        "failbackRampMs": 300,
    }
    return {"sequencer": {"keyManager": {"stateFile": str(made.folder / "state.db"), "failover": failover}}}


async def main() -> None:
    with tokens("a", "b") as made:
        km = hsmcore.create_key_manager(configuration(made))
        moves: asyncio.Queue[str] = asyncio.Queue()
        km.on("failover", lambda details: moves.put_nowait(f"failover: {details['member']} signs"))
        km.on("failback", lambda details: moves.put_nowait(f"failback: {details['member']} signs"))
        signed: Counter[str] = Counter()
        ended = asyncio.Event()

        async def requests() -> None:
            while not ended.is_set():
                message = b"block %d" % signed.total()
                receipt = await km.sign_with_receipt(message, timeout=10)
                assert await km.verify(message, receipt.signature)
                signed[receipt.level] += 1
                await asyncio.sleep(0.002)

        async with km:
            caller = asyncio.create_task(requests())
            await asyncio.sleep(0.3)
            pulled: Path = made.files("a").rename(made.folder / "pulled")
            print("token a is gone")
            print(await asyncio.wait_for(moves.get(), 20))
            await asyncio.sleep(0.3)
            pulled.rename(made.folder / "tokens" / "a")
            print("token a is back")
            print(await asyncio.wait_for(moves.get(), 20))
            ended.set()
            await caller  # raises if one request failed
        print(f"signed     {signed['primary']} on primary, {signed['secondary']} on secondary, none lost")


if __name__ == "__main__":
    asyncio.run(main())
