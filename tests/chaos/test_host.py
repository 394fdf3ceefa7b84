"""The host process: whatever ends it, every request is answered once, and signing goes on."""

from __future__ import annotations

import asyncio
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from tests.chaos.load import Load, tell, until_it_signs
from tests.support.chaos import (
    Chaos,
    allow_signing,
    compile_poison,
    destroy_key,
    ends_within,
    engine_of,
    send_signal,
    supervisor_of,
    wrap,
)
from tests.support.leaks import children
from tests.support.loops import one_loop
from tests.support.managers import opened, start, until
from tests.support.paths import ROOT
from tests.support.verifiers import is_good

import hsmcore
from hsmcore.errors import DeadlineExceeded, HostUnusable, MemberDown, PinIncorrect
from hsmcore.members import supervisor
from hsmcore.members.control.process import _INHERITED, _INHERITED_KINDS
from hsmcore.members.supervisor import HOST_PROGRAM

pytestmark = [
    pytest.mark.integration,
]


def hosted(chaos: Chaos, sessions: int = 2, **rules: Any) -> dict[str, Any]:
    """A configuration with a host process."""
    return chaos.config(settings={"sessions": sessions, "isolation": "process", "hangAfterMs": 100}, **rules)


def open_descriptors() -> int:
    """How many files this process has open."""
    return len(list(Path("/proc/self/fd").iterdir()))


# ---- killed, crashed, ended, stopped ---------------------------------------------------------------------------------


async def test_it_is_killed_at_random_instants_under_load(world, tmp_path, capsys):
    chaos = Chaos(tmp_path, wrap(world))
    instants = random.Random(1)
    async with opened(hosted(chaos)) as manager, Load(manager) as load:
        await load.until_good(100)
        descriptors, gaps = open_descriptors(), []
        for kills in range(1, 6):
            await asyncio.sleep(instants.uniform(1.0, 1.1))  # so old that it is started again at once
            pid = engine_of(manager).host_pid
            struck = time.monotonic()
            assert send_signal(pid, signal.SIGKILL)
            await until(lambda kills=kills: supervisor_of(manager).restarts == kills)
            await load.until_good(50)
            gaps.append(load.gap_around(struck))
            assert engine_of(manager).host_pid != pid
        assert children() == {engine_of(manager).host_pid}
        assert open_descriptors() <= descriptors
        tell(
            capsys,
            f"SIGKILL: no signature for {min(gaps) * 1e3:.0f} to {max(gaps) * 1e3:.0f} ms; "
            f"{len(load.errors)} of {load.asked} failed, {len(load.good)} signed",
        )
    assert load.errors == []  # Ed25519: asked again


@one_loop
async def test_requests_wait_for_a_host_that_is_not_started_again_at_once(world, tmp_path, monkeypatch):
    monkeypatch.setattr(supervisor, "RESTARTS_AT_ONCE", 0)
    monkeypatch.setattr(supervisor, "PAUSE_FIRST_SECONDS", 0.5)
    chaos = Chaos(tmp_path, wrap(world))
    async with opened(hosted(chaos)) as manager:
        lost = asyncio.Event()
        supervisor_of(manager).lost = lost.set
        for pause in range(1, 3):
            assert send_signal(engine_of(manager).host_pid, signal.SIGKILL)
            await lost.wait()
            lost.clear()
            asked = [start(manager.sign(f"{pause} {n}".encode(), 10.0)) for n in range(20)]
            await asyncio.sleep(0)
            assert supervisor_of(manager).restarts == pause - 1  # it pauses
            for n, answer in enumerate(await asyncio.gather(*asked)):
                assert is_good("ed25519", manager.public_key, f"{pause} {n}".encode(), answer)
            await until(lambda made=pause: supervisor_of(manager).restarts == made)  # an answer may come before


@pytest.mark.parametrize(
    ("action", "fields"), [("crash", {}), ("exit", {"code": 0}), ("exit", {"code": 86})], ids=["crash", "exit", "86"]
)
@one_loop
async def test_the_module_ends_it_while_signing(world, tmp_path, capsys, action, fields):
    chaos = Chaos(tmp_path, wrap(world))
    async with opened(hosted(chaos)) as manager, Load(manager) as load:
        await load.until_good(100)
        await asyncio.sleep(1.0)
        chaos.fault("C_Sign", action, **fields)
        struck = time.monotonic()
        await until(lambda: supervisor_of(manager).restarts == 1)
        await load.until_good(100)
        tell(capsys, f"{action}: no signature for {load.gap_around(struck) * 1e3:.0f} ms")
    assert load.errors == []


