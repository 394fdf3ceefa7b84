"""A caller that repeats a failed request at once, as an ordinary worker loop does, must not keep the event loop to
itself: what ends an outage runs in that loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from tests.support.kms import config as kms_config
from tests.support.levels import QUICK, SAME, Site
from tests.support.loops import one_loop
from tests.support.managers import counters, opened, start, until
from tests.support.verifiers import is_good

import hsmcore
from hsmcore.failover.errors import AllLevelsFailed

pytestmark = [pytest.mark.integration]

Ask = Callable[[hsmcore.KeyManager, bytes], Awaitable[bytes]]
Change = Callable[[hsmcore.KeyManager], object]


async def _one_of_many(manager: hsmcore.KeyManager, message: bytes) -> bytes:
    return (await manager.sign_many([message]))[0]


async def _with_receipt(manager: hsmcore.KeyManager, message: bytes) -> bytes:
    return (await manager.sign_with_receipt(message)).signature


WAYS: dict[str, Ask] = {
    "sign": lambda manager, message: manager.sign(message),
    "sign_many": _one_of_many,
    "sign_with_receipt": _with_receipt,
}

FAILURES = 300
"""In a row, before the device comes back."""
LONGEST = 20.0
"""Seconds; less than the runner's own limit, which a loop that stands still would never notice."""


class Place:
    """A device that can go and come back, and a configuration that signs with it. `down` and `up` get the manager."""

    def __init__(self, config: dict[str, Any], down: Change, up: Change) -> None:
        self.config, self.down, self.up = config, down, up


def lost(status: str) -> Change:
    """What a back end that other distributions bring says of its service. "": it is there again."""
    return lambda manager: manager._path.member.engine.lose(status)


PLACES = ["pkcs11", "pkcs11, levels", "aws-kms", "aws-kms, levels", "ephemeral", "ephemeral, levels"]


@pytest.fixture(params=PLACES)
def place(request, tmp_path, fresh_token) -> Place:
    """Each kind of member, with levels and without."""
    kind, _, levels = request.param.partition(", ")
    if kind == "pkcs11":
        site = Site(tmp_path, fresh_token, SAME)
        config = site.config()
        if not levels:
            del config["sequencer"]["keyManager"]["failover"]
        return Place(config, lambda _: site.kill(0), lambda _: site.revive(0))
    if kind == "ephemeral":
        config = {"keyManager": {"type": "ephemeral", "config": {"allowEphemeralPrimary": True}, "maxCacheSize": 0}}
        if levels:
            config["keyManager"] |= {"failover": QUICK, "stateFile": str(tmp_path / "state.db")}
        return Place(config, lost("TOKEN_LOST"), lost(""))
    kms = request.getfixturevalue("kms")
    rules = {"failover": QUICK, "stateFile": str(tmp_path / "state.db")} if levels else {}
    config = kms_config(kms, kms.store.make(), maxCacheSize=0, **rules)
    return Place(config, lambda _: kms.stop_listening(), lambda _: kms.start_listening())


@asynccontextmanager
async def turning() -> AsyncIterator[Callable[[], int]]:
    """Gives how often the event loop has turned."""
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counting = start(count())
    try:
        yield lambda: turns
    finally:
        counting.cancel()
        await asyncio.gather(counting, return_exceptions=True)


@pytest.mark.parametrize(
    ("place", "way"),
    [
        pytest.param(place, way, marks=[pytest.mark.deep] if (number - turn) % len(WAYS) else [])
        for number, place in enumerate(PLACES)
        for turn, way in enumerate(WAYS)
    ],
    indirect=["place"],
)
async def test_the_loop_turns_and_the_outage_ends_with_the_device_s(place, way):
    async with opened(place.config) as manager, turning() as turns:
        assert await WAYS[way](manager, b"before")
        place.down(manager)
        begun = time.monotonic()
        failures = number = signed = 0
        while signed < 20:
            assert time.monotonic() - begun < LONGEST, f"{failures} failures, {signed} signatures, and no end"
            before, message, failure = turns(), b"%d" % number, None
            number += 1
            try:
                signature = await WAYS[way](manager, message)
            except hsmcore.HsmError as error:
                failure = error
            if failure is None:
                assert is_good("ed25519", manager.public_key, message, signature)
                signed += failures >= FAILURES
                continue
            assert failure.retryable, repr(failure)
            assert turns() > before, f"failure {failures} came without a turn of the loop"
            failures += 1
            if failures == FAILURES:
                place.up(manager)
        assert failures >= FAILURES


@one_loop
async def test_the_loop_turns_while_requests_are_refused_for_being_too_many(kms):
    kms.faults.latency = 0.01
    async with opened(kms_config(kms, kms.store.make(), {"concurrency": 1}, maxCacheSize=0)) as manager:
        await manager.sign_many([b"%d" % n for n in range(80)], timeout=30)  # now its speed is known
        kms.hold()
        waiting = [start(manager.sign(b"waits %d" % n, timeout=30)) for n in range(20)]
        await until(lambda: counters(manager)["in_flight"] == 20)
        ways = (
            lambda: manager.sign(b"x", 0.02),
            lambda: manager.sign_many([b"x"], 0.02),
            lambda: manager.sign_with_receipt(b"x", 0.02),
        )
        async with turning() as turns:
            for ask in ways:
                for _ in range(20):
                    before = turns()
                    with pytest.raises(hsmcore.QueueFull):
                        await ask()
                    assert turns() > before
        kms.release()
        await asyncio.gather(*waiting)


@one_loop
async def test_the_loop_turns_when_it_is_closed(place):
    async with opened(place.config) as manager:
        pass
    async with turning() as turns:
        for ask in WAYS.values():
            for _ in range(20):
                before = turns()
                with pytest.raises((hsmcore.EngineClosed, AllLevelsFailed)):
                    await ask(manager, b"x")
                assert turns() > before
