"""The log of a host process's end: what must be done is done first, and a line that cannot be written costs nothing."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

import pytest
import structlog
from tests.support.chaos import Chaos, engine_of, send_signal, supervisor_of, wrap
from tests.support.loops import one_loop
from tests.support.managers import becomes, opened

import hsmcore

pytestmark = [pytest.mark.integration]

_NO_DESCRIPTORS = """
import asyncio, json, os, resource, signal, sys, hsmcore

async def main():
    assert "structlog" not in sys.modules
    async with hsmcore.create_key_manager(json.loads(sys.argv[1])) as manager:
        print("structlog" in sys.modules, flush=True)
        await manager.sign(b"before")
        engine = manager.members()[0].member.engine
        ended = engine.host_pid
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, most))
        os.kill(ended, signal.SIGKILL)
        try:
            await manager.sign(b"meanwhile", 0.5)
        except hsmcore.HsmError:
            pass
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        while True:
            try:
                await manager.sign(b"afterwards", 1.0)
                break
            except hsmcore.HsmError:
                await asyncio.sleep(0.05)
        print(engine.host_pid not in (None, ended))

asyncio.run(main())
"""


def test_a_host_that_ends_while_no_descriptor_is_free_is_started_again(world, tmp_path):
    """What a log line needs was imported when the key manager was opened, and not when `hsmcore` was imported."""
    config = Chaos(tmp_path, wrap(world)).config(settings={"isolation": "process"})
    command = [sys.executable, "-c", _NO_DESCRIPTORS, json.dumps(config)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (ran.stdout, ran.returncode) == ("True\nTrue\n", 0), ran.stderr


@one_loop
async def test_a_host_is_started_again_although_no_line_about_it_can_be_written(world, tmp_path):
    def broken(_logger, _method, event):
        if "host process" in event["event"]:
            raise OSError("the application's own processor")
        raise structlog.DropEvent

    async def signs():
        try:
            return bool(await manager.sign(b"m", 1.0))
        except hsmcore.HsmError:
            return False

    chaos = Chaos(tmp_path, wrap(world))
    async with opened(chaos.config(settings={"isolation": "process"})) as manager:
        structlog.configure(processors=[broken])
        assert send_signal(engine_of(manager).host_pid, signal.SIGKILL)
        await becomes(lambda: _restarted(manager))
        await becomes(signs)


async def _restarted(manager):
    return supervisor_of(manager).restarts >= 1


@one_loop
async def test_no_error_ends_the_restarts(world, tmp_path, monkeypatch):
    chaos = Chaos(tmp_path, wrap(world))
    async with opened(chaos.config(settings={"isolation": "process"})) as manager:
        member = manager.members()[0].member
        again, failed = member.restart_host, []

        def once():
            if not failed:
                failed.append(True)
                raise ValueError("a mistake")
            return again()

        monkeypatch.setattr(member, "restart_host", once)
        assert send_signal(engine_of(manager).host_pid, signal.SIGKILL)
        await becomes(lambda: _restarted(manager))
        assert failed
