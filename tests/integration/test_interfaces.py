"""Modules whose C_GetInterfaceList does not say how many interfaces it has filled in."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from tests.support import zygote
from tests.support.chaos import Chaos, Wrapped, wrap
from tests.support.softhsm import Token
from tests.support.uncounted import compile_uncounted

pytestmark = [pytest.mark.integration]


def sign(config: dict[str, Any], folder: Path, token: Token) -> subprocess.CompletedProcess[str]:
    """`hsmcore sign` in a process of its own, which such a module used to end."""
    path = folder / "hsmcore.json"
    path.write_text(json.dumps(config))
    command = ["sign", "--config", path, "--text", "a message", "--json"]
    return zygote.run(zygote.CLI, *command, text=True, env=token.environment)


@pytest.mark.parametrize("isolation", ["thread", "process"])
@pytest.mark.parametrize("through_chaos", [False, True], ids=["alone", "chaos"])
def test_a_count_that_is_not_written_is_not_believed(world, tmp_path, isolation, through_chaos):
    module = str(compile_uncounted(world.module, tmp_path))
    if through_chaos:
        wrapped = wrap(world)
        config = Chaos(tmp_path, Wrapped(module, wrapped.settings)).config(settings={"isolation": isolation})
    else:
        config = world.config(settings={"modulePath": module, "isolation": isolation})
    done = sign(config, tmp_path, world)
    assert done.returncode == 0, (done.returncode, done.stderr)
    assert json.loads(done.stdout)["signature"]


_LIST = """
import ctypes, sys
from tests.support.pkcs11_client import Interface
module = ctypes.CDLL(sys.argv[1])
count = ctypes.c_ulong(0)
assert module.C_GetInterfaceList(None, ctypes.byref(count)) == 0
print(count.value)
rows = (Interface * 32)()
ctypes.memset(rows, 0x41, ctypes.sizeof(rows))
count.value = 32
assert module.C_GetInterfaceList(rows, ctypes.byref(count)) == 0
print(count.value, *(row.name.decode() for row in rows[: count.value]))
count.value = 2
print(hex(module.C_GetInterfaceList(rows, ctypes.byref(count))), count.value)
"""


def test_the_chaos_module_counts_for_it(world, tmp_path):
    chaos = Chaos(tmp_path, Wrapped(str(compile_uncounted(world.module, tmp_path)), {}))
    environment = {**world.environment, "HSMCORE_CHAOS_CONFIG": str(chaos.path)}
    done = zygote.run("-c", _LIST, chaos.module, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["3", "3 PKCS 11 Vendor Vendor", "0x150 3"]
