"""hsmcore by Vault's API: HTTPS connections that stay open, and a gateway in a process of its own."""

from __future__ import annotations

import asyncio
import base64
import secrets
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import orjson

from hsmcore_bench.harness.certificate import self_signed
from hsmcore_bench.harness.gateway import gateway_process
from hsmcore_bench.suite.child.ours import BATCHES, configuration
from hsmcore_bench.suite.child.protocol import Job, check_message, distinct_messages
from hsmcore_bench.suite.child.tasks import event_loop, loop_name, saturate

Link = tuple[asyncio.StreamReader, asyncio.StreamWriter]
_PATH: Final = "/v1/transit/sign/default"
_GOOD: Final = b"HTTP/1.1 200 "
_LENGTH: Final = b"\r\ncontent-length: "


class VaultSigner:
    """Callers on one event loop, each with a connection of its own, and their gateway."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._stack = ExitStack()
        self._runner = self._stack.enter_context(asyncio.Runner(loop_factory=event_loop()))
        manager, self._token = configuration(job)["sequencer"]["keyManager"], secrets.token_hex(32)
        room = max(2 * job.in_flight * job.batch, 16)
        rules = {"token": {"env": "BENCH_TOKEN"}, "keys": ["default"], "inFlight": room}
        try:
            files = self_signed(Path(self._stack.enter_context(TemporaryDirectory(prefix="hsmcore-bench-"))))
            started = gateway_process(
                {"keyManager": manager}, {"bench": rules}, ["https"], files, {"BENCH_TOKEN": self._token}
            )
            (_, address), _ = self._stack.enter_context(started)
            self._port = int(address.rpartition(":")[2])
            self._context = ssl.create_default_context(cafile=files.certificate)
        except BaseException:
            self._stack.close()
            raise
        pool = distinct_messages(job.in_flight * BATCHES * job.batch, job.message_bytes)
        self._bodies = [self._batch(pool[at : at + job.batch]) for at in range(0, len(pool), job.batch)]

    @asynccontextmanager
    async def _links(self, count: int) -> AsyncIterator[list[Link]]:
        """Connections. The gateway closes those that were idle for long, as between two slices."""
        links = [await asyncio.open_connection("127.0.0.1", self._port, ssl=self._context) for _ in range(count)]
        try:
            yield links
        finally:
            for _, writer in links:
                writer.close()

    def _batch(self, messages: list[bytes]) -> bytes:
        return self._request({"batch_input": [{"input": base64.b64encode(message).decode()} for message in messages]})

    def _request(self, body: Mapping[str, Any]) -> bytes:
        data = orjson.dumps(body)
        head = f"POST {_PATH} HTTP/1.1\r\nhost: 127.0.0.1\r\nx-vault-token: {self._token}\r\n"
        return f"{head}content-length: {len(data)}\r\n\r\n".encode() + data

    async def _ask(self, asked: tuple[Link, bytes]) -> bytes:
        (reader, writer), request = asked
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head[head.index(_LENGTH) + len(_LENGTH) :].split(b"\r\n", 1)[0])
        body = await reader.readexactly(length)
        if not head.startswith(_GOOD) or b'"error"' in body:
            raise AssertionError(f"the gateway answered {body[:200]!r}")
        return body

    def describe(self) -> Mapping[str, Any]:
        """Also sign the check message, by itself."""
        signature = self._runner.run(self._checked_signature())
        return {"signature": signature.hex(), "loop": loop_name()}

    async def _checked_signature(self) -> bytes:
        message = base64.b64encode(check_message(self._job.message_bytes)).decode()
        async with self._links(1) as [link]:
            answer = await self._ask((link, self._request({"input": message})))
        return base64.b64decode(orjson.loads(answer)["data"]["signature"].rpartition(":")[2])

    def run(self, seconds: float) -> Mapping[str, Any]:
        """Sign for so long."""
        return self._runner.run(self._slice(seconds))

    async def _slice(self, seconds: float) -> dict[str, Any]:
        job = self._job
        async with self._links(job.in_flight) as links:
            own = [[(link, body) for body in self._bodies[at :: job.in_flight]] for at, link in enumerate(links)]
            return await saturate(self._ask, own, seconds, timed_every=job.timed_every, weight=job.batch)

    def close(self) -> None:
        """End the gateway, too."""
        self._stack.close()
