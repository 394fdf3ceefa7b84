"""Calls that hang: every caller is answered on time, others go on, and nothing is left when the calls return."""

from __future__ import annotations

import asyncio
import json
import subprocess
import threading
import time
from typing import Any

import pytest
from tests.chaos.load import tell, until_it_signs
from tests.support.chaos import Chaos, engine_of, supervisor_of, wrap
from tests.support.loops import one_loop
from tests.support.managers import counters, opened, until
from tests.support.verifiers import is_good
from tests.support.zygote import Forked

import hsmcore
from hsmcore.errors import DeadlineExceeded, MemberDown

pytestmark = [pytest.mark.integration]

SOON = {"hangAfterMs": 50}
"""What hangs is known to hang soon, so that the tests need not wait."""
LATE = 5.0
"""The most that an answer may come after its deadline on a busy machine, in seconds; the real figures are printed."""


async def lateness(manager: hsmcore.KeyManager, message: bytes, timeout: float) -> float:
    """Sign what hangs. Returns by how much DeadlineExceeded came after the deadline."""
    begun = time.monotonic()
    with pytest.raises(DeadlineExceeded) as caught:
        await manager.sign(message, timeout)
    assert caught.value.retryable
    return time.monotonic() - begun - timeout


def say(capsys: Any, what: str, late: list[float]) -> None:
    """Print what was measured, and judge it generously."""
    tell(capsys, f"{what}: {len(late)} answered {min(late) * 1e3:.1f} to {max(late) * 1e3:.1f} ms after the deadline")
    assert min(late) > -0.002
    assert max(late) <= LATE


async def test_a_call_that_hangs_fails_no_other_request(world, tmp_path, capsys):
    chaos = Chaos(tmp_path, wrap(world))
    async with opened(chaos.config(settings={"sessions": 2, **SOON})) as manager:
        late = []
        for number in range(2):
            chaos.fault("C_Sign", "hang", forever=True)
            hanging = asyncio.create_task(lateness(manager, f"hangs {number}".encode(), 0.15))
            await until(lambda number=number: chaos.stats()["hung"] == number + 1)
            begun = time.monotonic()
            while not hanging.done():
                asked = time.monotonic()
                message = f"other {asked}".encode()
                assert is_good("ed25519", manager.public_key, message, await manager.sign(message))
                assert time.monotonic() - asked < LATE
            assert time.monotonic() - begun > 0.05
            late.append(await hanging)
            await until(lambda number=number: counters(manager)["stuck"] == number + 1)
            # A replacement was started: as many work as before.
            await until(lambda: counters(manager)["workers"] - counters(manager)["stuck"] == 2)
        say(capsys, "hanging for ever", late)
        assert not counters(manager)["down"]
        assert chaos.release() == 2
        await until(lambda: counters(manager)["workers"] == 2)
        await until(lambda: counters(manager)["busy"] == 0)
        assert chaos.stats()["hung"] == chaos.stats()["inside"] == 0
        await until(lambda: chaos.stats()["sessions"] == 3)
        answers = await manager.sign_many([f"{n}".encode() for n in range(100)])
        assert len(answers) == 100


@pytest.mark.parametrize("isolation", ["thread", "process"])
@one_loop
async def test_short_deadlines_do_not_mark_workers_as_stuck(world, tmp_path, isolation):
    chaos = Chaos(tmp_path, wrap(world), latency={"C_Sign": {"kind": "constant", "microseconds": 100_000}})
    async with opened(chaos.config(settings={"sessions": 2, "isolation": isolation, "hangAfterMs": 500})) as manager:
        await manager.sign(b"before")
        pid = engine_of(manager).host_pid
        for number in range(4):
            hasty = (lateness(manager, f"{number} {n}".encode(), 0.005) for n in range(4))
            await asyncio.gather(*hasty)
        await until(lambda: counters(manager)["in_flight"] == 0)
        stats = counters(manager)
        assert (stats["stuck"], stats["workers"], stats["down"]) == (0, 2, False)
        assert (engine_of(manager).host_pid, supervisor_of(manager).restarts) == (pid, 0)
        await manager.sign(b"after")


@pytest.mark.parametrize("isolation", ["thread", "process"])
@one_loop
async def test_an_error_at_the_deadline_names_what_the_last_attempt_failed_with(world, tmp_path, isolation):
    chaos = Chaos(tmp_path, wrap(world))
    settings = {"sessions": 1, "isolation": isolation, "hangAfterMs": 30_000}
    async with opened(chaos.config(settings=settings)) as manager:
        chaos.fault("C_Sign", "short-signature")
        chaos.fault("C_SignInit", "hang", nth=2, forever=True)
        with pytest.raises(DeadlineExceeded, match="the last attempt failed with SIGNATURE_MALFORMED") as caught:
            await manager.sign(b"refused, and then the module hangs", 0.5)
        assert (caught.value.status, caught.value.maybe_signed) == ("DEADLINE_EXCEEDED", True)
        chaos.release()
        await until(lambda: counters(manager)["in_flight"] == 0)
        chaos.fault("C_Sign", "hang", forever=True)
        with pytest.raises(DeadlineExceeded) as caught:
            await manager.sign(b"hangs at once", 0.2)
        assert "last attempt" not in str(caught.value)
        chaos.release()


