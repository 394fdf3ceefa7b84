"""close() ends everything, whatever fails on the way: a store that is locked, a full disk, a hung device, a member that
cannot be stopped. That nothing is left, `nothing_left` checks after each test."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from tests.support.audit_logs import files_at_most, keys_of
from tests.support.chaos import Chaos, wrap
from tests.support.loops import one_loop
from tests.support.managers import becomes, opened, start, until
from tests.support.zygote import Forked

import hsmcore
from hsmcore.audit.check.trust import Trust
from hsmcore.audit.check.verify import verify
from hsmcore.audit.layout import Layout
from hsmcore.state import sqlite as state_store

pytestmark = pytest.mark.integration

HOLD = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
print("locked", flush=True)
sys.stdin.read()
"""


@contextmanager
def locked(path):
    """Another process holds the store's write lock, as a shell or a backup does."""
    command = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "locked\n"
        try:
            yield
        finally:
            process.stdin.close()


async def check_released(manager, config, tmp_path):
    """It is closed for good, and its files can be opened by the next one."""
    took = []
    for _ in range(5):
        begun = time.monotonic()
        await manager.close()
        took.append(time.monotonic() - begun)
    assert min(took) < 0.1, "the second call had something to do"
    with pytest.raises(hsmcore.EngineClosed):
        await manager.sign(b"x")
    async with opened(config) as again:
        assert await again.sign(b"again")
    layout = Layout(tmp_path / "audit.log")
    report = verify(layout, Trust(keys=keys_of(layout)))
    assert report.ok, report.findings


def everything(config, tmp_path, **rules):
    """A configuration of a token or a module, with all that a key manager can keep open beside its member."""
    manager = config["sequencer"]["keyManager"]
    manager |= {"stateFile": str(tmp_path / "state.db"), "auditLogFile": str(tmp_path / "audit.log")}
    manager |= {"maxCacheSize": 0, "failover": {"emergencyModeEnabled": True, "primaryRetryIntervalMs": 50}}
    manager |= {"keyRotation": {"overlapDays": 1}, "notices": {"targets": ["json://127.0.0.1:9/"]}, **rules}
    return config


async def close_within(manager, seconds):
    """Close it; how long that took is no measurement, only that it ends."""
    async with asyncio.timeout(seconds):
        await manager.close()


@one_loop
@pytest.mark.parametrize("isolation", ["thread", "process"])
async def test_a_locked_store_keeps_nothing_open(fresh_token, tmp_path, monkeypatch, isolation):
    monkeypatch.setattr(state_store, "BUSY_SECONDS", 0.3)
    config = everything(fresh_token().config(settings={"isolation": isolation}), tmp_path)
    manager = hsmcore.create_key_manager(config)
    await manager.initialize()
    await manager.sign(b"x")
    with locked(tmp_path / "state.db"):
        manager._events.emit("failover", from_level="primary", to_level="secondary")  # a notice that cannot be stored
        await close_within(manager, 20.0)
    await check_released(manager, config, tmp_path)


@one_loop
@pytest.mark.parametrize("isolation", ["thread", "process"])
async def test_a_full_disk_keeps_nothing_open(fresh_token, tmp_path, isolation):
    config = everything(fresh_token().config(settings={"isolation": isolation}), tmp_path)
    manager = hsmcore.create_key_manager(config)
    await manager.initialize()
    await manager.sign(b"x")
    with files_at_most(1):
        with pytest.raises(hsmcore.HsmError):
            await manager.sign(b"is not recorded")
        await close_within(manager, 20.0)
    await check_released(manager, config, tmp_path)


