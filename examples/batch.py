"""Sign a batch in one crossing to the workers, and let one message of a batch fail alone."""

from __future__ import annotations

import asyncio
import time

from _token import tokens

import hsmcore

SIZE = 256


async def main() -> None:
    with tokens("example") as made:
        rules = {"maxCacheSize": 0, "maxMessageBytes": 1000}
        config = {"sequencer": {"keyManager": made.provider("example") | rules}}
        async with hsmcore.create_key_manager(config) as km:
            transactions = [b"transaction %d" % number for number in range(SIZE)]

            begun = time.perf_counter()
            signatures = await km.sign_many(transactions, timeout=5)
            seconds = time.perf_counter() - begun
            good = [await km.verify(*pair) for pair in zip(transactions, signatures, strict=True)]
            print(f"batch      {len(signatures)} signatures, {sum(good)} verified, {SIZE / seconds:,.0f}/s")

            # The same with a task for each message: right when messages come one by one.
            begun = time.perf_counter()
            again = await asyncio.gather(*(km.sign(transaction) for transaction in transactions))
            seconds = time.perf_counter() - begun
            print(f"one by one {len(again)} signatures, the same: {again == signatures}, {SIZE / seconds:,.0f}/s")

            # Without return_exceptions the first error is raised.
            try:
                await km.sign_many([b"short", b"x" * 1001])
            except hsmcore.MessageTooLarge as error:
                print(f"refused    {error.status}")


if __name__ == "__main__":
    asyncio.run(main())
