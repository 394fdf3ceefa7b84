"""What signing transactions costs beside `sign_many` on their bytes: `python bench/solana_batches.py [--size 100]`.

On a SoftHSM token, batch after batch in turn: `sign_many` of the messages, and `sign_transactions`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import uvloop
from solders.hash import Hash
from solders.message import to_bytes_versioned
from solders.pubkey import Pubkey
from solders.signature import Signature
from solders.transaction import VersionedTransaction

import hsmcore
from hsmcore.solana import sign_transactions
from hsmcore_bench.demo.builder import TransferBuilder

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from _token import tokens  # found only now


async def measure(size: int, rounds: int, sessions: int) -> dict[str, float]:
    """Median microseconds of a transaction, by way; with "×", the median of the batches' rates beside sign_many."""
    with tokens("bench") as made:
        config = {"sequencer": {"keyManager": made.provider("bench", sessions=sessions) | {"maxCacheSize": 0}}}
        async with hsmcore.create_key_manager(config) as km:
            payer = Pubkey(km.public_key)
            builder = TransferBuilder(payer)

            def batch() -> list[VersionedTransaction]:
                messages = [builder.build(Hash.default()).message for _ in range(size)]
                return [VersionedTransaction.populate(message, [Signature.default()]) for message in messages]

            ways: dict[str, Callable[[Any], Awaitable[Any]]] = {
                "sign_many": km.sign_many,
                "transactions": lambda transactions: sign_transactions(km, transactions),
            }
            seen: dict[str, list[float]] = {way: [] for way in ways}
            for _ in range(rounds):
                for way, sign in ways.items():
                    transactions = batch()
                    given = (
                        [to_bytes_versioned(one.message) for one in transactions]
                        if way == "sign_many"
                        else transactions
                    )
                    begun = time.perf_counter()
                    await sign(given)
                    seen[way].append((time.perf_counter() - begun) / size * 1e6)
    beside = {
        f"×{way}": statistics.median(base / own for base, own in zip(seen["sign_many"], times, strict=True))
        for way, times in seen.items()
    }
    return {way: statistics.median(times) for way, times in seen.items()} | beside


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=100, help="transactions in a batch (default 100)")
    parser.add_argument("--rounds", type=int, default=50, help="batches of each way (default 50)")
    parser.add_argument("--sessions", type=int, default=2, help="sessions on the token (default 2)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    chosen = parser.parse_args()
    rows = uvloop.run(measure(chosen.size, chosen.rounds, chosen.sessions))
    if chosen.json:
        print(json.dumps({"load": os.getloadavg()[0], **rows}))
        return
    print(f"batches of {chosen.size}, load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors")
    for way in ("sign_many", "transactions"):
        print(f"{way:9} {rows[way]:6.1f} µs a transaction  {rows[f'×{way}']:.2f} of sign_many")


if __name__ == "__main__":
    main()
