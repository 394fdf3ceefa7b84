"""A module that hangs in a start or in an end: both have an end, and so has the process, by itself and by Ctrl-C."""

import json
import signal
import subprocess
import sys
from typing import Any

import pytest
from tests.support.chaos import Chaos, wrap
from tests.support.loops import one_loop
from tests.support.managers import opened
from tests.support.terminal import OWN_PROCESS
from tests.support.wrapper import compile_wrapper

import hsmcore

pytestmark = pytest.mark.integration

_BODY = r"""
#include <stdio.h>
#include <unistd.h>

typedef CK_RV (*any)(CK_ULONG, CK_ULONG, CK_ULONG, CK_ULONG, CK_ULONG, CK_ULONG);

static CK_RV hang(CK_ULONG a, CK_ULONG b, CK_ULONG c, CK_ULONG d, CK_ULONG e, CK_ULONG f) {
    if (access(WHEN, F_OK) != 0) {
        return ((any)theirs->FUNCTION)(a, b, c, d, e, f);
    }
    FILE *told = fopen(TOLD, "w");
    (void)fclose(told);
    for (;;) {
        (void)pause();
    }
}

static void change(void) {
    *(void **)&own.FUNCTION = (void *)hang;
}
"""
CALLS = ["C_Initialize", "C_GetSlotList", "C_GetTokenInfo", "C_OpenSession", "C_Login"]
CALLS += ["C_FindObjectsInit", "C_FindObjects", "C_GetAttributeValue", "C_Sign"]
LAST_CALLS = ["C_CloseSession", "C_Finalize"]
"""Of an end; it calls no C_Logout."""
ISOLATIONS = ["thread", "process"]
RUN: dict[str, Any] = {"capture_output": True, "text": True, "timeout": 60}


def cases(calls, *often):
    """Each call in both isolations; in every run those that are named."""
    both = [(call, isolation) for call in calls for isolation in ISOLATIONS]
    return [case if case in often else pytest.param(*case, marks=pytest.mark.deep) for case in both]


EMBEDDED = """
import asyncio, json, sys, hsmcore

async def main():
    manager = hsmcore.create_key_manager(json.loads(sys.argv[1]))
    try:
        await manager.initialize()
    except hsmcore.MemberDown as error:
        print("MemberDown", error.retryable)
    finally:
        await manager.close()

asyncio.run(main())
"""
ENDING = """
import asyncio, json, pathlib, sys, hsmcore

async def main():
    manager = hsmcore.create_key_manager(json.loads(sys.argv[1]))
    await manager.initialize()
    await manager.sign(b"m")
    pathlib.Path(sys.argv[2]).touch()
    await manager.close()
    print("closed")

asyncio.run(main())
"""


@pytest.fixture
def hanging(fresh_token, tmp_path):
    """Makes a configuration whose module hangs in one function, once the file `when` is there, and the path of a file
    that is there when it does."""
    token = fresh_token()

    def make(function, *, when="/", **settings):
        told = tmp_path / "told"
        defines = {"FUNCTION": function, "TOLD": json.dumps(str(told)), "WHEN": json.dumps(str(when))}
        module = compile_wrapper(_BODY, token.module, tmp_path / "hangs.so", **defines)
        return token.config(settings={"modulePath": str(module), **settings}), told

    return make


@pytest.mark.parametrize(
    ("call", "isolation"), cases(CALLS, ("C_Initialize", "thread"), ("C_Sign", "thread"), ("C_Login", "process"))
)
def test_a_start_ends_after_its_time_and_the_process_with_it(hanging, call, isolation):
    config, told = hanging(call, startTimeoutMs=3000, isolation=isolation)
    ran = subprocess.run([sys.executable, "-c", EMBEDDED, json.dumps(config)], check=False, **RUN)
    assert (ran.stdout, ran.returncode) == ("MemberDown True\n", 0), ran.stderr
    assert told.exists()


@pytest.mark.parametrize(("call", "isolation"), cases(LAST_CALLS, ("C_CloseSession", "thread")))
def test_an_end_that_hangs_has_an_end_and_the_process_with_it(hanging, call, isolation, tmp_path):
    when = tmp_path / "when"
    config, told = hanging(call, when=when, isolation=isolation)
    ran = subprocess.run([sys.executable, "-c", ENDING, json.dumps(config), str(when)], check=False, **RUN)
    assert (ran.stdout, ran.returncode) == ("closed\n", 0), ran.stderr
    assert told.exists()
    assert ("left behind" in ran.stderr) == (isolation == "thread")


@pytest.mark.parametrize(
    ("call", "isolation"), cases(CALLS, ("C_Login", "thread"), ("C_Sign", "thread"), ("C_Login", "process"))
)
def test_control_c_ends_a_command_whose_module_hangs(hanging, call, isolation, tmp_path):
    config, told = hanging(call, isolation=isolation, startTimeoutMs=600_000)
    interrupt(config, told, "sign --text m", tmp_path)


def interrupt(config, told, command, tmp_path):
    """Start a command, and send it SIGINT when its module hangs."""
    path = tmp_path / "hsmcore.json"
    path.write_text(json.dumps(config))
    line = [*OWN_PROCESS, *command.split(), "--config", str(path)]
    with subprocess.Popen(line, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True) as process:
        try:
            while not told.exists():
                assert process.poll() is None
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130
    assert "interrupted" in said


@one_loop
async def test_a_start_that_took_too_long_leaves_nothing_once_its_call_returns(world, tmp_path):
    slow = [{"function": "C_Login", "nth": 1, "action": "hang", "milliseconds": 2000}]
    chaos = Chaos(tmp_path, wrap(world), faults=slow)
    with pytest.raises(hsmcore.MemberDown, match="startTimeoutMs") as caught:
        async with opened(chaos.config(settings={"startTimeoutMs": 200})):
            pass
    assert caught.value.retryable
    chaos.write()
    async with opened(chaos.config()) as manager:
        assert await manager.sign(b"m")
