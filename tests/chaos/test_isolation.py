"""What a module in a host process can do to the application, whatever it tries."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs
from tests.chaos.load import until_it_signs
from tests.support.chaos import Chaos, ends_within, engine_of, send_signal, supervisor_of, wrap
from tests.support.leaks import children
from tests.support.loops import one_loop
from tests.support.managers import opened, until
from tests.support.paths import ROOT
from tests.support.softhsm import Token
from tests.support.verifiers import is_good
from tests.support.wrapper import compile_wrapper

import hsmcore
from hsmcore.config import load
from hsmcore.doctor.doctor import diagnose
from hsmcore.doctor.pkcs11 import ptrace_scope
from hsmcore.members.supervisor import HOST_PROGRAM

pytestmark = [
    pytest.mark.integration,
]


class Hostile:
    """A module before SoftHSM that does what a message tells it to (tests/support/hostile.c)."""

    def __init__(self, token: Token, folder: Path) -> None:
        self.results = folder / "results"
        body = Path(__file__).parents[1].joinpath("support", "hostile.c").read_text()
        self.module = compile_wrapper(body, token.module, folder / "hostile.so", RESULTS=f'"{self.results}"')
        self.token = token

    def config(self, key: str = "ed25519", **settings: Any) -> dict[str, Any]:
        own = {"modulePath": str(self.module), "isolation": "process", "sessions": 2, **settings}
        return self.token.config(key, settings=own, maxCacheSize=0)

    async def tries(self, manager: hsmcore.KeyManager, name: str, argument: str = "") -> int:
        """The errno of what was tried, 0 if it was done."""
        await manager.sign(f"do:{name} {argument}".encode())
        return self.result(name)

    def result(self, name: str) -> int:
        lines = [line.split() for line in self.results.read_text().splitlines()]
        return [int(code) for tried, code in lines if tried == name][-1]


@pytest.fixture
def hostile(world: Token, tmp_path: Path) -> Hostile:
    return Hostile(world, tmp_path)


def landlock_version() -> int:
    """The version of the kernel's Landlock; 0: there is none."""
    landlock_create_ruleset, version = 444, 1
    return max(0, ctypes.CDLL(None).syscall(landlock_create_ruleset, None, ctypes.c_size_t(0), version))


def landlock(manager: hsmcore.KeyManager) -> bool:
    found = engine_of(manager).hardening
    assert found is not None
    return "landlock" not in found[0]


# ---- beyond its process ----------------------------------------------------------------------------------------------

BY_SECCOMP = (
    "peek", "ptrace", "take-descriptor", "kcmp", "probe", "continue", "thread-signal", "old-signal", "signal-all",
    "pidfd-signal", "owner", "old-owner", "socket-owner", "signal-choice",
    "limit", "priority", "fork", "exec", "user-namespace", "enter", "mount", "clone-tree",
    "handle", "io-uring", "keyring", "terminal",
)  # fmt: skip
BY_LANDLOCK = ("write-memory", "read-memory", "environment", "descriptors", "oom-score", "sysctl", "control-group")
NEEDED = ("own-maps", "own-thread", "processors", "fips", "own-signal")


@one_loop
async def test_it_reaches_no_other_process(hostile):
    async with opened(hostile.config()) as manager:
        refused = {name: await hostile.tries(manager, name) for name in BY_SECCOMP}
        assert refused == dict.fromkeys(BY_SECCOMP, errno.EPERM)
        assert {name: await hostile.tries(manager, name) for name in NEEDED} == dict.fromkeys(NEEDED, 0)
        if os.uname().machine == "x86_64":
            assert await hostile.tries(manager, "x32") == errno.EPERM
        if landlock(manager):
            refused = {name: await hostile.tries(manager, name) for name in BY_LANDLOCK}
            assert refused == dict.fromkeys(BY_LANDLOCK, errno.EACCES)
        assert is_good("ed25519", manager.public_key, b"after", await manager.sign(b"after"))
        assert supervisor_of(manager).restarts == 0


