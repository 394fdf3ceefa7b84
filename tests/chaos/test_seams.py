"""Where two things meet that each do well alone: a hostile host and a live client, a stop and a call that hangs,
signals and a host process, a device that slows down and admission control, many callers that leave at once."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Self

import pytest
from tests.chaos.load import tell
from tests.support.chaos import Chaos, engine_of, send_signal, supervisor_of, wrap
from tests.support.group_victim import SIGNALS
from tests.support.hostile import compile_hostile_host
from tests.support.loops import one_loop
from tests.support.managers import counters, opened, settle, start, until
from tests.support.paths import NOOP, ROOT
from tests.support.size import share
from tests.support.verifiers import is_good

import hsmcore
from hsmcore.members import pkcs11

pytestmark = [
    pytest.mark.integration,
]


class Standstill:
    """The longest time for which the event loop did nothing else, by a clock: that of the loop's thread does not count
    the time that a busy machine takes from it. The garbage collector rests: what it costs depends on the whole process.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.longest = 0.0

    async def __aenter__(self) -> Self:
        gc.disable()
        self._watching = start(self._watch())
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._watching.cancel()
        await asyncio.gather(self._watching, return_exceptions=True)
        gc.enable()

    async def _watch(self) -> None:
        last = self._clock()
        while True:
            await asyncio.sleep(0)
            now = self._clock()
            self.longest, last = max(self.longest, now - last), now


# ---- a hostile host process ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hostile_host(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program, compiled."""
    return compile_hostile_host(tmp_path_factory.mktemp("hostile"))


@one_loop
@pytest.mark.parametrize(
    ("kind", "verify"),
    [
        *((kind, "never") for kind in ("random", "rings", "answers", "flood", "silence", "hang-up", "end", "blocking")),
        *((kind, "always") for kind in ("random", "rings", "answers", "flood")),
    ],
)
async def test_a_hostile_host_denies_service_and_no_more(hostile_host, monkeypatch, kind, verify):
    """Each request ends once, in time, the loop goes on, and nothing is left. Where signatures are verified, none is
    wrong."""
    monkeypatch.setattr(pkcs11, "HOST_PROGRAM", hostile_host)
    config = {"modulePath": str(NOOP), "moduleArgs": f"{kind} 1 40", "tokenLabel": "hostile", "keyLabel": "hostile"}
    config |= {"pin": "1234", "sessions": 2, "isolation": "process", "hangAfterMs": 100, "verifySignatures": verify}
    rules = {"type": "pkcs11", "config": config, "maxCacheSize": 0, "queueSize": 64}
    answers: Counter[str] = Counter()
    async with opened({"sequencer": {"keyManager": rules}}) as manager, Standstill() as loop:

        async def one(number: int) -> None:
            begun = time.monotonic()
            try:
                signature = await manager.sign(b"hostile %d" % number, 0.4)
            except hsmcore.HsmError as error:
                answers[error.status] += 1
            else:
                answers["signed"] += 1
                if verify == "always":
                    assert is_good("ed25519", manager.public_key, b"hostile %d" % number, signature)
            assert time.monotonic() - begun < 5.0, "it did not wait for the host"

        for first in range(0, 120, 40):
            await asyncio.gather(*(one(number) for number in range(first, first + 40)))
    assert answers.total() == 120
    assert answers["signed"] >= 1
    assert loop.longest < 5.0


# ---- a stop while a call of the ladder hangs -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "point",
    ["C_Login", "C_SignInit", *(pytest.param(at, marks=pytest.mark.deep) for at in ("C_OpenSession", "C_FindObjects"))],
)
def test_close_while_the_ladder_hangs_logs_in_no_more(world, tmp_path, point):
    """The call comes back after the key manager was closed and the PIN wiped; tests/native/test_seams.c has all
    calls."""
    wrapped = wrap(world)
    asked = json.dumps({"folder": str(tmp_path), "wrapped": {"module": wrapped.module, "settings": wrapped.settings}})
    command = [sys.executable, "-m", "tests.support.stop_victim", point]
    done = subprocess.run(command, input=asked, capture_output=True, text=True, check=False, cwd=ROOT, timeout=50)
    assert done.returncode == 0, done.stderr
    before, after = json.loads(done.stdout)
    assert before == after


# ---- signals to the process group ------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_a_signal_to_the_process_group_loses_nothing(world, tmp_path, number):
    """A terminal's Ctrl-C and a service manager's stop reach the host process too. The application ends in order."""
    chaos = Chaos(tmp_path, wrap(world, "ecdsa-p256"), latency={"C_Sign": {"kind": "constant", "microseconds": 2000}})
    config = chaos.config(settings={"sessions": 4, "isolation": "process"})
    command = [sys.executable, "-m", "tests.support.group_victim"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, start_new_session=True
    ) as victim:
        assert victim.stdin is not None
        assert victim.stdout is not None
        victim.stdin.write(json.dumps(config))
        victim.stdin.close()
        assert victim.stdout.readline() == "ready\n"
        os.killpg(victim.pid, number)
        found = json.loads(victim.stdout.readline())
        assert victim.wait(30) == 0
    assert found["errors"] == []
    assert found["restarts"] == 0


