"""Strangers at a gateway: connections that say nothing. `python -m hsmcore_bench.harness.crowd PATH COUNT`."""

from __future__ import annotations

import asyncio
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from subprocess import PIPE, Popen
from typing import Final

from hsmcore.members.control.process import python
from hsmcore_bench.harness.parent import die_with_parent
from hsmcore_bench.harness.process import ChildError

_AGAIN_SECONDS: Final = 30.0
"""Who is sent away comes back after this time."""
_AT_ONCE: Final = 64


@contextmanager
def crowd(path: str, count: int) -> Iterator[None]:
    """Hold so many connections to a Unix socket, from a process of its own. Raises ChildError."""
    process = Popen(python("-m", __name__, path, str(count)), stdout=PIPE, stdin=PIPE)
    try:
        assert process.stdout is not None
        if not process.stdout.readline():
            raise ChildError(f"the crowd ended with {process.wait()}")
        yield
    finally:
        process.kill()
        process.communicate()


class _Stranger(asyncio.Protocol):
    def __init__(self) -> None:
        self.gone = asyncio.get_running_loop().create_future()

    def connection_lost(self, _error: Exception | None) -> None:
        self.gone.set_result(None)


async def _stand(path: str, door: asyncio.Semaphore, arrived: asyncio.Semaphore) -> None:
    loop = asyncio.get_running_loop()
    while True:
        try:
            async with door:
                _, stranger = await loop.create_unix_connection(_Stranger, path)
        except OSError:
            await asyncio.sleep(0.01)  # the queue of the socket is full
            continue
        arrived.release()
        await stranger.gone
        await asyncio.sleep(_AGAIN_SECONDS)


async def _main(path: str, count: int) -> None:
    door, arrived = asyncio.Semaphore(_AT_ONCE), asyncio.Semaphore(0)
    tasks = [asyncio.create_task(_stand(path, door, arrived)) for _ in range(count)]
    for _ in tasks:
        await arrived.acquire()
    print("here", flush=True)
    await asyncio.gather(*tasks)


if __name__ == "__main__":
    die_with_parent()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    asyncio.run(_main(sys.argv[1], int(sys.argv[2])))