@one_loop
async def test_ecdsa_requests_that_were_begun_fail_as_retryable_and_the_queued_ones_are_signed(world, tmp_path):
    chaos = Chaos(tmp_path, wrap(world, "ecdsa-p256"))
    key = world.keys["ecdsa-p256"].public_key
    async with opened(hosted(chaos)) as manager:
        await manager.sign(b"before")
        chaos.fault("C_Sign", "hang", forever=True, every=1, count=2)
        messages = [f"{n}".encode() for n in range(60)]
        signing = asyncio.gather(*(manager.sign(message) for message in messages), return_exceptions=True)
        await until(lambda: chaos.stats()["hung"] == 2)
        assert send_signal(engine_of(manager).host_pid, signal.SIGKILL)
        answers = await signing
    lost = [answer for answer in answers if not isinstance(answer, bytes)]
    assert [(type(error), error.status, error.retryable) for error in lost] == [(MemberDown, "HOST_LOST", True)] * 2
    for message, answer in zip(messages, answers, strict=True):
        if isinstance(answer, bytes):
            assert is_good("ecdsa-p256", key, message, answer)


@one_loop
async def test_a_new_host_is_not_taken_for_the_one_that_hung(world, tmp_path):
    chaos = Chaos(tmp_path, wrap(world, "ecdsa-p256"))
    async with opened(hosted(chaos, sessions=4)) as manager:
        chaos.fault("C_Sign", "hang", forever=True, every=1, count=4)
        signing = asyncio.gather(*(manager.sign(f"{n}".encode(), 0.3) for n in range(4)), return_exceptions=True)
        await until(lambda: chaos.stats()["hung"] == 4)
        assert send_signal(engine_of(manager).host_pid, signal.SIGKILL)
        await signing
        await until(lambda: supervisor_of(manager).restarts == 1)
        await asyncio.sleep(0.4)  # longer than the calls that hung may last
        chaos.fault("C_Sign", "hang", milliseconds=150)
        with pytest.raises(DeadlineExceeded):
            await manager.sign(b"one of four hangs", 0.05)
        await asyncio.sleep(0.3)
        assert supervisor_of(manager).restarts == 1


@one_loop
async def test_when_half_of_the_workers_hang_it_is_killed_and_started_again(world, tmp_path, capsys):
    chaos = Chaos(tmp_path, wrap(world))
    async with opened(hosted(chaos, sessions=4)) as manager:
        await asyncio.sleep(1.0)
        pid = engine_of(manager).host_pid
        chaos.fault("C_Sign", "hang", forever=True, every=1, count=4)
        begun = time.monotonic()
        answers = await asyncio.gather(*(manager.sign(f"{n}".encode(), 0.2) for n in range(4)), return_exceptions=True)
        late = time.monotonic() - begun - 0.2
        assert {type(answer) for answer in answers} == {DeadlineExceeded}
        assert late < 5.0, "the calls hang for ever"
        begun = time.monotonic()
        await until_it_signs(manager)
        gap = time.monotonic() - begun
        tell(capsys, f"all hang: callers {late * 1e3:.1f} ms late, signing {gap * 1e3:.0f} ms after that")
        # The new host may sign before this loop has noted that it is there.
        await until(lambda: supervisor_of(manager).restarts == 1)
        assert engine_of(manager).host_pid not in (pid, None)


@one_loop
async def test_when_the_ladder_hangs_it_is_killed_and_started_again(world, tmp_path):
    chaos = Chaos(tmp_path, wrap(world))
    async with opened(hosted(chaos, sessions=4)) as manager:
        await manager.sign(b"before")
        chaos.fault("C_FindObjectsInit", "hang", forever=True)
        chaos.fault("C_SignInit", "logout")
        for number in range(3):
            signing = (manager.sign(f"{number} {n}".encode(), 0.1) for n in range(8))
            await asyncio.gather(*signing, return_exceptions=True)
        await until_it_signs(manager, 1.0)


