"""A module that hangs in a start: the start has an end, and so has the process, by itself and by Ctrl-C."""

import json
import signal
import subprocess
import sys

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

static CK_RV hang(void) {
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
CALLS = ["C_Initialize", "C_GetTokenInfo", "C_OpenSession", "C_Login", "C_FindObjects", "C_Sign"]
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


@pytest.fixture
def hanging(fresh_token, tmp_path):
    """Makes a configuration whose module hangs in one function, and the path of a file that is there when it does."""
    token = fresh_token()

    def make(function, **settings):
        told = tmp_path / "told"
        defines = {"FUNCTION": function, "TOLD": json.dumps(str(told))}
        module = compile_wrapper(_BODY, token.module, tmp_path / "hangs.so", **defines)
        return token.config(settings={"modulePath": str(module), **settings}), told

    return make


@pytest.mark.parametrize(
    "call",
    [call if call in ("C_Initialize", "C_Sign") else pytest.param(call, marks=pytest.mark.deep) for call in CALLS],
)
def test_a_start_ends_after_its_time_and_the_process_with_it(hanging, call):
    config, told = hanging(call, startTimeoutMs=500)
    command = [sys.executable, "-c", EMBEDDED, json.dumps(config)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (ran.stdout, ran.returncode) == ("MemberDown True\n", 0), ran.stderr
    assert told.exists()


@pytest.mark.parametrize(
    ("call", "command"), [("C_Login", "sign --text m"), ("C_Sign", "sign --text m"), ("C_Login", "keys list")]
)
def test_control_c_ends_a_command_whose_module_hangs(hanging, call, command, tmp_path):
    config, told = hanging(call)
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