# ---- admission control -----------------------------------------------------------------------------------------------


async def _callers(
    manager: hsmcore.KeyManager, count: int, timeout: float, over: asyncio.Event, answers: list[tuple[float, str]]
) -> None:
    """Callers that sign without a pause until `over`; `answers` gets when each answer came, and its status."""

    async def caller(number: int) -> None:
        while not over.is_set():
            try:
                await manager.sign(b"%d %d" % (number, len(answers)), timeout)
            except hsmcore.HsmError as error:
                answers.append((time.monotonic(), error.status))
                await asyncio.sleep(0.005)
            else:
                answers.append((time.monotonic(), "OK"))

    await asyncio.gather(*(caller(number) for number in range(count)))


@one_loop
async def test_refusals_end_within_one_timeout_after_a_brown_out(world, tmp_path, capsys):
    """All timeouts are equal, so no request with a longer one measures for the others that the device is back. There
    are so few callers that a tenth of the device's rate serves them all in time; a machine that is busy may take the
    rest, and what it holds up the test's own loop is allowed on top."""
    chaos = Chaos(tmp_path, wrap(world))

    def takes(milliseconds: int) -> None:
        chaos.ask("latency", function="C_Sign", kind="constant", microseconds=milliseconds * 1000)

    timeout, over = 0.5, asyncio.Event()
    async with opened(chaos.config(settings={"sessions": 4})) as manager:
        await asyncio.to_thread(takes, 5)
        answers: list[tuple[float, str]] = []
        load = start(_callers(manager, 40, timeout, over, answers))
        await until(lambda: len(answers) > 400)
        await asyncio.to_thread(takes, 200)
        await asyncio.sleep(1.2)  # so that every window of the measurement lies in the brown-out
        await until(lambda: sum(status == "QUEUE_FULL" for _, status in answers) > 10)
        await asyncio.to_thread(takes, 5)
        back, late = time.monotonic(), 0.0
        while (last := time.monotonic()) - back - late < 1.2:
            await asyncio.sleep(0.005)
            late += time.monotonic() - last - 0.005
        over.set()
        await load
    refused = [when for when, status in answers if status == "QUEUE_FULL"]
    after = [when - back for when in refused if when > back]
    last_one = max(after, default=0.0)
    tell(capsys, f"brown-out: {len(refused)} refused, the last one {last_one:.2f} s after it; held up by {late:.2f} s")
    # The calls that had begun take 0.2 s.
    assert last_one <= timeout + 0.2 + late


@one_loop
@pytest.mark.alone
async def test_no_request_is_refused_because_the_host_was_away_for_a_moment(world, tmp_path, capsys):
    """A pause is no slowness: a request that waits for a host process that starts again has time."""
    chaos = Chaos(tmp_path, wrap(world), latency={"C_Sign": {"kind": "constant", "microseconds": 2000}})
    kinds: Counter[str] = Counter()
    pauses = []
    async with opened(chaos.config(settings={"sessions": 4, "isolation": "process"}, queueSize=256)) as manager:
        for kills in range(1, 1 + share(6)):
            over = asyncio.Event()
            answers: list[tuple[float, str]] = []
            load = start(_callers(manager, 200, 1.0, over, answers))
            await asyncio.sleep(0.5)
            killed = time.monotonic()
            assert send_signal(engine_of(manager).host_pid, signal.SIGKILL)
            await until(lambda kills=kills: supervisor_of(manager).restarts == kills)
            await asyncio.sleep(1.0)
            over.set()
            await load
            pauses.append(min(when for when, status in answers if status == "OK" and when > killed + 0.01) - killed)
            kinds.update(status for _, status in answers)
    tell(capsys, f"host killed under load, away for {max(pauses) * 1e3:.0f} ms at most: {dict(kinds)}")
    assert kinds.keys() == {"OK"}


# ---- many callers that leave at once ---------------------------------------------------------------------------------


@one_loop
@pytest.mark.alone
async def test_the_loop_does_not_stand_still_when_12000_callers_leave(world, shim, capsys):
    """The cost of each cancelled request is bounded, and the loop turns in between."""
    callers = 12_000
    settings = {"modulePath": shim.path, "sessions": 2}
    async with opened(world.config(settings=settings, maxCacheSize=0, queueSize=16384)) as manager:
        shim.hold()
        tasks = [start(manager.sign(b"%d" % number, timeout=60)) for number in range(callers)]
        await until(lambda: counters(manager)["in_flight"] == callers)
        async with Standstill(time.thread_time) as loop:
            for first in range(0, callers, 100):  # a server cancels its handlers as their connections close
                for task in tasks[first : first + 100]:
                    task.cancel()
                await asyncio.sleep(0)
            for task in tasks:  # one by one, since a gather of all would be a standstill of the test's own
                await asyncio.wait([task])
            await asyncio.sleep(0.2)
        shim.release()
        await settle(manager)
    tell(capsys, f"{callers} callers leave: the loop stands still for {loop.longest * 1e3:.1f} ms at most")
    assert all(task.cancelled() for task in tasks)
    assert loop.longest <= 0.02