@pytest.mark.parametrize(
    ("isolation", "what", "function"),
    [("thread", "sign", "C_Sign"), ("process", "sign", "C_Sign"), ("thread", "generate", "C_GenerateKeyPair")],
)
def test_a_hung_device_keeps_nothing_open(fresh_token, tmp_path, isolation, what, function):
    """Nothing but the thread that is inside the module. So it is in a process of its own, which still runs when the
    next one opens the files."""
    token = fresh_token()
    chaos = Chaos(tmp_path, wrap(token))
    config = everything(chaos.config(settings={"isolation": isolation, "hangAfterMs": 50}), tmp_path)
    command = ["tests.support.closing_victim", what]
    with Forked(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as victim:
        try:
            print(json.dumps(config), file=victim.stdin, flush=True)
            assert victim.stdout.readline() == "ready\n"
            chaos.fault(function, "hang", forever=True)
            print(file=victim.stdin, flush=True)
            while chaos.stats()["hung"] == 0:
                time.sleep(0.002)
            print(file=victim.stdin, flush=True)
            timer = threading.Timer(30.0, victim.kill)
            timer.start()
            took = victim.stdout.readline()
            timer.cancel()
            assert took, "it hangs"
            assert float(took) < 15.0
            assert children_of(victim.pid) == [], "a host process is left"
            asyncio.run(
                sign_again(
                    everything(token.config(settings={"keyLabel": None, "keyId": token.keys["ed25519"].id}), tmp_path)
                )
            )
        finally:
            victim.kill()


@one_loop
@pytest.mark.parametrize("function", ["C_Sign", "C_GenerateKeyPair", "C_FindObjects"])
async def test_a_call_that_hangs_holds_nothing_once_it_returns(fresh_token, tmp_path, function):
    """In this process: threads, sessions, memory and descriptors that close() left behind go by themselves."""
    chaos = Chaos(tmp_path, wrap(fresh_token()))
    manager = hsmcore.create_key_manager(chaos.config(settings={"hangAfterMs": 50}))
    await manager.initialize()
    calls = {
        "C_Sign": lambda: manager.sign(b"m", 0.2),
        "C_GenerateKeyPair": manager.generate_key,
        "C_FindObjects": lambda: manager.set_current_key_id("ff"),
    }
    chaos.fault(function, "hang", forever=True)
    call = start(calls[function]())
    await becomes(lambda: asyncio.to_thread(lambda: chaos.stats()["hung"] == 1))
    await close_within(manager, 20.0)
    assert (await asyncio.to_thread(chaos.release)) == 1, "close() waited for it"
    await asyncio.gather(call, return_exceptions=True)


def children_of(pid):
    """The processes that a process has started and that are not waited for."""
    found = []
    for status in Path("/proc").glob("[0-9]*/status"):
        with suppress(OSError):  # it has ended
            if f"\nPPid:\t{pid}\n" in status.read_text():
                found.append(status.parent.name)
    return found


async def sign_again(config):
    async with opened(config) as again:
        assert await again.sign(b"again")


@pytest.mark.parametrize("levels", [False, True])
@pytest.mark.parametrize("hsm_signs", [False, True])
async def test_no_signature_is_accepted_once_closing_has_begun(fresh_token, tmp_path, levels, hsm_signs):
    """Also where the engines go on, because a key of the HSM signs the log's last checkpoint."""
    token = fresh_token({"name": "ed25519", "kind": "ed25519"}, {"name": "log", "kind": "ed25519"})
    rules = {"audit": {"signingKey": {"hsmKeyId": token.keys["log"].id}}} if hsm_signs else {}
    rules |= {"failover": {"emergencyModeEnabled": True}, "stateFile": str(tmp_path / "s.db")} if levels else {}
    config = token.config(auditLogFile=str(tmp_path / "audit.log"), maxCacheSize=0, **rules)
    manager = hsmcore.create_key_manager(config)
    await manager.initialize()
    closing: list[bool] = []
    accepted, refused, signed = [], [], []

    async def caller(number):
        ways = (
            manager.sign,
            lambda message: manager.sign(message, allow_other_key=True),
            lambda message: manager.sign_many([message, message + b"!"]),
            manager.sign_with_receipt,
        )
        while len(refused) < 200:
            late = bool(closing)
            try:
                await ways[number % 4](b"%d %d" % (number, len(signed)))
            except hsmcore.EngineClosed:
                refused.append(number)
            else:
                signed.append(number)
                accepted.extend([number] * late)
            if late:
                await asyncio.sleep(0.001)

    callers = [start(caller(number)) for number in range(16)]
    await until(lambda: len(signed) > 200)
    ends = start(manager.close())
    await asyncio.sleep(0)
    closing.append(True)
    await asyncio.gather(ends, *callers)
    assert accepted == []
    assert {number % 4 for number in refused} == {0, 1, 2, 3}
    layout = Layout(tmp_path / "audit.log")
    report = verify(layout, Trust(keys=keys_of(layout)))
    assert report.ok, report.findings
    assert report.unsealed == 0
