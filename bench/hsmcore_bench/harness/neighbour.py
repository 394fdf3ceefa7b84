"""Another client of a gateway, from a process of its own, that has so many requests open whenever it is told to.

`python -m hsmcore_bench.harness.neighbour ADDRESS CERTIFICATE KEY CALLERS BYTES`: a line on standard input begins, and
the next one ends it. A line on standard output says that it is connected, or has ended.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from subprocess import PIPE, Popen
from typing import Final

from hsmcore.errors import HsmError
from hsmcore.gateway import Client
from hsmcore.gateway.client.dialing import ClientTls
from hsmcore.members.control.process import python
from hsmcore_bench.harness.certificate import Certificate
from hsmcore_bench.harness.parent import die_with_parent
from hsmcore_bench.harness.process import ChildError

_PER_CONNECTION: Final = 64


class Neighbour:
    """One that runs."""

    def __init__(self, address: str, files: Certificate, callers: int, size: int) -> None:
        """Connect. Raises ChildError."""
        command = python("-m", __name__, address, *files, str(callers), str(size))
        self._process = Popen(command, stdout=PIPE, stdin=PIPE)
        self._wait()

    def _wait(self) -> None:
        assert self._process.stdout is not None
        if not self._process.stdout.readline():
            raise ChildError(f"the neighbour ended with {self._process.wait()}")

    def _tell(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(b"\n")
        self._process.stdin.flush()

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Have it sign while the block runs."""
        self._tell()
        yield
        self._tell()
        self._wait()

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate()


async def _sign(client: Client, caller: int, size: int) -> None:
    for number in count():
        with suppress(HsmError):
            await client.sign((caller << 32 | number).to_bytes(size, "little"))


async def _main(address: str, files: Certificate, callers: int, size: int) -> None:
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    tls = ClientTls(files.certificate, files.key, files.certificate)
    async with Client(address, tls=tls, connections=-(-callers // _PER_CONNECTION), timeout=60.0) as client:
        print("connected", flush=True)
        while await lines.readline():
            tasks = [asyncio.create_task(_sign(client, caller, size)) for caller in range(callers)]
            await lines.readline()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            print("ended", flush=True)


if __name__ == "__main__":
    die_with_parent()
    asyncio.run(_main(sys.argv[1], Certificate(*sys.argv[2:4]), int(sys.argv[4]), int(sys.argv[5])))