@pytest.mark.parametrize("function", ["C_SignInit", "C_Sign"])
@one_loop
async def test_when_all_hang_the_member_is_down_until_they_come_back(world, tmp_path, capsys, function):
    chaos = Chaos(tmp_path, wrap(world))
    async with opened(chaos.config(settings={"sessions": 2, **SOON})) as manager:
        chaos.fault(function, "hang", forever=True, every=1)
        late = []
        for round_ in range(2):  # the two workers, then the two that take their place
            late += await asyncio.gather(*(lateness(manager, f"{round_} {n}".encode(), 0.1) for n in range(8)))
            await asyncio.sleep(0.15)
        say(capsys, f"all hang in {function}", late)
        for number in range(50):
            begun = time.monotonic()
            with pytest.raises(MemberDown) as caught:
                await manager.sign(f"at once {number}".encode(), 60.0)
            assert caught.value.retryable
            assert time.monotonic() - begun < 20.0, "it did not wait for its deadline"
        assert counters(manager)["stuck"] == chaos.stats()["hung"] == 4
        chaos.clear()
        chaos.release()
        await until_it_signs(manager)
        await until(lambda: counters(manager)["workers"] == 2)


@one_loop
async def test_nothing_of_a_hang_is_left_in_the_counters(world, tmp_path):
    chaos = Chaos(tmp_path, wrap(world))
    async with opened(chaos.config(settings={"sessions": 1, **SOON})) as manager:
        chaos.fault("C_Sign", "hang", forever=True)
        await lateness(manager, b"hangs", 0.05)
        await until(lambda: counters(manager)["stuck"] == 1)
        chaos.release()
        await asyncio.sleep(0.5)
        await manager.sign(b"goes on")
        stats = counters(manager)
        assert (stats["stuck"], stats["busy"], stats["in_flight"], stats["workers"]) == (0, 0, 0, 1)


@one_loop
async def test_queued_requests_past_their_deadline_cost_no_call(world, tmp_path, capsys):
    chaos = Chaos(tmp_path, wrap(world))
    async with opened(chaos.config(settings={"sessions": 1, **SOON})) as manager:
        chaos.fault("C_Sign", "hang", milliseconds=400)
        first = asyncio.create_task(manager.sign(b"the one that hangs", 5.0))
        await until(lambda: chaos.stats()["hung"] == 1)
        before = chaos.stats()["calls"]
        queued = [lateness(manager, f"queued {n}".encode(), 0.05 + n * 0.001) for n in range(100)]
        say(capsys, "queued", await asyncio.gather(*queued))
        assert is_good("ed25519", manager.public_key, b"the one that hangs", await first)
        await until(lambda: counters(manager)["in_flight"] == 0)
        after = chaos.stats()["calls"]
        assert (after["C_Sign"], after["C_SignInit"]) == (before["C_Sign"], before["C_SignInit"])
        stats = counters(manager)
        assert stats["expired"] + stats["cancelled"] == 100
        assert stats["signatures"] == 1


@one_loop
async def test_a_batch_that_hangs_ends_at_its_deadline(world, tmp_path):
    chaos = Chaos(tmp_path, wrap(world))
    async with opened(chaos.config(settings={"sessions": 2, **SOON})) as manager:
        chaos.fault("C_Sign", "hang", nth=10, forever=True)
        begun = time.monotonic()
        answers = await manager.sign_many([f"{n}".encode() for n in range(40)], 0.2, return_exceptions=True)
        assert time.monotonic() - begun < 0.2 + LATE
        assert [type(a) for a in answers if not isinstance(a, bytes)] == [DeadlineExceeded]
        chaos.release()


@pytest.mark.parametrize("function", ["C_OpenSession", "C_Login", "C_FindObjectsInit", "C_GetAttributeValue"])
@one_loop
async def test_a_ladder_that_hangs_delays_no_request_beyond_its_deadline(world, tmp_path, capsys, function):
    chaos = Chaos(tmp_path, wrap(world))
    async with opened(chaos.config(settings={"sessions": 2, **SOON})) as manager:
        chaos.fault(function, "hang", forever=True)
        chaos.fault("C_SignInit", "kill-session" if function == "C_OpenSession" else "logout")
        late = []

        async def caller(number: int) -> None:
            begun = time.monotonic()
            try:
                await manager.sign(f"{number}".encode(), 0.15)
            except DeadlineExceeded:
                late.append(time.monotonic() - begun - 0.15)
            except MemberDown:
                pass

        for number in range(3):
            await asyncio.gather(*(caller(10 * number + n) for n in range(8)))
        say(capsys, f"hanging in {function} while recovering", late)
        chaos.clear()
        assert chaos.release() == 1
        await until_it_signs(manager)


