"""hsmcore, through its public interface only."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack
from functools import partial
from time import thread_time_ns
from types import MappingProxyType
from typing import Any

import hsmcore
from hsmcore_bench.suite.child.payloads import transactions, with_blocks
from hsmcore_bench.suite.child.protocol import PIN_ENV, Job, check_message, distinct_messages
from hsmcore_bench.suite.child.tasks import arrive, burst, event_loop, idle, loop_name, saturate

MESSAGES_PER_CALLER = 16  # no other caller's, so that two equal messages are never in flight together
BATCHES = 4
HIT_SET = 512  # messages that the cache holds
OPEN_MESSAGES = 4096  # the load goes round them
FULL_PART = 0.25  # of a slice at a share of the full rate: to find that rate
Workload = Callable[[float], Coroutine[Any, Any, dict[str, Any]]]  # a slice of so many seconds


def configuration(job: Job) -> dict[str, Any]:
    """The customer's JSON, with the cache off unless hits are what is measured."""
    manager = {**_provider(job), "maxCacheSize": 2 * HIT_SET if job.kind == "cache-hit" else 0}
    if job.audit is not None:
        manager |= {"auditLogFile": job.audit_file, "audit": {"durability": job.audit}}
    if job.policy:
        manager |= {"stateFile": job.state, "policy": {"kinds": ["tx-v0", "block", "raw"]}}
    if job.public:
        manager["publish"] = {"folder": job.public, "chains": {"block": {"origin": "bench.example/block"}}}
    if job.kind == "sign-batched":
        manager["policy"]["kinds"] = ["raw", "batch-root"]  # raw: the signature by which the key is checked
        manager |= {"batching": {"intervalMs": job.interval_ms}}
    if job.rotate:
        manager |= {"stateFile": job.state, "keyRotation": {"backupPolicy": "warn"}}
    if job.places:
        providers = [_provider(job, place) | {"name": f"member-{n}"} for n, place in enumerate(job.places)]
        manager |= {**providers[0], "stateFile": job.state, "failover": {"enabled": True}}
        if providers[1:]:
            level = "secondary" if job.kind.startswith("failover-") else "primary"
            manager["failover"][level] = providers[1:]
    return {"sequencer": {"keyManager": manager}}


def _provider(job: Job, place: Mapping[str, str] = MappingProxyType({})) -> dict[str, Any]:
    config = {
        "modulePath": place.get("module", job.module),
        "tokenLabel": place.get("token", job.token),
        "pin": {"env": PIN_ENV},
        "keyLabel": job.label,
        "sessions": job.sessions,
        "isolation": place.get("isolation", job.isolation),
        "verifySignatures": job.verify,
    }
    if "args" in place:
        config["moduleArgs"] = place["args"]
    return {"type": job.provider, "config": config}


async def signed(manager: hsmcore.KeyManager, messages: Sequence[bytes], *, verified: bool = True) -> list[bytes]:
    """A signature of each message. Raises AssertionError when one doesn't verify (the no-op module's never do)."""
    signatures: list[bytes] = await manager.sign_many(messages)
    for message, signature in zip(messages, signatures, strict=True) if verified else ():
        if not await manager.verify(message, signature):
            raise AssertionError("a signature does not verify")
    return signatures