@pytest.mark.parametrize("busy", [True, False], ids=["busy", "idle"])
@one_loop
async def test_it_is_stopped(world, tmp_path, busy):
    chaos = Chaos(tmp_path, wrap(world))
    async with opened(hosted(chaos)) as manager:
        await manager.sign(b"before")
        pid = engine_of(manager).host_pid
        if busy:
            chaos.fault("C_Sign", "hang", milliseconds=300, every=1, count=2)
            signing = asyncio.gather(*(manager.sign(f"{n}".encode(), 0.2) for n in range(8)), return_exceptions=True)
            await until(lambda: chaos.stats()["hung"] == 2)
            assert send_signal(pid, signal.SIGSTOP)
            answers = await signing
        else:
            await asyncio.sleep(0.1)
            assert send_signal(pid, signal.SIGSTOP)
            await asyncio.sleep(0.1)  # until all of its threads have noticed
            signing = asyncio.gather(*(manager.sign(f"{n}".encode(), 0.2) for n in range(8)), return_exceptions=True)
            answers = await signing
        try:
            assert {type(answer) for answer in answers} <= {DeadlineExceeded, MemberDown}
            await until_it_signs(manager, 2.0)
        finally:
            send_signal(pid, signal.SIGCONT)


@one_loop
async def test_a_request_that_no_worker_has_claimed_yet_does_not_end_a_host_that_was_idle(world, tmp_path):
    chaos = Chaos(tmp_path, wrap(world))
    async with opened(hosted(chaos)) as manager:
        engine = engine_of(manager)
        await manager.sign(b"before")
        assert engine.supervise() == (0, 2)
        await asyncio.sleep(1.1)  # nobody looks at a host without requests
        pid = engine.host_pid
        assert send_signal(pid, signal.SIGSTOP)  # in place of workers that are slow to wake up
        try:
            await asyncio.sleep(0.05)
            signed = engine.submit(b"after", 5.0, manager._path.key_index)
            assert engine.supervise() == (0, 2)
        finally:
            send_signal(pid, signal.SIGCONT)
        assert is_good("ed25519", manager.public_key, b"after", await signed)
        assert engine.host_pid == pid


# ---- keys that were lost while the host was down ---------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["destroyed", "deactivated"])
@one_loop
async def test_a_host_that_is_started_again_goes_on_with_the_keys_that_are_there(fresh_token, tmp_path, loss):
    token = fresh_token({"name": "ed25519", "kind": "ed25519"}, {"name": "other", "kind": "ed25519"})
    chaos = Chaos(tmp_path, wrap(token))
    async with opened(hosted(chaos)) as manager:
        await manager.set_current_key_id(token.keys["other"].id)
        engine, other = engine_of(manager), manager._path.key_index
        await manager.set_current_key_id(token.keys["ed25519"].id)
        if loss == "destroyed":
            await asyncio.to_thread(destroy_key, token, "other")
        else:
            await asyncio.to_thread(allow_signing, token, "other", False)
        await asyncio.sleep(1.0)
        assert send_signal(engine.host_pid, signal.SIGKILL)
        await until_it_signs(manager, 3.0)
        await until(lambda: supervisor_of(manager).restarts == 1)
        with pytest.raises(hsmcore.HsmError) as caught:
            await engine.submit(b"with the key that is gone", 5.0, other)
        assert not isinstance(caught.value, DeadlineExceeded), "it did not wait"
        await until_it_signs(manager, 1.0)
        if loss == "deactivated":
            await asyncio.to_thread(allow_signing, token, "other", True)
            await asyncio.sleep(0.1)
            signature = await engine.submit(b"once more", 5.0, other)
            assert is_good("ed25519", token.keys["other"].public_key, b"once more", signature)


@one_loop
async def test_a_host_that_finds_no_key_at_all_is_started_until_it_does(fresh_token, tmp_path):
    token = fresh_token()
    chaos = Chaos(tmp_path, wrap(token))
    async with opened(hosted(chaos)) as manager:
        await asyncio.to_thread(allow_signing, token, "ed25519", False)
        assert send_signal(engine_of(manager).host_pid, signal.SIGKILL)
        await asyncio.sleep(0.5)
        assert supervisor_of(manager).restarts == 0
        await asyncio.to_thread(allow_signing, token, "ed25519", True)
        await until_it_signs(manager, 5.0)


# ---- a message that kills --------------------------------------------------------------------------------------------


@one_loop
@pytest.mark.parametrize(("count", "poison", "microseconds"), [(200, 50, 0), (4, 0, 100_000)], ids=["many", "slow"])
async def test_a_message_that_crashes_the_module_takes_no_other_along(
    world, tmp_path, capsys, count, poison, microseconds
):
    """Where the others are slow, the same ones are in the module beside it, however often it is signed."""
    module = compile_poison(world.module, tmp_path, microseconds=microseconds)
    settings = {"modulePath": str(module), "isolation": "process", "sessions": 4}
    config = world.config(settings=settings, maxCacheSize=0)
    async with opened(config) as manager:
        messages = [f"message {n}".encode() for n in range(count)]
        messages[poison] = b"poison"
        begun = time.monotonic()
        answers = await asyncio.gather(*(manager.sign(message) for message in messages), return_exceptions=True)
        took = time.monotonic() - begun
        tell(capsys, f"poison: {count} messages took {took:.2f} s, {supervisor_of(manager).restarts} restart")
        bad = {n: answer for n, answer in enumerate(answers) if not isinstance(answer, bytes)}
        assert isinstance(bad.pop(poison), MemberDown)
        assert not bad
        for message, answer in zip(messages, answers, strict=True):
            if isinstance(answer, bytes):
                assert is_good("ed25519", manager.public_key, message, answer)
        await until_it_signs(manager)