@one_loop
async def test_when_the_ladder_hangs_the_member_is_down(world, tmp_path):
    chaos = Chaos(tmp_path, wrap(world))
    async with opened(chaos.config(settings={"sessions": 2, **SOON})) as manager:
        chaos.fault("C_FindObjectsInit", "hang", forever=True)
        chaos.fault("C_SignInit", "logout")
        for number in range(5):
            answers = [manager.sign(f"{number} {n}".encode(), 0.1) for n in range(4)]
            await asyncio.gather(*answers, return_exceptions=True)
        try:
            begun = time.monotonic()
            with pytest.raises(MemberDown):
                await manager.sign(b"at once", 60.0)
            assert time.monotonic() - begun < 20.0, "it did not wait for its deadline"
        finally:
            chaos.release()


@one_loop
async def test_closing_does_not_wait_for_ever_for_a_call_that_hangs(world, tmp_path):
    chaos = Chaos(tmp_path, wrap(world))
    async with opened(chaos.config(settings={"sessions": 2, **SOON})) as manager:
        chaos.fault("C_Sign", "hang", milliseconds=1500)
        await lateness(manager, b"hangs", 0.05)
        begun = time.monotonic()
    assert time.monotonic() - begun < 6.0


@pytest.mark.parametrize("what", ["search", "start"])
def test_closing_does_not_wait_for_another_call_that_hangs(fresh_token, tmp_path, what):
    """It occupies the thread in which the member's blocking calls are made. In a process of its own: something is
    left."""
    token = fresh_token({"name": "ed25519", "kind": "ed25519"}, {"name": "other", "kind": "ed25519"})
    chaos = Chaos(tmp_path, wrap(token))
    if what == "start":
        chaos.write(faults=[{"function": "C_FindObjectsInit", "action": "hang", "forever": True, "nth": 1}])
    arguments = [what, token.keys["other"].id] if what == "search" else [what]
    command = ["tests.support.closing_victim", *arguments]
    with Forked(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as victim:
        assert victim.stdin is not None
        assert victim.stdout is not None
        try:
            print(json.dumps(chaos.config(settings={"sessions": 2})), file=victim.stdin, flush=True)
            assert victim.stdout.readline() == "ready\n"
            if what == "search":
                chaos.fault("C_FindObjectsInit", "hang", forever=True)
            print(file=victim.stdin, flush=True)
            while chaos.stats()["hung"] == 0:
                time.sleep(0.002)
            print(file=victim.stdin, flush=True)
            timer = threading.Timer(15.0, victim.kill)
            timer.start()
            took = victim.stdout.readline()
            timer.cancel()
            assert took, "it hangs"
            assert float(took) < 8.0
        finally:
            victim.kill()


@one_loop
async def test_closing_does_not_wait_for_a_host_that_hangs(fresh_token, tmp_path):
    token = fresh_token({"name": "ed25519", "kind": "ed25519"}, {"name": "other", "kind": "ed25519"})
    chaos = Chaos(tmp_path, wrap(token))
    async with opened(chaos.config(settings={"sessions": 2, "isolation": "process"})) as manager:
        chaos.fault("C_FindObjectsInit", "hang", forever=True)
        searching = asyncio.create_task(manager.set_current_key_id(token.keys["other"].id))
        await until(lambda: chaos.stats()["hung"] == 1)
        begun = time.monotonic()
    assert time.monotonic() - begun < 8.0
    with pytest.raises(hsmcore.HsmError):
        await searching


@one_loop
@pytest.mark.parametrize("isolation", ["thread", "process"])
async def test_a_member_whose_replacements_hang_too_is_down(world, tmp_path, capsys, isolation):
    """Not before: the first calls are given until their deadline, and those that take their place `hangAfterMs`."""
    chaos = Chaos(tmp_path, wrap(world))
    settings = {"sessions": 2, "isolation": isolation, "hangAfterMs": 200}
    hang = [{"function": name, "action": "hang", "forever": True, "every": 1} for name in ("C_Sign", "C_OpenSession")]
    async with opened(chaos.config(settings=settings)) as manager:
        chaos.write(faults=hang)  # for the next host process
        for fault in hang:
            chaos.ask("fault", **fault)
        begun = time.monotonic()
        first = [asyncio.create_task(manager.sign(b"%d" % number, 0.5)) for number in range(4)]
        then = [asyncio.create_task(manager.sign(b"then %d" % number, 20.0)) for number in range(4)]
        for task in first:
            with pytest.raises(hsmcore.HsmError):
                await task
        while True:
            try:
                await manager.sign(b"refused?", 0.02)
            except MemberDown:
                break
            except DeadlineExceeded:
                assert time.monotonic() - begun < 10.0
        took = time.monotonic() - begun - 0.5
        tell(capsys, f"{isolation}: down {took * 1e3:.0f} ms after the deadline of the calls that hang")
        assert took < 5.0, "the calls hang for ever"
        chaos.write()
        if isolation == "thread":
            chaos.clear()
            chaos.release()
        else:
            engine_of(manager).kill_host()
        await asyncio.gather(*then)
        await until_it_signs(manager)