def _switches() -> int:
    """Voluntary ones so far, of all threads of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw


class OurSigner:
    """One key manager on one event loop, which stands still between two slices."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._runner = asyncio.Runner(loop_factory=event_loop())
        self._manager = hsmcore.create_key_manager(configuration(job))
        self._runner.run(self._manager.initialize())
        self._open = AsyncExitStack()
        self._slice = self._scraped(self._workload()) if job.scrape else self._workload()

    def _workload(self) -> Workload:
        """What a slice does; messages are made before it begins."""
        job, manager = self._job, self._manager
        sign: Callable[[bytes], Awaitable[object]]
        if job.kind == "idle":
            return idle
        if job.kind == "cache-hit":
            hits = distinct_messages(HIT_SET, job.message_bytes)
            self._runner.run(manager.sign_many(hits))
            return lambda seconds: burst(manager.sign, hits, seconds)
        if job.kind == "sign-many" or job.batch > 1:
            pool = (transactions if job.transactions else distinct_messages)(BATCHES * job.batch, job.message_bytes)
            batches = [pool[i * job.batch : (i + 1) * job.batch] for i in range(BATCHES)]
            many: Callable[[list[bytes]], Awaitable[object]]
            many = manager.sign_batched_many if job.kind == "sign-batched" else manager.sign_many
            return lambda seconds: saturate(
                many, [batches] * job.in_flight, seconds, watch_lag=job.watch_lag, weight=job.batch
            )
        if job.kind == "sign-open":
            pool = distinct_messages(OPEN_MESSAGES, job.message_bytes)
            return partial(self._at_rate, pool) if job.per_second else partial(self._at_share, pool)
        size = job.in_flight * MESSAGES_PER_CALLER
        pool = (transactions if job.transactions else distinct_messages)(size, job.message_bytes)
        own = [pool[i :: job.in_flight] for i in range(job.in_flight)]
        sign = with_blocks(manager.sign, job.blocks) if job.blocks else manager.sign
        sign = manager.sign_batched if job.kind == "sign-batched" else sign
        sign = manager.sign_with_receipt if job.kind == "sign-receipt" else sign
        return lambda seconds: saturate(sign, own, seconds, timed_every=job.timed_every, watch_lag=job.watch_lag)

    async def _at_rate(self, pool: Sequence[bytes], seconds: float) -> dict[str, Any]:
        return await arrive(self._manager.sign, pool, seconds, self._job.per_second)

    async def _at_share(self, pool: Sequence[bytes], seconds: float) -> dict[str, Any]:
        """Of the rate that a closed loop makes in the first part of the slice, because a token has no known ceiling."""
        job, sign = self._job, self._manager.sign
        own = [pool[i :: job.in_flight] for i in range(job.in_flight)]
        most = await saturate(sign, own, seconds * FULL_PART)
        rate = job.share * most["signatures"] / most["seconds"]
        return await arrive(sign, pool, seconds * (1.0 - FULL_PART), rate, punctual=False)

    def _scraped(self, workload: Workload) -> Workload:
        """The same while /metrics is read."""
        from hsmcore_bench.suite.child import scrapes  # the server needs an extra

        site = self._runner.run(self._open.enter_async_context(scrapes.server(self._manager)))
        if self._job.kind == "idle":
            return workload

        async def both(seconds: float) -> dict[str, Any]:
            async with scrapes.Scraping(site, seconds):
                return await workload(seconds)

        return both

    def describe(self) -> Mapping[str, Any]:
        return {"signature": self._runner.run(self._checked_signature()).hex(), "loop": loop_name()}

    async def _checked_signature(self) -> bytes:
        message = check_message(self._job.message_bytes)
        return (await signed(self._manager, [message], verified=self._job.token != "noop"))[0]

    def run(self, seconds: float) -> Mapping[str, Any]:
        return self._runner.run(self._dissected(seconds))

    async def _dissected(self, seconds: float) -> dict[str, Any]:
        """A slice, and where the time of its mean signature went: `loop` is processor time of the event loop's thread,
        callers included; `ring` is the wait for a worker, `hsm` the time in the module, as the engine counts them;
        `wake` is what is left of the latency: the way back, and the wait for the loop. And the voluntary switches of
        all threads."""
        before, switches, cpu = self._times(), _switches(), thread_time_ns()
        figures = await self._slice(seconds)
        cpu, switches, after = thread_time_ns() - cpu, _switches() - switches, self._times()
        figures = {**figures, "switches": switches}
        calls = figures["signatures"]
        if before is None or after is None or self._job.kind == "cache-hit" or not calls:
            return figures
        parts = {"loop": cpu / calls} | {part: (after[part] - before[part]) / calls for part in after}
        latency = figures["latency_ns"]
        if latency is not None and self._job.batch == 1:
            parts["wake"] = max(0.0, latency["mean"] - sum(parts.values()))
        return figures | {"parts_ns": parts}

    def _times(self) -> dict[str, float] | None:
        """Nanoseconds of all signatures since the start; None where no single engine counts them."""
        members = self._manager.members()
        stats = members[0].stats() if len(members) == 1 else None
        if stats is None:
            return None
        return {"ring": stats["queue_sum_ns"], "hsm": stats["hsm_sum_ns"]}

    def sign_times(self, count: int) -> None:
        """So many signatures, as many in flight as the job says."""
        self._runner.run(self._sign_times(count))

    async def _sign_times(self, count: int) -> None:
        pool = distinct_messages(self._job.in_flight * MESSAGES_PER_CALLER, self._job.message_bytes)
        left = count

        async def caller(number: int) -> None:
            nonlocal left
            own = pool[number :: self._job.in_flight]
            while left > 0:
                for message in own:
                    if left <= 0:
                        return
                    left -= 1
                    await self._manager.sign(message)

        await asyncio.gather(*(caller(number) for number in range(self._job.in_flight)))

    def close(self) -> None:
        try:
            self._runner.run(self._open.aclose())
            self._runner.run(self._manager.close())
        finally:
            self._runner.close()