@pytest.fixture
def second_proc(tmp_path: Path) -> Iterator[Path]:
    """Another place where the processes are seen."""
    place = tmp_path / "proc"
    place.mkdir()
    if subprocess.run(["mount", "-t", "proc", "proc", str(place)], check=False, capture_output=True).returncode:
        pytest.skip("nothing may be mounted here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@one_loop
async def test_it_reads_no_memory_through_a_second_proc(hostile, second_proc):
    async with opened(hostile.config()) as manager:
        if not landlock(manager):
            pytest.skip("the kernel has no Landlock")
        assert await hostile.tries(manager, "memory-elsewhere", str(second_proc)) == errno.EACCES


# ---- by what is shared -----------------------------------------------------------------------------------------------


LOOP = """
import asyncio, json, sys
import hsmcore
async def main():
    async with hsmcore.create_key_manager(json.loads(sys.argv[1])) as manager:
        await manager.sign(sys.argv[2].encode())
        messages = [f"{number}".encode() for number in range(2000)]
        for message in messages[:20]:
            await asyncio.gather(manager.sign(message, 0.2), return_exceptions=True)
        await manager.sign_many(messages, 5.0, return_exceptions=True)
        print("runs", flush=True)
asyncio.run(main())
"""


@pytest.mark.parametrize("attack", ["block-reads", "steal"])
def test_it_cannot_stop_the_event_loop(hostile, world, attack):
    """In a process of its own: a loop that stands still ends no test."""
    environment = {**world.environment, "PYTHONPATH": os.pathsep.join(map(str, (ROOT / "core", ROOT)))}
    command = [sys.executable, "-c", LOOP, json.dumps(hostile.config()), f"do:{attack}"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=45, check=False)
    assert done.stdout == "runs\n", done.stderr
    assert hostile.result(attack) == 0


@one_loop
async def test_it_cannot_seal_the_area(hostile):
    async with opened(hostile.config()) as manager:
        assert await hostile.tries(manager, "seal") == errno.EPERM
        assert send_signal(engine_of(manager).host_pid, signal.SIGKILL)
        await until_it_signs(manager, 5.0)
        await until(lambda: supervisor_of(manager).restarts == 1)


@pytest.mark.parametrize("what", ["header", "everything"])
@one_loop
async def test_after_it_has_overwritten_the_area_another_host_signs(hostile, what):
    async with opened(hostile.config()) as manager:
        await manager.sign(b"before")
        with suppress(hsmcore.HsmError):
            await manager.sign(f"do:{what} crash".encode(), 5.0)
        assert hostile.result(what) == 0
        await until(lambda: supervisor_of(manager).restarts >= 1)
        await until_it_signs(manager, 10.0)
        for number in range(20):
            message = f"after {number}".encode()
            assert is_good("ed25519", manager.public_key, message, await manager.sign(message))


# ---- signals, and the end of its parent ------------------------------------------------------------------------------


@one_loop
async def test_signals_to_the_group_are_the_application_s(world):
    async with opened(world.config(settings={"isolation": "process"}, maxCacheSize=0)) as manager:
        await manager.sign(b"before")
        pid = engine_of(manager).host_pid
        assert os.getpgid(pid) != os.getpgid(0)
        assert os.getsid(pid) != os.getsid(0)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
            assert send_signal(pid, number)
        for number in range(20):
            await manager.sign(f"{number}".encode())
        assert engine_of(manager).host_pid == pid
        assert supervisor_of(manager).restarts == 0


PARENT = """
import asyncio, json, sys
import hsmcore
async def main():
    manager = hsmcore.create_key_manager(json.loads(sys.argv[1]))
    await manager.initialize()
asyncio.run(main())
"""


def test_it_ends_with_its_parent_also_while_a_call_hangs(world, tmp_path):
    fault = {"function": "C_FindObjectsInit", "every": 1, "action": "hang", "forever": True}
    chaos = Chaos(tmp_path, wrap(world), faults=[fault])
    environment = {**world.environment, "PYTHONPATH": os.pathsep.join(map(str, (ROOT / "core", ROOT)))}
    config = chaos.config(settings={"isolation": "process"})
    parent = subprocess.Popen([sys.executable, "-c", PARENT, json.dumps(config)], env=environment)
    try:
        until_hung = time.monotonic() + 30
        while chaos.ask("stats", 30.0)["hung"] == 0:
            assert time.monotonic() < until_hung
            time.sleep(0.01)
        [host] = {int(pid) for task in Path(f"/proc/{parent.pid}/task").iterdir()
                  for pid in (task / "children").read_text().split()}  # fmt: skip
        watched = os.pidfd_open(host)
        try:
            assert not ends_within(watched, 0.2)
            parent.kill()
            assert ends_within(watched, 10.0)
        finally:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(watched, signal.SIGKILL)
            os.close(watched)
    finally:
        parent.kill()
        parent.wait()


GROWS = r"""
#include <stdlib.h>
#include <unistd.h>

static CK_RV grow(CK_SESSION_HANDLE session, CK_ATTRIBUTE *wanted, CK_ULONG count) {
    (void)session, (void)wanted, (void)count;
    memset(malloc(64 << 20), 1, 64 << 20);
    for (;;) {
        pause();
    }
}

static void change(void) {
    own.C_FindObjectsInit = grow;
}
"""


@one_loop
async def test_its_memory_limit_holds_also_while_a_call_hangs(world, tmp_path):
    module = compile_wrapper(GROWS, world.module, tmp_path / "grows.so")
    settings = {"modulePath": str(module), "isolation": "process", "hostMemoryLimitBytes": 32 << 20}
    begun = time.monotonic()
    with pytest.raises(hsmcore.HsmError) as caught:
        async with opened(world.config(settings={**settings, "startTimeoutMs": 60000})):
            pass
    assert caught.value.status == "HOST_LOST"
    assert time.monotonic() - begun < 30
    assert children() == frozenset()


# ---- a kernel without it ---------------------------------------------------------------------------------------------

WITHOUT = r"""
#define _GNU_SOURCE
#include <errno.h>
#include <stdarg.h>
#include <sys/syscall.h>

/* A kernel whose Landlock has the version ABI; 0: none. The host asks for nothing else by number, but for waiting and
 * waking. */
long syscall(long number, ...) {
    va_list given;
    long a[6];
    va_start(given, number);
    for (int i = 0; i < 6; i++) {
        a[i] = va_arg(given, long);
    }
    va_end(given);
    if (ABI != 0 && number == SYS_landlock_create_ruleset && a[0] == 0) {
        return ABI;
    }
    if (ABI == 0 && number >= SYS_landlock_create_ruleset && number <= SYS_landlock_restrict_self) {
        errno = ENOSYS;
        return -1;
    }
    extern long (*real(void))(long, ...);
    return real()(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}

#include <dlfcn.h>

long (*real(void))(long, ...) {
    static long (*found)(long, ...);
    if (found == 0) {
        found = (long (*)(long, ...))dlsym(RTLD_NEXT, "syscall");
    }
    return found;
}
"""


def _on_an_older_kernel(abi: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, library, program = tmp_path / "without.c", tmp_path / "without.so", tmp_path / "host"
    source.write_text(WITHOUT)
    command = ["gcc", "-O1", "-shared", "-fPIC", f"-DABI={abi}", str(source), "-o", str(library), "-ldl"]
    subprocess.run(command, check=True)
    program.write_text(f"#!/bin/sh\nLD_PRELOAD={library} exec {HOST_PROGRAM}\n")
    program.chmod(0o755)
    for user in ("members", "doctor"):
        monkeypatch.setattr(f"hsmcore.{user}.pkcs11.HOST_PROGRAM", program)


@pytest.fixture
def without_landlock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hosts run on a kernel without Landlock."""
    _on_an_older_kernel(0, tmp_path, monkeypatch)


@pytest.fixture
def without_scopes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hosts run on a kernel before 6.12: its Landlock knows no signals."""
    if not landlock_version():
        pytest.skip("the kernel has no Landlock")
    _on_an_older_kernel(5, tmp_path, monkeypatch)


@pytest.fixture
def victim() -> Iterator[subprocess.Popen[bytes]]:
    """Another process of the same user, which ends with its input."""
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        yield process


def is_alive(victim: subprocess.Popen[bytes]) -> bool:
    assert victim.stdin is not None
    assert victim.stdout is not None
    victim.stdin.write(b"x")
    victim.stdin.flush()
    return victim.stdout.read(1) == b"x"


@one_loop
async def test_where_landlock_knows_no_signals_it_ends_no_other_process(hostile, without_scopes, victim):
    async with opened(hostile.config()) as manager:
        assert engine_of(manager).hardening == ((), 5)
        assert await hostile.tries(manager, "kill-by-input", str(victim.pid)) == 0, "it has tried"
        assert is_alive(victim)
        refused = {name: await hostile.tries(manager, name) for name in BY_SECCOMP}
        assert refused == dict.fromkeys(BY_SECCOMP, errno.EPERM)


def test_the_doctor_says_what_an_older_landlock_lacks(world, without_scopes):
    [report] = diagnose(load(world.config(settings={"isolation": "process"}))).providers
    [step] = [step for step in report.steps if step.name == "isolation"]
    assert (step.outcome, step.data["landlockAbi"]) == ("ok", 5)
    assert "signals only by the filter" in step.found


@one_loop
async def test_without_landlock_it_signs_and_says_what_is_missing(hostile, without_landlock):
    with capture_logs() as lines:
        async with opened(hostile.config()) as manager:
            assert engine_of(manager).hardening == (("landlock",), 0)
            assert await hostile.tries(manager, "probe") == errno.EPERM
            assert is_good("ed25519", manager.public_key, b"x", await manager.sign(b"x"))
    assert [list(line["lacking"]) for line in lines if "less isolated" in line["event"]] == [["landlock"]]


@pytest.mark.parametrize(("scope", "says"), [(None, "write the application's memory"), (1, "much of /proc")])
def test_the_doctor_says_that_the_kernel_has_no_landlock(world, without_landlock, monkeypatch, scope, says):
    monkeypatch.setattr("hsmcore.doctor.pkcs11.ptrace_scope", lambda: scope)
    [report] = diagnose(load(world.config(settings={"isolation": "process"}))).providers
    [step] = [step for step in report.steps if step.name == "isolation"]
    assert (step.outcome, step.data["lacking"]) == ("warn", ["landlock"])
    assert says in step.found
    assert "lsm=" in step.hint


def test_the_doctor_says_what_the_kernel_offers(world):
    [report] = diagnose(load(world.config(settings={"isolation": "process"}))).providers
    [step] = [step for step in report.steps if step.name == "isolation"]
    assert step.data["ptraceScope"] == ptrace_scope()
    assert step.outcome == ("warn" if step.data["lacking"] else "ok")
    assert ("landlock" in step.data["lacking"]) == (step.data["landlockAbi"] == 0)
