"""Where two things meet that each do well alone: a hostile host and a live client, a stop and a call that hangs,
signals and a host process, a device that slows down and admission control."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from tests.support.chaos import Chaos, engine_of, send_signal, supervisor_of, wrap
from tests.support.group_victim import SIGNALS
from tests.support.hostile import compile_hostile_host
from tests.support.loops import one_loop
from tests.support.managers import opened, start, until
from tests.support.paths import NOOP, ROOT
from tests.support.size import share
from tests.support.verifiers import is_good

import hsmcore
from hsmcore.members import pkcs11

pytestmark = [
    pytest.mark.integration,
]


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
    """Each request ends once, also where the host says nothing, and nothing is left. Where signatures are verified,
    none is wrong."""
    monkeypatch.setattr(pkcs11, "HOST_PROGRAM", hostile_host)
    config = {"modulePath": str(NOOP), "moduleArgs": f"{kind} 1 40", "tokenLabel": "hostile", "keyLabel": "hostile"}
    config |= {"pin": "1234", "sessions": 2, "isolation": "process", "hangAfterMs": 100, "verifySignatures": verify}
    rules = {"type": "pkcs11", "config": config, "maxCacheSize": 0, "queueSize": 64}
    answers: Counter[str] = Counter()
    async with opened({"sequencer": {"keyManager": rules}}) as manager:

        async def one(number: int) -> None:
            try:
                signature = await manager.sign(b"hostile %d" % number, 0.4)
            except hsmcore.HsmError as error:
                answers[error.status] += 1
            else:
                answers["signed"] += 1
                if verify == "always":
                    assert is_good("ed25519", manager.public_key, b"hostile %d" % number, signature)

        for first in range(0, 120, 40):
            await asyncio.gather(*(one(number) for number in range(first, first + 40)))
    assert answers.total() == 120
    assert answers["signed"] >= 1


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
    manager: hsmcore.KeyManager, count: int, timeout: float, over: asyncio.Event, answers: list[str]
) -> None:
    """Callers that sign without a pause until `over`; `answers` gets the status of each answer."""

    async def caller(number: int) -> None:
        while not over.is_set():
            try:
                await manager.sign(b"%d %d" % (number, len(answers)), timeout)
            except hsmcore.HsmError as error:
                answers.append(error.status)
                await asyncio.sleep(0.005)
            else:
                answers.append("OK")

    await asyncio.gather(*(caller(number) for number in range(count)))


@one_loop
async def test_refusals_end_after_a_brown_out(world, tmp_path):
    """All timeouts are equal, so no request with a longer one measures for the others that the device is back."""
    chaos = Chaos(tmp_path, wrap(world))

    def takes(milliseconds: int) -> None:
        chaos.ask("latency", function="C_Sign", kind="constant", microseconds=milliseconds * 1000)

    over, answers = asyncio.Event(), list[str]()
    async with opened(chaos.config(settings={"sessions": 4})) as manager:
        await asyncio.to_thread(takes, 5)
        load = start(_callers(manager, 40, 0.5, over, answers))
        await until(lambda: len(answers) > 400)
        await asyncio.to_thread(takes, 200)
        await until(lambda: answers.count("QUEUE_FULL") > 100)
        await asyncio.to_thread(takes, 5)
        await until(lambda: "QUEUE_FULL" not in answers[-500:])
        over.set()
        await load


@one_loop
async def test_no_request_is_refused_because_the_host_was_away_for_a_moment(world, tmp_path):
    """A pause is no slowness: a request that waits for a host process that starts again has time."""
    chaos = Chaos(tmp_path, wrap(world), latency={"C_Sign": {"kind": "constant", "microseconds": 2000}})
    config = chaos.config(settings={"sessions": 4, "isolation": "process"}, queueSize=256)
    over, answers = asyncio.Event(), list[str]()
    async with opened(config) as manager:
        load = start(_callers(manager, 200, 1.0, over, answers))
        for kills in range(1, 1 + share(6)):
            signed = answers.count("OK")
            await until(lambda signed=signed: answers.count("OK") > signed + 500)
            assert send_signal(engine_of(manager).host_pid, signal.SIGKILL)
            await until(lambda kills=kills: supervisor_of(manager).restarts == kills)
        signed = answers.count("OK")
        await until(lambda: answers.count("OK") > signed + 500)
        over.set()
        await load
    assert "QUEUE_FULL" not in answers
    assert set(answers) <= {"OK", "DEADLINE_EXCEEDED"}