# ---- a program that is not ours --------------------------------------------------------------------------------------


def other_version(folder: Path) -> Path:
    """Our host program with another protocol version."""
    program = Path(shutil.copy(HOST_PROGRAM, folder / "host"))
    says = subprocess.run([HOST_PROGRAM, "--version"], check=True, capture_output=True, text=True).stdout
    version = int(says.split()[1], 16).to_bytes(8, "little")
    data = program.read_bytes()
    assert version in data
    program.write_bytes(data.replace(version, version[:-1] + b"i"))
    return program


def script(folder: Path, text: str) -> Path:
    """A shell script."""
    path = folder / "script"
    path.write_text(text)
    path.chmod(0o755)
    return path


PROGRAMS: dict[str, Any] = {
    "missing": lambda folder: folder / "nothing",
    "a folder": lambda folder: folder,
    "not executable": lambda folder: Path(shutil.copyfile(HOST_PROGRAM, folder / "plain")),
    "empty": lambda folder: script(folder, ""),
    "true": lambda folder: Path("/bin/true"),
    "a script": lambda folder: script(folder, "#!/bin/sh\nexit 3\n"),
    "a script that talks": lambda folder: script(folder, "#!/bin/sh\necho hello >&3\nexec sleep 60\n"),
    "another version": other_version,
}


@pytest.mark.parametrize("program", PROGRAMS)
@one_loop
async def test_a_program_that_is_not_ours_is_refused(world, monkeypatch, tmp_path, program):
    host = PROGRAMS[program](tmp_path)
    monkeypatch.setattr("hsmcore.members.pkcs11.HOST_PROGRAM", host)
    manager = hsmcore.create_key_manager(world.config(settings={"isolation": "process"}))
    begun = time.monotonic()
    with pytest.raises(HostUnusable) as caught:
        await manager.initialize()
    assert time.monotonic() - begun < 30, "it did not wait for its end"
    assert caught.value.status in ("HOST_MISSING", "HOST_MISMATCH")
    assert str(host) in str(caught.value)
    assert children() == frozenset()


# ---- the end of its parent -------------------------------------------------------------------------------------------

PARENT = """
import asyncio, json, os, sys, time
import hsmcore
async def main():
    manager = hsmcore.create_key_manager(json.loads(sys.argv[1]))
    await manager.initialize()
    sibling = os.fork() if sys.argv[2] == "forked" else 0
    if sibling == 0 and sys.argv[2] == "forked":
        time.sleep(60)
        os._exit(0)
    print(manager._path.member.engine.host_pid, sibling, flush=True)
    while True:
        await manager.sign(os.urandom(16))
asyncio.run(main())
"""


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.parametrize("how", ["alone", "forked"])
def test_it_ends_with_its_parent(world, tmp_path, how):
    import json

    config = world.config(settings={"isolation": "process"}, maxCacheSize=0)
    environment = {**world.environment, "PYTHONPATH": os.pathsep.join(map(str, (ROOT / "core", ROOT)))}
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, json.dumps(config), how], stdout=subprocess.PIPE, text=True, env=environment
    )
    sibling = 0
    try:
        assert parent.stdout is not None
        assert select.select([parent.stdout], [], [], 30)[0]
        host, sibling = map(int, parent.stdout.readline().split())
        watched = os.pidfd_open(host)
        try:
            assert not ends_within(watched, 0.2)
            parent.kill()
            assert ends_within(watched, 3.0)
        finally:
            os.close(watched)
    finally:
        parent.kill()
        parent.wait()
        if parent.stdout is not None:
            parent.stdout.close()
        if sibling:
            assert send_signal(sibling, signal.SIGKILL)


# ---- what it may see and use -----------------------------------------------------------------------------------------


