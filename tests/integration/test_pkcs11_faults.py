"""libhsmcore_pkcs11.so when devices and gateways are killed: the application sees none of it."""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
from collections import Counter
from contextlib import asynccontextmanager

import pytest
from tests.support.gateways import GatewayProcess, document_of
from tests.support.levels import SAME, Site
from tests.support.loops import one_loop
from tests.support.paths import ROOT
from tests.support.pkcs11_module import MODULE
from tests.support.softhsm import RFC8032_PUBLIC

pytestmark = pytest.mark.integration
THREADS = 8


class Load:
    """The program of tests.support.pkcs11_load."""

    def __init__(self, process):
        self.process = process

    async def signs(self, more=200):
        """Wait until it has signed so many more."""
        goal = None
        while True:
            line = await self.process.stdout.readline()
            assert line
            goal = int(line) + more if goal is None else goal
            if int(line) >= goal:
                return

    async def ended(self):
        """What it saw."""
        self.process.stdin.close()
        lines = (await self.process.stdout.read()).splitlines()
        assert await self.process.wait() == 0
        return json.loads(lines[-1])


@asynccontextmanager
async def load(address, label="default", public_key=RFC8032_PUBLIC, timeout_ms=60_000):
    pipe = asyncio.subprocess.PIPE
    settings = f"address={address} timeout_ms={timeout_ms} verify=yes"
    command = [sys.executable, "-m", "tests.support.pkcs11_load", MODULE, settings, label, str(THREADS), public_key]
    process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, cwd=ROOT)
    try:
        yield Load(process)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@one_loop
async def test_a_killed_device_and_a_killed_gateway_are_not_seen(tmp_path, fresh_token):
    place = Site(tmp_path, fresh_token, SAME, SAME)
    log = tmp_path / "audit.jsonl"
    config = document_of(place.config(auditLogFile=str(log)), f"unix:{tmp_path}/sign.sock")
    gateway = GatewayProcess(tmp_path, config)
    await gateway.start()
    try:
        async with load(gateway.addresses[0]) as running:
            await running.signs()
            place.kill(0)
            await running.signs()
            await gateway.kill()
            await gateway.start()
            await running.signs()
            seen = await running.ended()
    finally:
        await gateway.end()
    assert seen["errors"] == {}
    asked = {
        hashlib.sha256(b"%d %d" % (thread, number)).hexdigest()
        for thread, made in enumerate(seen["signed"])
        for number in range(made)
    }
    records = [json.loads(line) for line in log.read_text().splitlines()]
    signed = Counter(one["message_sha256"] for one in records if one["operation"] == "sign" and one["result"] == "ok")
    assert asked <= set(signed)
    # Each once; but what the killed gateway had signed and could not say any more, the next one signed again.
    again = {message for message, times in signed.items() if times > 1}
    assert len(again) <= THREADS
    assert set(signed.values()) <= {1, 2}
