"""Signs with an audit log until it is killed, and says of each signature that was handed out: its message and itself.

python -m tests.support.signing_victim CONFIG.json
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import sys
from pathlib import Path
from typing import Any

import uvloop

import hsmcore

CALLERS = 64


async def main(config: dict[str, Any]) -> None:
    """Sign in every way there is."""
    numbers = itertools.count()
    prefix = os.urandom(8).hex()

    def say(*pairs: tuple[bytes, bytes]) -> None:
        # One write for each: a line is whole or not there.
        os.write(1, b"".join(b"%s %s\n" % (message, signature.hex().encode()) for message, signature in pairs))

    async with hsmcore.create_key_manager(config) as manager:

        async def caller(number: int) -> None:
            while True:
                message = f"{prefix}-{next(numbers)}".encode()
                if number % 8 == 0:
                    batch = [message + b"-%d" % n for n in range(16)]
                    say(*zip(batch, await manager.sign_many(batch), strict=True))
                elif number % 8 == 1:
                    receipt = await manager.sign_with_receipt(message)
                    say((message, receipt.signature))
                elif number % 8 == 2:
                    repeated = f"{prefix}-again".encode()  # a hit of the cache, or joined to another caller's
                    say((repeated, await manager.sign(repeated)))
                else:
                    say((message, await manager.sign(message)))

        await asyncio.gather(*(caller(number) for number in range(CALLERS)))


if __name__ == "__main__":
    uvloop.run(main(json.loads(Path(sys.argv[1]).read_text())))
