"""hsmcore through `hsmcore gateway`, which runs in a process of its own."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from contextlib import ExitStack, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from hsmcore.gateway import Client
from hsmcore_bench.harness.certificate import NAME, self_signed
from hsmcore_bench.harness.crowd import crowd
from hsmcore_bench.harness.gateway import gateway_process
from hsmcore_bench.harness.neighbour import Neighbour
from hsmcore_bench.harness.process import cpu_seconds_of, switches_and_calls
from hsmcore_bench.suite.child.ours import MESSAGES_PER_CALLER, configuration
from hsmcore_bench.suite.child.protocol import Job, check_message, distinct_messages
from hsmcore_bench.suite.child.tasks import event_loop, loop_name, saturate

_PER_CONNECTION: Final = 64
"""Callers that share a connection."""


class GatewaySigner:
    """A client on one event loop, which stands still between two slices, and its gateway."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._stack = ExitStack()
        self._neighbour: Neighbour | None = None
        self._runner = self._stack.enter_context(asyncio.Runner(loop_factory=event_loop()))
        manager = configuration(job)["sequencer"]["keyManager"]
        clients = {"bench": {"uid": [os.getuid()], "keys": ["default"], "inFlight": max(2 * job.in_flight, 16)}}
        try:
            faces, files = [], None
            if job.neighbour:
                files = self_signed(Path(self._stack.enter_context(TemporaryDirectory(prefix="hsmcore-bench-"))))
                clients["neighbour"] = {"names": [f"dns:{NAME}"], "keys": ["default"], "inFlight": job.neighbour}
                faces = ["tls"]
            started = gateway_process({"keyManager": manager}, clients, faces, files)
            addresses, self._gateway = self._stack.enter_context(started)
            address = addresses[0]
            if files is not None:
                self._neighbour = Neighbour(addresses[1], files, job.neighbour, job.message_bytes)
                self._stack.callback(self._neighbour.close)
            if job.strangers:
                self._stack.enter_context(crowd(address.removeprefix("unix:"), job.strangers))
            self._client = Client(address, connections=max(1, job.in_flight // _PER_CONNECTION))
            self._runner.run(self._client.initialize())
        except BaseException:
            self._stack.close()
            raise
        self._stack.callback(lambda: self._runner.run(self._client.close()))
        pool = distinct_messages(job.in_flight * MESSAGES_PER_CALLER, job.message_bytes)
        self._own = [pool[i :: job.in_flight] for i in range(job.in_flight)]

    def describe(self) -> Mapping[str, Any]:
        """Also hold the signature of the check message against the key."""
        return {"signature": self._runner.run(self._checked_signature()).hex(), "loop": loop_name()}

    async def _checked_signature(self) -> bytes:
        message = check_message(self._job.message_bytes)
        signature = await self._client.sign(message)
        if self._job.token != "noop" and not await self._client.verify(message, signature):
            raise AssertionError("a signature does not verify")
        return signature

    def run(self, seconds: float) -> Mapping[str, Any]:
        """Sign for so long. Switches and calls are the gateway's."""
        job = self._job
        work = saturate(self._client.sign, self._own, seconds, timed_every=job.timed_every, watch_lag=job.watch_lag)
        before, used = switches_and_calls(self._gateway), self._used()
        with self._neighbour.busy() if self._neighbour is not None else nullcontext():
            figures = self._runner.run(work)
        after, calls = switches_and_calls(self._gateway), max(figures["signatures"], 1)
        parts = {side: (now - used[side]) * 1e9 / calls for side, now in self._used().items()}
        counts = {name: after[name] - before[name] for name in after.keys() & before.keys()}
        return {**figures, **counts, "parts_ns": parts}

    def _used(self) -> dict[str, float]:
        """Seconds of processor time of each side so far, all threads."""
        return {"client": cpu_seconds_of(os.getpid()), "gateway": cpu_seconds_of(self._gateway)}

    def close(self) -> None:
        """End the gateway, too."""
        self._stack.close()
