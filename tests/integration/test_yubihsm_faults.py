"""YubiHSM 2 when the connector, the network or the device fails: what callers get, and that signing goes on."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from tests.chaos.load import Load, signs, until_it_signs
from tests.support.chaos import engine_of, supervisor_of
from tests.support.loops import one_loop
from tests.support.managers import opened, start, until
from tests.support.yubihsm import Command, Error
from tests.support.yubihsm.device import MAX_SESSIONS
from tests.support.yubihsm.rig import DOMAIN, KEY_ID, KEY_LABEL

from hsmcore.errors import DeadlineExceeded, HsmError, KeyMismatch, MemberDown

pytestmark = [
    pytest.mark.integration,
]

isolations = pytest.mark.parametrize("isolation", [pytest.param("thread", marks=pytest.mark.deep), "process"])
SIGN = Command.SIGN_EDDSA


@isolations
@pytest.mark.parametrize("kind", ["drop", "lose-reply", "garbage", "truncate", "http-error", "corrupt-mac"])
@one_loop
async def test_an_exchange_that_fails_once_is_not_seen(rig, isolation, kind):
    async with opened(rig.config(settings={"isolation": isolation})) as manager:
        await signs(manager, b"before")
        rig.device.inject(kind, SIGN)
        await until_it_signs(manager)
        assert rig.device.faults.struck == [kind]
        for number in range(20):
            await signs(manager, f"after {number}".encode())
    assert len(rig.device.sessions) <= 1  # one whose channel broke cannot be closed and expires


@isolations
@one_loop
async def test_the_connector_goes_and_comes_back_under_load(rig, isolation):
    async with (
        opened(rig.config(settings={"isolation": isolation})) as manager,
        Load(manager, callers=16) as load,
    ):
        await load.until_good(50)
        for _time in range(3):
            rig.connector.stop()
            failed = len(load.errors)
            await until(lambda failed=failed: len(load.errors) > failed)
            rig.connector.start()
            await load.until_good(50)
    assert len(rig.device.sessions) <= 3  # one for each time, which could not be closed and expires


@isolations
@one_loop
async def test_a_session_that_expired_is_replaced_unseen(rig, isolation):
    async with opened(rig.config(settings={"isolation": isolation})) as manager:
        for number in range(3):
            await signs(manager, f"{number}".encode())
            rig.device.advance(31.0)
        await signs(manager, b"after")
        assert rig.device.openings.total() >= 4


@one_loop
async def test_a_connector_that_hangs_is_left_by_its_host_process(rig):
    async with opened(rig.config(requestTimeoutMs=30_000)) as manager:
        await signs(manager, b"before")
        pid = engine_of(manager).host_pid
        rig.device.inject("hang", SIGN)
        with pytest.raises(DeadlineExceeded):
            await manager.sign(b"hangs", 0.3)
        # The module would wait for ever. Its process is killed, and the next one signs while the connector still hangs
        # with the first exchange.
        await until(lambda: supervisor_of(manager).restarts == 1)
        await until_it_signs(manager)
        assert rig.device.faults.hanging == 1
        assert engine_of(manager).host_pid != pid
        rig.device.faults.release()


@one_loop
async def test_requests_behind_one_that_hangs_are_signed_by_the_next_host_process(rig):
    async with opened(rig.config()) as manager:
        await signs(manager, b"before")
        rig.device.inject("hang", SIGN)
        hanging = start(manager.sign(b"hangs", 0.5))
        await until(lambda: rig.device.faults.hanging == 1)
        behind = [start(signs(manager, f"behind {number}".encode(), 20.0)) for number in range(10)]
        with pytest.raises(DeadlineExceeded):
            await hanging
        await asyncio.gather(*behind)
        rig.device.faults.release()


@one_loop
async def test_a_connector_that_hangs_for_a_module_in_this_process_holds_no_deadline_up(rig):
    async with opened(rig.config(settings={"isolation": "thread"})) as manager:
        await signs(manager, b"before")
        rig.device.inject("hang", SIGN)
        for number in range(3):
            with pytest.raises((DeadlineExceeded, MemberDown)):
                await manager.sign(f"hangs {number}".encode(), 0.3)
        # The module keeps its slot locked while a call hangs, so no session signs until it returns.
        await until(lambda: rig.device.faults.hanging == 1)
        rig.device.faults.release()
        await until_it_signs(manager)


@pytest.mark.parametrize("isolation", ["thread", "process"])
@one_loop
async def test_a_wrong_signature_is_never_handed_out(rig, isolation):
    async with opened(rig.config(settings={"isolation": isolation, "verifySignatures": "always"})) as manager:
        for number in range(3):
            rig.device.inject("wrong-signature", SIGN)
            # The first is replaced unseen; soon after another one the caller is told.
            assert {error.status for error in await until_it_signs(manager)} <= {"SIGNATURE_INVALID", "TOKEN_LOST"}
            await signs(manager, f"{number}".encode())
        assert rig.device.faults.struck == ["wrong-signature"] * 3


@isolations
@one_loop
async def test_another_key_under_the_same_id_never_signs(rig, isolation):
    async with opened(rig.config(settings={"isolation": isolation})) as manager:
        await signs(manager, b"before")
        [mine] = [stored for stored in rig.device.store if stored.id == KEY_ID]
        rig.device.store.remove(mine)
        rig.device.put_key(KEY_ID, KEY_LABEL, domains=DOMAIN)
        for number in range(10):
            with pytest.raises((KeyMismatch, MemberDown)):
                await manager.sign(f"{number}".encode())


@isolations
@one_loop
async def test_a_full_audit_log_stops_signing_until_it_is_read(rig, isolation):
    async with opened(rig.config(settings={"isolation": isolation})) as manager:
        rig.device.log.force = 1
        batch = manager.sign_many([f"{number}".encode() for number in range(100)], 4.0)
        with pytest.raises(HsmError) as caught:
            await batch
        assert (caught.value.ckr_name, caught.value.retryable) == ("CKR_DEVICE_MEMORY", True)
        rig.device.log.consume(int.from_bytes(rig.device.log.entries[-1][:2], "big"))
        await until_it_signs(manager)


@isolations
@pytest.mark.parametrize("code", sorted({*Error} - {Error.LOG_FULL}))
@one_loop
async def test_the_device_s_own_errors_end(rig, isolation, code):
    async with opened(rig.config(settings={"isolation": isolation})) as manager:
        await signs(manager, b"before")
        rig.device.inject("error", SIGN, code=code, count=None)
        with pytest.raises(HsmError) as caught:
            await manager.sign(b"x", 4.0)
        assert caught.value.status != "DEADLINE_EXCEEDED"
        rig.device.faults.clear()
        await until_it_signs(manager)


@one_loop
async def test_a_device_without_a_free_session_is_waited_for(rig):
    async with opened(rig.config()) as manager:
        await signs(manager, b"before")
        engine_of(manager).kill_host()  # its session stays on the device
        left = rig.device.sessions[0]
        rig.device.sessions |= {number: replace(left, id=number) for number in range(1, MAX_SESSIONS)}
        await until(lambda: rig.device.openings.total() >= 2)
        assert len(rig.device.sessions) == MAX_SESSIONS
        rig.device.advance(31.0)
        await until_it_signs(manager)
        await until(lambda: supervisor_of(manager).restarts > 0)  # an answer may come before
        assert supervisor_of(manager).restarts == 1