@one_loop
async def test_no_secret_is_in_its_environment(world, tmp_path, monkeypatch):
    monkeypatch.setenv("CHAOS_TEST_PIN", world.pin)
    monkeypatch.setenv("CHAOS_TEST_OTHER", "seen")
    monkeypatch.setenv("CHAOS_TEST_ANOTHER", "of the application, which no configuration names")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "of the application")
    monkeypatch.setenv("LC_ALL", "C.UTF-8")  # passed on, as every LC_ variable is
    settings = {"isolation": "process", "pin": {"env": "CHAOS_TEST_PIN"}}
    config = world.config(settings=settings | {"moduleEnvironment": ["CHAOS_TEST_OTHER", "CHAOS_TEST_PIN"]})
    async with opened(config) as manager:
        await until_it_signs(manager)
        folder = Path("/proc") / str(engine_of(manager).host_pid)
        try:
            environment = (folder / "environ").read_bytes().split(b"\0")
        except PermissionError:
            pytest.skip("only root can look into a process that is not dumpable")
        assert b"CHAOS_TEST_OTHER=seen" in environment
        names = {os.fsdecode(line.partition(b"=")[0]) for line in environment if line}
        chosen = {"CHAOS_TEST_OTHER", "SOFTHSM2_CONF"} | _INHERITED
        assert not {name for name in names - chosen if not name.startswith(_INHERITED_KINDS)}
        assert not any(world.pin.encode() in line for line in environment)
        assert world.pin.encode() not in (folder / "cmdline").read_bytes()
        status = dict(line.split(":\t", 1) for line in (folder / "status").read_text().splitlines() if ":\t" in line)
        assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
        limits = (folder / "limits").read_text()
        assert " ".join(next(x for x in limits.splitlines() if "core file" in x).split()[4:6]) == "0 0"
        # Its own standard input and output, its four descriptors, a pidfd of its parent, places in /proc, and what the
        # module opens: no file of ours.
        inherited = {str(link.readlink()) for link in (folder / "fd").iterdir()}
        assert not any(str(tmp_path) in name or name.endswith((".py", ".log")) for name in inherited)


@one_loop
async def test_beyond_its_memory_limit_it_is_started_again(world, tmp_path):
    chaos = Chaos(tmp_path, wrap(world))
    settings = {"sessions": 2, "isolation": "process", "hostMemoryLimitBytes": 48 << 20}
    async with opened(chaos.config(settings=settings, maxMessageBytes=1_000_000, queueSize=64)) as manager:
        await until_it_signs(manager)
        big = [bytes([n]) * 1_000_000 for n in range(64)]
        pid = engine_of(manager).host_pid
        for _attempt in range(20):
            answers = await asyncio.gather(*(manager.sign(message) for message in big), return_exceptions=True)
            assert all(isinstance(a, bytes) or a.retryable for a in answers)
            if supervisor_of(manager).restarts:
                break
        assert supervisor_of(manager).restarts >= 1
        assert engine_of(manager).host_pid != pid
        await until_it_signs(manager)


@one_loop
async def test_a_login_that_is_refused_when_it_starts_again_is_not_repeated(world, tmp_path):
    chaos = Chaos(tmp_path, wrap(world))
    async with opened(hosted(chaos)) as manager:
        await until_it_signs(manager)
        chaos.write(faults=[{"function": "C_Login", "every": 1, "action": "return", "ckr": "CKR_PIN_INCORRECT"}])
        assert send_signal(engine_of(manager).host_pid, signal.SIGKILL)
        waiting = [start(manager.sign(f"{n}".encode(), 600.0)) for n in range(8)]
        answers = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 60.0)
        assert {type(answer) for answer in answers} == {PinIncorrect}, answers
        with pytest.raises(PinIncorrect):
            await asyncio.wait_for(manager.sign(b"at once", 600.0), 60.0)
        assert Counter(chaos.log.read_text().split())["C_Login"] == 1
        assert children() == frozenset()


@one_loop
async def test_when_it_cannot_start_again_the_queued_requests_fail_as_retryable(world, tmp_path):
    chaos = Chaos(tmp_path, wrap(world))
    async with opened(hosted(chaos)) as manager:
        await until_it_signs(manager)
        chaos.write(faults=[{"function": "C_OpenSession", "every": 1, "action": "return", "ckr": "CKR_DEVICE_ERROR"}])
        assert send_signal(engine_of(manager).host_pid, signal.SIGKILL)
        answers = await asyncio.gather(*(manager.sign(f"{n}".encode(), 0.5) for n in range(32)), return_exceptions=True)
        chaos.write()
        await until_it_signs(manager)
        assert all(isinstance(answer, bytes) or answer.retryable for answer in answers), Counter(map(repr, answers))
