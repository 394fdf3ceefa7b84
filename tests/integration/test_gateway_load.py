"""`hsmcore load --gateway`: a running gateway under load, and what does not go with it."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys

import pytest
from tests.support.gateways import gateway
from tests.support.loops import one_loop

from hsmcore.cli.app import run as command_line

pytestmark = pytest.mark.integration
_LOAD = [sys.executable, "-c", "from hsmcore.cli import main; main()", "load", "--json"]


@one_loop
async def test_a_gateway_is_loaded_and_its_signatures_are_verified(world, tmp_path):
    async with gateway(tmp_path, world.config()) as served:
        options = [
            "--gateway",
            served.addresses[0],
            "--rate",
            "200",
            "--duration",
            "2s",
            "--connections",
            "2",
            "--verify",
        ]
        done = await asyncio.to_thread(subprocess.run, [*_LOAD, *options], capture_output=True, text=True, check=False)
    result = json.loads(done.stdout)
    assert done.returncode == 0, done.stderr
    assert result["counts"]["signed"] == 400
    assert result["target"]["name"] == f"default at {served.addresses[0]}"
    assert {one["objective"]: one["met"] for one in result["objectives"]}["wrong = 0"]


@pytest.mark.parametrize(
    "options",
    [
        ("--noop",),
        ("--config", "here.json"),
        ("--path", "ring"),
        ("--rate", "80%"),
        ("--chaos", "none"),
        ("--beside-raw",),
        ("--tls", "a,b,c"),
    ],
)
def test_what_a_gateway_does_itself_is_refused(options, capfd):
    assert command_line(["load", "--gateway", "unix:/nowhere", *options]) == 2
    assert "gateway" in capfd.readouterr().err or options[0] == "--tls"
