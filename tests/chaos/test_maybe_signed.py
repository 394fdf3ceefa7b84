"""`maybe_signed` of an error is the truth: whatever ends a request, it is false only if no worker had begun to sign."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
from contextlib import closing
from typing import Any

import pytest
from tests.integration.test_policy import policed
from tests.support.audit_logs import files_at_most
from tests.support.chaos import Chaos, engine_of, wrap
from tests.support.gateways import gateway
from tests.support.loops import one_loop
from tests.support.managers import counters, opened, start, until
from tests.support.policed import ordered

import hsmcore
from hsmcore.errors import AuditUnavailable, DeadlineExceeded, DoubleSign, EngineClosed, HsmError, MemberDown
from hsmcore.gateway import Client

pytestmark = [pytest.mark.integration, pytest.mark.chaos]
SLOW = {"C_Sign": {"kind": "constant", "microseconds": 300_000}}


def one_session(folder, token, **rules):
    """A token whose only session takes its time for each signature."""
    chaos = Chaos(folder, wrap(token), latency=SLOW)
    return chaos, chaos.config(settings={"sessions": 1, "hangAfterMs": 5000}, **rules)


async def failure_of(work: Any) -> HsmError:
    with pytest.raises(HsmError) as caught:
        await work
    return caught.value


SPELLINGS = {
    "sign": lambda manager, message, timeout: manager.sign(message, timeout),
    "sign_with_receipt": lambda manager, message, timeout: manager.sign_with_receipt(message, timeout),
    "sign_many": lambda manager, message, timeout: manager.sign_many([message], timeout),
}


@one_loop
@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("levels", [False, True], ids=["single", "levels"])
async def test_at_a_deadline_it_says_whether_a_worker_had_begun(world, tmp_path, spelling, levels):
    chaos, config = one_session(tmp_path, world)
    if levels:
        manager = config["sequencer"]["keyManager"]
        member = {name: manager.pop(name) for name in ("type", "config")}
        manager["failover"] = {"primary": [member]}
    ask = SPELLINGS[spelling]
    async with opened(config) as manager:
        before = chaos.calls("C_Sign")
        begun = start(failure_of(ask(manager, b"begun", 0.1)))
        await until(lambda: chaos.calls("C_Sign") == before + 1)
        queued = await failure_of(ask(manager, b"queued", 0.05))
        found = await begun
        assert isinstance(found, DeadlineExceeded)
        assert isinstance(queued, DeadlineExceeded)
        assert (found.maybe_signed, queued.maybe_signed) == (True, False)
        await manager.sign(b"another", 10)
        assert chaos.calls("C_Sign") == before + 2  # the one that was begun was signed, and the queued one never


@one_loop
async def test_a_list_says_it_of_all_its_messages(world, tmp_path):
    chaos, config = one_session(tmp_path, world)
    async with opened(config) as manager:
        before = chaos.calls("C_Sign")
        found = await failure_of(manager.sign_many([b"a", b"b", b"c"], 0.45))
        assert (type(found), found.maybe_signed) == (DeadlineExceeded, True)
        assert chaos.calls("C_Sign") > before
        one = start(manager.sign(b"in front", 10))
        await until(lambda: counters(manager)["busy"] == 1)
        waited = await failure_of(manager.sign_many([b"d", b"e"], 0.05))
        each = await manager.sign_many([b"f", b"g"], 0.05, return_exceptions=True)
        assert [one.maybe_signed for one in (waited, *each)] == [False] * 3
        await one


@one_loop
async def test_through_the_gateway_it_is_the_same(world, tmp_path):
    chaos, config = one_session(tmp_path, world)
    async with gateway(tmp_path, config) as served, Client(served.addresses[0]) as client:
        before = chaos.calls("C_Sign")
        begun = start(failure_of(client.sign(b"begun", 0.1)))
        await until(lambda: chaos.calls("C_Sign") == before + 1)
        assert (await begun).maybe_signed
        assert (await failure_of(client.sign_many([b"a", b"b", b"c"], 0.35))).maybe_signed


@one_loop
async def test_what_a_policy_or_its_store_refuses_was_signed_by_nobody(world, tmp_path):
    async with opened(policed(world, tmp_path)) as manager:
        await manager.sign(ordered(1))
        errors = [await failure_of(manager.sign(b"raw")), await failure_of(manager.sign(ordered(1, b"other")))]
        assert isinstance(errors[1], DoubleSign)
        with closing(sqlite3.connect(tmp_path / "state.db", isolation_level=None)) as raw:
            raw.execute("BEGIN IMMEDIATE")
            errors.append(await failure_of(manager.sign(ordered(2), 0.1)))
            raw.execute("COMMIT")
        assert [error.maybe_signed for error in errors] == [False] * 3


@one_loop
async def test_a_signature_that_the_log_refuses_exists(world, tmp_path):
    log = tmp_path / "audit.log"
    async with opened(world.config(auditLogFile=str(log), maxCacheSize=0)) as manager:
        await manager.sign(b"good")
        signed = counters(manager)["signatures"]
        with files_at_most(log.stat().st_size + 10):
            held = await failure_of(manager.sign(b"not recorded"))
            assert (type(held), held.maybe_signed) == (AuditUnavailable, True)
            assert counters(manager)["signatures"] == signed + 1
            refused = await failure_of(manager.sign(b"not begun"))
            assert (type(refused), refused.maybe_signed) == (AuditUnavailable, False)
            assert counters(manager)["signatures"] == signed + 1


@one_loop
async def test_a_host_that_is_lost_may_have_signed(world, tmp_path):
    chaos = Chaos(tmp_path, wrap(world, "ecdsa-p256"), latency=SLOW)
    settings = {"sessions": 1, "isolation": "process", "hangAfterMs": 5000}
    async with opened(chaos.config(settings=settings)) as manager:
        before = chaos.calls("C_Sign")
        begun, queued = (start(manager.sign(message, 10)) for message in (b"begun", b"queued"))
        await until(lambda: chaos.calls("C_Sign") == before + 1)
        os.kill(engine_of(manager).host_pid, signal.SIGKILL)
        done = await asyncio.gather(begun, queued, return_exceptions=True)
        assert type(done[0]) is MemberDown
        assert done[0].maybe_signed


@one_loop
async def test_what_a_closing_member_had_begun_may_be_signed(world, tmp_path):
    chaos, config = one_session(tmp_path, world)
    manager = hsmcore.create_key_manager(config)
    async with manager:
        before = chaos.calls("C_Sign")
        begun = start(manager.sign(b"begun", 10))
        await until(lambda: chaos.calls("C_Sign") == before + 1)
        manager._path.member.engine.detach()  # as when a member is stopped in the middle of its work
        found = await failure_of(begun)
        assert (type(found), found.maybe_signed) == (EngineClosed, True)
    assert not (await failure_of(manager.sign(b"m"))).maybe_signed
