"""A client of the gateway beside it: signs twenty messages a second, each a new one, until it is stopped."""

import asyncio
import signal
import sys
from itertools import count

from hsmcore.gateway import Client


async def main() -> None:
    """Sign."""
    async with Client("unix:/run/hsmcore/sign.sock") as km:
        for number in count():
            await km.sign(b"message %d" % number)
            await asyncio.sleep(0.05)


signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # as the first process of a container
asyncio.run(main())
