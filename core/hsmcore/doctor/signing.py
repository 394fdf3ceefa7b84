"""The test signature: made by the native engine, as the key manager makes every other, and verified in software."""

from __future__ import annotations

import asyncio
import os
import statistics
import time
from collections.abc import Iterator
from typing import Final

from hsmcore._native import Engine, verify
from hsmcore.doctor.context import ProbeContext
from hsmcore.doctor.report import Step, fail, ok
from hsmcore.errors import DeadlineExceeded
from hsmcore.errors.statuses import STATUSES

SIGNATURES: Final = 20
"""Signatures whose latency is measured, if the time of the check allows."""
_MESSAGE_BYTES: Final = 32
_STOP_SECONDS: Final = 1.0


def small_engine(member: str, timeout: float) -> Engine:
    """Return an engine with one worker and without a cache. `timeout` in seconds."""
    return Engine(
        member=member,
        slots=8,
        max_message=64,
        max_workers=1,
        coalesce_seconds=0.0,
        default_timeout=timeout,
        cache_size=0,
        single_flight=False,
        cache_nondeterministic=False,
    )


def check_signature(context: ProbeContext) -> Iterator[Step]:
    """Make one signature and verify it, then measure the latency of more, one at a time."""
    question = context.question
    engine = small_engine(question.member, question.seconds)
    try:
        context.announce("C_OpenSession")
        # No PIN: this process is logged in.
        engine.start(
            module_path=question.module_path,
            module_args=question.module_args,
            quirks=question.quirks,
            slot_id=context.token.slot_id,
            workers=1,
        )
        context.announce("C_SignInit, C_Sign")
        key = engine.add_key(
            label=question.key_label,
            id=None if question.key_id is None else bytes.fromhex(question.key_id),
            handle=-1 if question.key_handle is None else question.key_handle,
            algorithm=question.algorithm,
            public_key=None if question.public_key is None else bytes.fromhex(question.public_key),
        )
        try:
            yield from asyncio.run(_measure(engine, key["algorithm"], key["public_key"], question.seconds))
        except DeadlineExceeded:
            context.hung = True
            found = f"C_SignInit or C_Sign did not return within {question.seconds:.3g} s"
            yield fail("signature", found, STATUSES["TOKEN_LOST"].hint, call="C_Sign")
    finally:
        engine.refuse()
        if not context.hung:
            engine.stop(_STOP_SECONDS)
            engine.release()


async def _measure(engine: Engine, algorithm: str, public_key: bytes, seconds: float) -> list[Step]:
    engine.attach(asyncio.get_running_loop())
    try:
        message = os.urandom(_MESSAGE_BYTES)
        begun = time.monotonic()
        signature = await _signed(engine, message)
        if not verify(algorithm, public_key, message, signature):
            return [fail("signature", "the signature does not verify", STATUSES["SIGNATURE_INVALID"].hint)]
        steps = [ok("signature", f"{len(signature)} bytes, verified in software", algorithm=algorithm)]
        times: list[float] = []
        while len(times) < SIGNATURES and time.monotonic() - begun < seconds:
            message = os.urandom(_MESSAGE_BYTES)
            start = time.perf_counter()
            await _signed(engine, message)
            times.append((time.perf_counter() - start) * 1e3)
        if times:
            median, most = statistics.median(times), max(times)
            found = f"median {median:.3g} ms, most {most:.3g} ms ({len(times)} signatures, one at a time)"
            numbers = {"medianMs": round(median, 4), "maxMs": round(most, 4), "count": len(times)}
            steps.append(ok("latency", found, **numbers))
        return steps
    finally:
        engine.detach()


async def _signed(engine: Engine, message: bytes) -> bytes:
    signed = engine.submit(message)
    return signed if isinstance(signed, bytes) else await signed
