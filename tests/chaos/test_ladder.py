"""The recovery ladder under many requests: a failure of one fails no other, and none fails that a retry would save."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from tests.chaos.load import signs, until_it_signs
from tests.support.chaos import Chaos, compile_poison, destroy_key, engine_of, supervisor_of, wrap
from tests.support.loops import one_loop
from tests.support.managers import counters, opened, settle, start, until
from tests.support.shim import Shim
from tests.support.softhsm import Token
from tests.support.verifiers import is_good

import hsmcore

pytestmark = [pytest.mark.integration]

CKR_FUNCTION_FAILED = 0x006
CKR_OPERATION_ACTIVE = 0x090
REFUSALS = {
    "CKR_DEVICE_ERROR": 0x030,
    "CKR_GENERAL_ERROR": 0x005,
    "CKR_SESSION_HANDLE_INVALID": 0x0B3,
    "CKR_OBJECT_HANDLE_INVALID": 0x082,
    "CKR_USER_NOT_LOGGED_IN": 0x101,
    "CKR_FUNCTION_FAILED": 0x006,
}
BOTH = pytest.mark.parametrize("isolation", ["thread", "process"])


async def burst(manager: hsmcore.KeyManager, messages: Iterable[bytes], timeout: float = 10.0) -> Counter[str]:
    """Ask for all of them at once. Returns how often each kind of error came; the signatures are verified."""

    async def one(message: bytes) -> str:
        try:
            signature = await manager.sign(message, timeout)
        except hsmcore.HsmError as error:
            return f"{type(error).__name__} {error.status} {error.call}"
        return "" if is_good("ed25519", manager.public_key, message, signature) else "wrong"

    kinds = Counter(await asyncio.gather(*[one(message) for message in messages]))
    return Counter({kind: count for kind, count in kinds.items() if kind})


def numbered(what: str, count: int) -> list[bytes]:
    """So many messages, all different."""
    return [f"{what} {number}".encode() for number in range(count)]


def has_signed(manager: hsmcore.KeyManager, count: int) -> Callable[[], bool]:
    """Whether so many more signatures have been made."""
    wanted = engine_of(manager).completed + count
    return lambda: engine_of(manager).completed >= wanted


# ---- a failure of the module's that the next attempt does not meet ---------------------------------------------------


@one_loop
@BOTH
async def test_each_fifth_call_fails_and_leaves_its_operation_active(world, shim_library, tmp_path, isolation):
    shim = Shim(shim_library, tmp_path / "own.so", shared=isolation == "process")
    settings = {"modulePath": shim.path, "sessions": 4, "isolation": isolation}
    async with opened(world.config(settings=settings, maxCacheSize=0)) as manager:
        shim.fail_each("C_Sign", CKR_FUNCTION_FAILED, 5)
        assert await burst(manager, numbered("fifth", 500), timeout=5.0) == {}
        shim.fail_each("C_Sign", 0, 0)
        assert counters(manager)["recoveries"].keys() == {"RETRY", "RESET"}


@one_loop
@BOTH
@pytest.mark.parametrize(
    "fault",
    [
        {"action": "return", "ckr": "CKR_FUNCTION_FAILED", "every": 5},
        {"action": "return", "ckr": "CKR_SESSION_HANDLE_INVALID", "every": 9},
        {"action": "wrong-signature", "every": 7},
        {"action": "kill-all-sessions", "nth": 100},
        {"action": "logout", "nth": 100},
    ],
    ids=lambda fault: "-".join(map(str, fault.values())),
)
async def test_no_request_fails_of_what_the_next_attempt_does_not_meet(world, tmp_path, fault, isolation):
    chaos = Chaos(tmp_path, wrap(world))
    settings = {"sessions": 4, "isolation": isolation, "verifySignatures": "always"}
    async with opened(chaos.config(settings=settings)) as manager:
        chaos.fault("C_Sign", **fault)
        assert await burst(manager, numbered("one", 500), timeout=5.0) == {}
        assert counters(manager)["recoveries"]
        assert not counters(manager)["down"]
        chaos.clear()


@one_loop
async def test_losses_that_follow_on_each_other_cost_no_request(world, tmp_path):
    """The token was healed a moment ago and may not be healed again so soon: the request waits until it may."""
    chaos = Chaos(tmp_path, wrap(world))
    async with opened(chaos.config(settings={"sessions": 4})) as manager:
        chaos.fault("C_Sign", "logout", every=60, count=8)
        assert await burst(manager, numbered("logout", 500), timeout=5.0) == {}
        assert sum(counters(manager)["recoveries"].values()) >= 4
        chaos.clear()


@one_loop
@BOTH
@pytest.mark.parametrize("count", [1, 2, 3])
async def test_healing_is_repeated_while_the_token_is_busy(world, tmp_path, count, isolation):
    chaos = Chaos(tmp_path, wrap(world))
    busy = {"function": "C_Login", "action": "return", "ckr": "CKR_FUNCTION_FAILED", "every": 1, "count": count}
    async with opened(chaos.config(settings={"sessions": 4, "isolation": isolation})) as manager:
        chaos.write(faults=[busy])  # takes effect with the next C_Initialize
        chaos.fault("C_SignInit", "return", ckr="CKR_CRYPTOKI_NOT_INITIALIZED", nth=50)
        assert await burst(manager, numbered("busy", 300), timeout=5.0) == {}


@one_loop
@pytest.mark.parametrize("second", ["CKR_DEVICE_ERROR", "CKR_OPERATION_ACTIVE", "CKR_FUNCTION_FAILED"])
async def test_failures_that_alternate_do_not_keep_a_worker_busy(world, tmp_path, second):
    chaos = Chaos(tmp_path, wrap(world))
    async with opened(chaos.config(settings={"sessions": 1})) as manager:
        faults = [
            {"function": "C_SignInit", "action": "return", "ckr": ckr, "every": every}
            for every, ckr in ((2, "CKR_SESSION_HANDLE_INVALID"), (1, second))
        ]
        chaos.write(faults=faults)  # for when the module is initialized again
        for fault in faults:
            chaos.ask("fault", **fault)
        before = sum(counters(manager)["recoveries"].values())
        with pytest.raises(hsmcore.HsmError) as caught:
            await manager.sign(b"in vain", 5.0)
        assert not isinstance(caught.value, hsmcore.DeadlineExceeded)
        assert sum(counters(manager)["recoveries"].values()) - before < 100
        chaos.write()
        chaos.clear()
        await until_it_signs(manager)


@one_loop
async def test_an_operation_that_stays_active_ends_with_its_session(world, shim):
    """Whichever attempt of a request finds it."""
    settings = {"modulePath": shim.path, "sessions": 1}
    async with opened(world.config(settings=settings, maxCacheSize=0)) as manager:
        for number in range(4):
            opened_before = shim.calls("C_OpenSession")
            shim.fail("C_Sign", CKR_FUNCTION_FAILED, 2)
            await signs(manager, b"stays active %d" % number)
            assert shim.calls("C_OpenSession") - opened_before == 2


@one_loop
@BOTH
@pytest.mark.parametrize("sessions", [1, 4])
async def test_a_module_that_is_busy_for_a_while_costs_no_request(world, shim_library, tmp_path, sessions, isolation):
    """However many attempts that takes: those that wait for the worker do not end them."""
    shim = Shim(shim_library, tmp_path / "own.so", shared=isolation == "process")
    settings = {"modulePath": shim.path, "sessions": sessions, "isolation": isolation}
    async with opened(world.config(settings=settings, maxCacheSize=0)) as manager:
        shim.fail("C_SignInit", CKR_FUNCTION_FAILED)
        asked = start(burst(manager, numbered("throttled", 500), timeout=8.0))
        await asyncio.sleep(1.5)
        calls = shim.calls("C_SignInit")
        shim.fail("C_SignInit", 0, 0)
        assert await asked == {}
        assert calls < 1.5 * sessions * 250  # it was left alone


@one_loop
@BOTH
async def test_a_request_that_is_tried_again_and_again_occupies_no_session(world, tmp_path, isolation):
    module = compile_poison(world.module, tmp_path, refusal=CKR_FUNCTION_FAILED, microseconds=2000)
    settings = {"modulePath": str(module), "sessions": 1, "isolation": isolation}
    async with opened(world.config(settings=settings, maxCacheSize=0)) as manager:
        refused = start(burst(manager, numbered("poison", 8), timeout=60.0))
        await asyncio.sleep(1.5)  # until all of them are known
        assert await burst(manager, numbered("good", 50), timeout=30.0) == {}
        assert not refused.done()  # nor were they given up
        refused.cancel()
        await asyncio.gather(refused, return_exceptions=True)


@one_loop
@BOTH
@pytest.mark.parametrize("ckr", ["CKR_FUNCTION_FAILED", "CKR_SESSION_HANDLE_INVALID", "CKR_USER_NOT_LOGGED_IN"])
@pytest.mark.parametrize("function", ["C_SignInit", "C_Sign"])
async def test_a_start_whose_first_signatures_fail_starts(world, tmp_path, function, ckr, isolation):
    """Its test signature is tried again, in another session and after another login."""
    chaos = Chaos(tmp_path, wrap(world))
    chaos.write(faults=[{"function": function, "action": "return", "ckr": ckr, "every": 1, "count": 3}])
    async with opened(chaos.config(settings={"sessions": 2, "isolation": isolation})) as manager:
        assert chaos.calls("C_SignInit") >= 4
        await signs(manager, b"started")


@one_loop
async def test_a_host_whose_first_signatures_fail_is_started_again_in_one_attempt(world, tmp_path):
    chaos = Chaos(tmp_path, wrap(world))
    async with opened(chaos.config(settings={"sessions": 2, "isolation": "process"})) as manager:
        chaos.write(
            faults=[{"function": "C_Sign", "action": "return", "ckr": "CKR_FUNCTION_FAILED", "every": 1, "count": 3}]
        )
        engine_of(manager).kill_host()
        await signs(manager, b"after the restart", 10.0)
        await until(lambda: supervisor_of(manager).restarts > 0)
        assert supervisor_of(manager).restarts == 1


@one_loop
async def test_a_start_that_never_signs_ends(world, tmp_path):
    chaos = Chaos(tmp_path, wrap(world))
    chaos.write(faults=[{"function": "C_Sign", "action": "return", "ckr": "CKR_FUNCTION_FAILED", "every": 1}])
    manager = hsmcore.create_key_manager(chaos.config(settings={"sessions": 1}))
    begun = time.monotonic()
    with pytest.raises(hsmcore.HsmError) as caught:
        await manager.initialize()
    assert (caught.value.status, caught.value.call) == ("BUSY", "C_Sign")
    assert 1.0 < time.monotonic() - begun < 10.0


# ---- one message, one key --------------------------------------------------------------------------------------------


@pytest.fixture
def picky(world: Token, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """A configuration of a module that takes 2 ms for a signature and refuses one message with a CKR."""

    def configuration(refusal: int, sessions: int = 8) -> dict[str, Any]:
        module = compile_poison(world.module, tmp_path, refusal=refusal, microseconds=2000)
        return world.config(settings={"modulePath": str(module), "sessions": sessions}, maxCacheSize=0)

    return configuration


@one_loop
@pytest.mark.parametrize("name", REFUSALS)
async def test_a_message_that_is_always_refused_fails_no_other(picky, name):
    async with opened(picky(REFUSALS[name])) as manager:
        mixed = [*numbered("before", 300), b"poison", *numbered("behind", 500)]
        errors = await burst(manager, mixed)
        assert errors.total() == 1, errors
        # No request has shown since then that the token is well.
        await asyncio.sleep(0.05)
        assert await burst(manager, numbered("then", 300)) == {}
        assert not counters(manager)["down"]


@one_loop
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.deep) if name == "CKR_FUNCTION_FAILED" else name for name in REFUSALS]
)
async def test_it_fails_alone_with_one_session_too(picky, name):
    async with opened(picky(REFUSALS[name], sessions=1)) as manager:
        for round_ in range(3):
            errors = await burst(manager, [b"poison", *numbered(f"behind {round_}", 100)], timeout=4.0)
            assert errors.total() == 1, errors
        assert not counters(manager)["down"]


@one_loop
async def test_messages_that_are_always_refused_do_not_keep_the_others_waiting(picky):
    """They are tried again for as long as no request waits for their worker."""
    async with opened(picky(CKR_FUNCTION_FAILED, sessions=4)) as manager:
        mixed = [b"poison %d" % n if n % 25 == 0 else b"good %d" % n for n in range(500)]
        errors = await burst(manager, mixed, timeout=5.0)
        assert errors == {"ModuleBusy BUSY C_Sign": 20}


@one_loop
async def test_a_message_fails_alone_where_the_module_cannot_be_initialized_again(picky):
    """Because another engine of this process uses it."""
    config = picky(REFUSALS["CKR_DEVICE_ERROR"], sessions=1)
    async with opened(config), opened(config) as manager:
        for round_ in range(3):
            errors = await burst(manager, [b"poison", *numbered(f"good {round_}", 50)])
            assert errors.total() == 1, errors
            assert not counters(manager)["down"]


@one_loop
async def test_requests_for_a_destroyed_key_cost_no_other_key_an_answer(fresh_token, tmp_path):
    token = fresh_token({"name": "ed25519", "kind": "ed25519"}, {"name": "old", "kind": "ed25519"})
    chaos = Chaos(tmp_path, wrap(token), latency={"C_Sign": {"kind": "constant", "microseconds": 2000}})
    async with opened(chaos.config(settings={"sessions": 4})) as manager:
        # The engine holds the key that was current; its index goes on being asked for.
        await manager.set_current_key_id(token.keys["old"].id)
        engine, gone = engine_of(manager), manager._path.key_index
        await manager.set_current_key_id(token.keys["ed25519"].id)
        await asyncio.to_thread(destroy_key, token, "old")
        refused: list[asyncio.Future[Any]] = []

        async def ask_for_the_old_one() -> None:
            for number in range(20):
                refused.append(engine.submit(b"old %d" % number, 10.0, gone))
                await asyncio.sleep(0.01)

        asking = start(ask_for_the_old_one())
        errors = await burst(manager, numbered("current", 600))
        await asking
        results = await asyncio.gather(*refused, return_exceptions=True)
        assert all(isinstance(result, hsmcore.HsmError) for result in results)
        assert errors == {}
        assert await burst(manager, numbered("then", 100)) == {}
        assert not counters(manager)["down"]


@one_loop
@BOTH
async def test_a_key_that_has_a_double_costs_no_other_key_an_answer(fresh_token, tmp_path, isolation):
    """Which of the two is meant is ambiguous: neither signs, and the search for the others goes on."""
    token = fresh_token({"name": "ed25519", "kind": "ed25519"}, {"name": "other", "kind": "ed25519"})
    chaos = Chaos(tmp_path, wrap(token))
    async with opened(chaos.config(settings={"isolation": isolation})) as manager:
        await manager.set_current_key_id(token.keys["other"].id)
        engine, other = engine_of(manager), manager._path.key_index
        await manager.set_current_key_id(token.keys["ed25519"].id)
        double = {"name": "double", "kind": "ed25519", "label": token.keys["other"].label, "id": token.keys["other"].id}
        await asyncio.to_thread(token.add_keys, [double])
        for number in range(3):
            chaos.fault("C_SignInit", "kill-all-sessions")
            await signs(manager, b"current %d" % number)
            with pytest.raises(hsmcore.HsmError):
                await engine.submit(b"other %d" % number, 1.0, other)
        assert not counters(manager)["down"]


# ---- a token that was away -------------------------------------------------------------------------------------------


@one_loop
@BOTH
async def test_a_burst_after_an_outage_waits_for_the_probe(world, tmp_path, isolation):
    """The first request finds out whether the token is back; requests that arrive with it do not fail."""
    chaos = Chaos(tmp_path, wrap(world))
    away = [
        {"function": function, "action": "return", "ckr": "CKR_DEVICE_REMOVED", "every": 1}
        for function in ("C_SignInit", "C_OpenSession")
    ]
    async with opened(chaos.config(settings={"sessions": 4, "isolation": isolation})) as manager:
        chaos.write(faults=away)
        for fault in away:
            chaos.ask("fault", **fault)
        while not counters(manager)["down"]:
            with pytest.raises(hsmcore.HsmError):
                await manager.sign(b"away", 1.0)
        chaos.write(latency={"C_Sign": {"kind": "constant", "microseconds": 20_000}})
        chaos.clear()
        await asyncio.sleep(1.1)  # the longest pause between two probes
        assert await burst(manager, numbered("back", 64)) == {}


@one_loop
@BOTH
async def test_a_token_that_can_be_healed_and_signs_nothing_is_down(world, tmp_path, isolation):
    """It is probed, and used again when it signs."""
    chaos = Chaos(tmp_path, wrap(world))
    dead = {"function": "C_Sign", "action": "return", "ckr": "CKR_DEVICE_ERROR", "every": 1}
    async with opened(chaos.config(settings={"sessions": 2, "isolation": isolation})) as manager:
        await signs(manager, b"before")
        chaos.write(faults=[dead])
        chaos.ask("fault", **dead)
        errors = await burst(manager, numbered("dead", 100), timeout=20.0)
        assert errors.keys() <= {"MemberDown TOKEN_LOST ", "MemberDown TOKEN_LOST C_Sign"}
        assert counters(manager)["down"]
        started = time.monotonic()
        for number in range(50):
            with pytest.raises(hsmcore.HsmError):
                await manager.sign(b"at once %d" % number, 20.0)
        assert time.monotonic() - started < 10.0
        chaos.write()
        chaos.clear()
        await until_it_signs(manager, 6.0)


@one_loop
async def test_an_outage_that_is_over_in_a_moment_costs_those_alone_that_met_it(world, tmp_path):
    chaos = Chaos(tmp_path, wrap(world))
    async with opened(chaos.config(settings={"sessions": 4})) as manager:
        chaos.fault("C_Sign", "remove-token", nth=100, milliseconds=10)
        errors = await burst(manager, numbered("blip", 500), timeout=5.0)
        assert errors.total() <= 4 + 4, errors


@one_loop
@BOTH
async def test_a_module_that_was_broken_when_it_was_initialized_is_initialized_again(world, tmp_path, isolation):
    """A new start during an outage can leave a library that only another start heals."""
    chaos = Chaos(tmp_path, wrap(world))
    broken = [{"function": "C_Login", "action": "return", "ckr": "CKR_GENERAL_ERROR", "every": 1}]
    async with opened(chaos.config(settings={"isolation": isolation})) as manager:
        await signs(manager, b"before")
        chaos.write(faults=broken)  # takes effect with the next C_Initialize
        chaos.fault("C_SignInit", "return", ckr="CKR_CRYPTOKI_NOT_INITIALIZED")
        end = time.monotonic() + 0.3
        while time.monotonic() < end:
            with pytest.raises(hsmcore.HsmError):
                await manager.sign(b"during %d" % int(end * 1e6), 1.0)
            await asyncio.sleep(0.01)
        chaos.write()  # and so does this
        await until_it_signs(manager, 6.0)


@one_loop
async def test_nothing_but_a_refused_login_ends_the_ladder_for_good(world, tmp_path):
    """An outage of any form that ends: each call of the ladder fails for a while, a new start included."""
    chaos = Chaos(tmp_path, wrap(world))
    async with opened(chaos.config()) as manager:
        for function in ("C_GetTokenInfo", "C_GetSlotList", "C_OpenSession", "C_Login", "C_FindObjectsInit"):
            chaos.write(faults=[{"function": function, "action": "return", "ckr": "CKR_DEVICE_ERROR", "every": 1}])
            chaos.fault("C_SignInit", "return", ckr="CKR_CRYPTOKI_NOT_INITIALIZED")
            while not counters(manager)["down"]:
                with contextlib.suppress(hsmcore.HsmError):
                    await manager.sign(b"during " + function.encode(), 1.0)
            chaos.write()
            await until_it_signs(manager, 6.0)
            await settle(manager)
            assert not counters(manager)["down"], function


# ---- callers that leave ----------------------------------------------------------------------------------------------


@one_loop
async def test_what_many_cancelled_callers_cost_the_loop_grows_with_their_number(world, shim):
    """Not with its square: the slots are scanned once for all of them."""
    settings = {"modulePath": shim.path, "sessions": 2}
    async with opened(world.config(settings=settings, maxCacheSize=0, queueSize=8192)) as manager:

        async def cost(callers: int) -> float:
            shim.hold()
            tasks = [start(manager.sign(b"%d of %d" % (n, callers), timeout=60)) for n in range(callers)]
            await until(lambda: counters(manager)["in_flight"] == callers)
            gc.disable()  # what it costs depends on the whole process
            begun = time.thread_time()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            took = time.thread_time() - begun
            gc.enable()
            assert all(task.cancelled() for task in tasks)
            shim.release()
            await settle(manager)
            return took

        await cost(500)
        few, many = await cost(1000), await cost(8000)
        assert counters(manager)["cancelled"] >= 9500 - 3 * 2
        assert many < 3 * 8 * few


@one_loop
@BOTH
async def test_what_was_put_aside_for_callers_that_left_is_not_tried_again(world, tmp_path, isolation):
    """An attempt that failed has signed nothing, so no further one is owed."""
    chaos = Chaos(tmp_path, wrap(world))
    async with opened(chaos.config(settings={"sessions": 2, "isolation": isolation})) as manager:
        await signs(manager, b"before")
        chaos.fault("C_Sign", "return", ckr="CKR_FUNCTION_FAILED", every=1)
        calls = chaos.calls("C_Sign")
        callers = [start(manager.sign(b"%d" % number, 60.0)) for number in range(40)]
        await until(lambda: chaos.calls("C_Sign") >= calls + 400)  # each is on the ladder, or was put aside
        for caller in callers:
            caller.cancel()
        await asyncio.gather(*callers, return_exceptions=True)
        async with asyncio.timeout(20):  # long before their deadline
            await settle(manager)
        signed = counters(manager)["signatures"]
        chaos.clear()
        await signs(manager, b"after")
        assert counters(manager)["signatures"] == signed + 1
