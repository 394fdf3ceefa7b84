"""The control plane of an isolated module: the module is in a child process, and nowhere else."""

from __future__ import annotations

import asyncio
import os
import resource
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import orjson
import pytest
from tests.support.chaos import CHAOS, Chaos, copy_of, ends_within, needs_chaos, send_signal, wrap
from tests.support.leaks import children
from tests.support.loops import one_loop
from tests.support.managers import opened, start, until
from tests.support.softhsm import ALGORITHMS
from tests.support.verifiers import is_good

import hsmcore
from hsmcore.config import load
from hsmcore.control import ControlError, ControlPlane, KeyNotExportable, TokenSelector, plane, wire
from hsmcore.control import process as control_process
from hsmcore.errors import (
    EXCEPTION_OF_STATUS,
    EngineClosed,
    HostUnusable,
    InternalError,
    KeyAmbiguous,
    KeyNotFound,
    MemberDown,
    ModuleMissing,
    PinIncorrect,
    TokenAmbiguous,
    TokenNotFound,
    error_of,
)

pytestmark = pytest.mark.integration


def isolated(config, **options):
    return ControlPlane.for_settings(load(config).key_manager.config, isolated=True, **options)


def mapped(path):
    return str(path) in Path("/proc/self/maps").read_text()


@pytest.fixture
def module(softhsm, tmp_path):
    """A copy of SoftHSM that no other test has loaded."""
    return copy_of(softhsm, tmp_path)


@pytest.fixture
def chaos(fresh_token, tmp_path):
    """A copy of the fault-injecting module that no other test has loaded."""
    return Chaos(tmp_path, wrap(fresh_token()), module=copy_of(CHAOS, tmp_path))


# ---- what it does ----


async def test_the_module_is_never_in_this_process(fresh_token, module):
    token = fresh_token()
    config = token.config(settings={"modulePath": str(module), "isolation": "process"})
    async with opened(config) as manager:
        stop = False

        async def keep_signing():
            count = 0
            while not stop:
                message = b"%d" % count
                assert is_good("ed25519", token.keys["ed25519"].public_key, message, await manager.sign(message))
                count += 1
            return count

        signing = start(keep_signing())
        old = await manager.get_current_key_id()
        new = await manager.generate_key()
        with pytest.raises(KeyNotExportable):
            await manager.export_key_backup(new)
        await manager.deactivate_key(new)
        with pytest.raises(hsmcore.KeyDeactivated):
            await manager.set_current_key_id(new)
        another = await manager.generate_key()
        stop = True
        assert await signing > 0
        await manager.set_current_key_id(another)
        assert is_good("ed25519", manager.public_key, b"x", await manager.sign(b"x"))
        await manager.set_current_key_id(old)
        shown = {key.id: key.can_sign for key in await manager._member.control.list_keys()}
        assert shown == {old: True, new: False, another: True}
        assert not mapped(module)
    assert not mapped(module)


@one_loop
@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_every_call(fresh_token, algorithm):
    token = fresh_token()
    async with isolated(token.config()) as control:
        key = await control.generate_key(algorithm, "made", b"\x01\x02", extractable=True)
        assert (key.id, key.label, key.algorithm, key.can_sign) == ("0102", "made", algorithm, True)
        assert key in await control.list_keys()
        assert (await control.deactivate(key.id)).enforced
        if algorithm == "ed25519":
            with pytest.raises(KeyNotExportable) as caught:
                await control.export_wrapped(key.id)
            assert (caught.value.ckr, caught.value.hint) == (0x69, KeyNotExportable.default_hint)
            await control.destroy(key.id)
        else:
            backup = await control.export_wrapped(key.id, "wrapper")
            await control.destroy(key.id)
            assert await control.import_wrapped(backup) == (await control.list_keys())[-1]
        assert (await control.generate_key(algorithm, "again")).extractable is False


@one_loop
async def test_a_large_request_and_many_answers(fresh_token):
    async with isolated(fresh_token().config()) as control:
        with pytest.raises(ControlError, match="no backup"):
            await control.import_wrapped(bytes(300_000))
        for _ in range(200):
            assert len(await control.list_keys()) == 1


@one_loop
async def test_errors_are_what_they_would_be_in_this_process(fresh_token):
    token = fresh_token()
    async with isolated(token.config(), member="m1") as control:
        [child] = children()
        for call in (control.deactivate, control.destroy, control.export_wrapped):
            with pytest.raises(KeyNotFound, match="00ff"):
                await call("00ff")
            with pytest.raises(ControlError) as caught:
                await call("zz")
            assert caught.value.hint == "a key id is written in hexadecimal"
        for _ in range(2):
            await control.generate_key("ed25519", "twin", b"\x07")
        with pytest.raises(KeyAmbiguous):
            await control.deactivate("07")
        with pytest.raises(TypeError):
            await control.generate_key("ed25519", b"x")
        assert [child] == sorted(children())
        with pytest.raises(InternalError, match="no_such_call: KeyError"):
            control._remote._call("no_such_call")
        assert await control.list_keys()
        assert [child] != sorted(children()), "after a fault of its own a child is replaced"
    for selector, error in ((TokenSelector(label="elsewhere"), TokenNotFound), (TokenSelector(), TokenAmbiguous)):
        control = ControlPlane(token.module, selector, isolated=True)
        with pytest.raises(error):
            await control.list_keys()
        assert children() == frozenset()
        await control.close()
    control = ControlPlane("/nowhere/libmissing.so", TokenSelector(), isolated=True)
    with pytest.raises(ModuleMissing):
        await control.list_keys()
    await control.close()


def test_errors_survive_the_way_with_all_that_they_know():
    for status in EXCEPTION_OF_STATUS:
        error = error_of(status, ckr=5, ckr_name="CKR_X", call="C_X", detail="d", member="m", hint="h")
        back = wire.error_of_json(orjson.loads(orjson.dumps(wire.error_to_json(error))))
        assert (type(back), vars(back), str(back)) == (type(error), vars(error), str(error))
    foreign = {**wire.error_to_json(error_of("BUSY")), "class": "ConfigurationError"}
    assert type(wire.error_of_json(foreign)) is EXCEPTION_OF_STATUS["BUSY"]
    assert type(wire.error_of_json({**foreign, "class": "object"})) is EXCEPTION_OF_STATUS["BUSY"]


# ---- secrets ----


@one_loop
async def test_no_secret_is_in_its_arguments_or_its_environment(fresh_token, tmp_path, monkeypatch):
    token = fresh_token()
    seen = tmp_path / "seen"
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\n{{ echo "$@"; env; }} > {seen}\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setenv("THE_PIN", token.pin)
    monkeypatch.setenv("ANOTHER", "not secret")
    config = load(token.config(settings={"pin": {"env": "THE_PIN"}}))
    given = []
    resolve = type(config.key_manager.config).resolve_pin

    def noted(settings):
        given.append(resolve(settings))
        return given[-1]

    monkeypatch.setattr(type(config.key_manager.config), "resolve_pin", noted)
    settings = config.key_manager.config
    async with ControlPlane.for_settings(settings, isolated=True, hidden=config.secret_variables) as control:
        assert await control.list_keys()
        text = seen.read_text()
        assert "not secret" in text
        assert token.pin not in text
        assert "THE_PIN" not in text
        [child] = children()
        assert resource.prlimit(child, resource.RLIMIT_CORE) == (0, 0)
    assert given == [bytearray(len(token.pin))]


@one_loop
async def test_a_refused_pin_is_sent_once(fresh_token):
    token = fresh_token()
    given = []

    def wrong():
        given.append(bytearray(b"wrong-pin"))
        return given[-1]

    control = ControlPlane(token.module, TokenSelector(label=token.label), pin=wrong, isolated=True, member="m")
    for match in ("PIN", "earlier attempt", "earlier attempt"):
        with pytest.raises(PinIncorrect, match=match) as caught:
            await control.list_keys()
        assert caught.value.member == "m"
        assert "wrong-pin" not in repr(caught.value)
        assert children() == frozenset()
    await control.close()
    assert given == [bytearray(len("wrong-pin"))]


# ---- its life ----


@one_loop
async def test_it_ends_when_it_is_idle_and_starts_again(fresh_token, monkeypatch):
    monkeypatch.setattr(plane, "IDLE_SECONDS", 0.05)
    async with isolated(fresh_token().config()) as control:
        for _ in range(3):
            assert len(await control.list_keys()) == 1
            await until(lambda: not children())


@needs_chaos
@one_loop
@pytest.mark.parametrize("function", ["C_GetSlotList", "C_Login", "C_GenerateKeyPair"])
async def test_a_module_that_hangs(chaos, function):
    chaos.write(faults=[{"function": function, "nth": 1, "action": "hang", "forever": True}])
    # Long enough for the child's start on a busy machine.
    control = isolated(chaos.config(), timeout=3.0, member="m")
    begun = time.monotonic()
    with pytest.raises(MemberDown, match="did not answer within") as caught:
        await control.generate_key("ed25519", "x")
    assert 2.9 < time.monotonic() - begun < 4.0
    assert (caught.value.status, caught.value.member, caught.value.retryable) == ("HOST_LOST", "m", True)
    assert children() == frozenset()
    chaos.write()
    assert (await control.generate_key("ed25519", "x")).can_sign
    await control.close()
    assert not mapped(chaos.module)


@needs_chaos
@one_loop
@pytest.mark.parametrize(
    ("action", "said"),
    [({"action": "crash"}, "ended by SIGSEGV"), ({"action": "exit", "code": 7}, "exit code 7")],
)
async def test_a_module_that_ends_the_process(chaos, action, said):
    chaos.write(faults=[{"function": "C_GenerateKeyPair", "nth": 1, **action}])
    async with isolated(chaos.config()) as control:
        assert await control.list_keys()
        with pytest.raises(MemberDown, match=said):
            await control.generate_key("ed25519", "x")
        chaos.write()
        assert (await control.generate_key("ed25519", "x")).can_sign


@needs_chaos
@one_loop
async def test_what_broke_in_the_module_is_left_behind_with_its_process(chaos):
    chaos.write(faults=[{"function": "C_OpenSession", "nth": 3, "action": "return", "ckr": "CKR_DEVICE_REMOVED"}])
    async with isolated(chaos.config()) as control:
        assert await control.list_keys()
        first = children()
        with pytest.raises(MemberDown) as caught:
            await control.list_keys()
        assert (caught.value.ckr, caught.value.status) == (0x32, "TOKEN_LOST")
        assert children() == frozenset()
        assert await control.list_keys()
        assert first.isdisjoint(children())


@needs_chaos
@one_loop
async def test_closing_does_not_wait_for_a_module_that_hangs(chaos, monkeypatch):
    monkeypatch.setattr(plane, "CLOSE_SECONDS", 0.3)
    chaos.write(faults=[{"function": "C_GenerateKeyPair", "nth": 1, "action": "hang", "forever": True}])
    control = isolated(chaos.config())
    assert await control.list_keys()
    hanging = [start(control.generate_key("ed25519", f"{n}")) for n in range(3)]
    await until(lambda: chaos.stats()["hung"] == 1)
    begun = time.monotonic()
    await control.close()
    assert time.monotonic() - begun < 2.0
    errors = await asyncio.gather(*hanging, return_exceptions=True)
    assert [type(error) for error in errors] == [MemberDown, EngineClosed, EngineClosed]
    assert children() == frozenset()
    with pytest.raises(EngineClosed):
        await control.list_keys()


@one_loop
async def test_a_child_that_cannot_be_started(fresh_token, monkeypatch):
    control = isolated(fresh_token().config())
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(HostUnusable, match="No such file"):
        await control.list_keys()
    await control.close()


@one_loop
async def test_a_child_that_talks_nonsense(fresh_token, tmp_path, monkeypatch):
    config = fresh_token().config()
    python = tmp_path / "python"
    monkeypatch.setattr(sys, "executable", str(python))
    for script, said in (("echo hello; cat > /dev/null", "nonsense"), ("exit 3", "exit code 3"), ("cat", "nonsense")):
        python.write_text(f"#!/bin/sh\n{script}\n")
        python.chmod(0o755)
        control = isolated(config)
        with pytest.raises(MemberDown, match=said):
            await control.list_keys()
        assert children() == frozenset()
        await control.close()


@needs_chaos
@pytest.mark.parametrize("hanging", [False, True])
@pytest.mark.parametrize("sibling", [False, True])
def test_it_does_not_outlive_its_parent(chaos, tmp_path, hanging, sibling):
    """Whatever the module does, and even if a fork of the parent's holds the pipes open."""
    if hanging:
        chaos.write(faults=[{"function": "C_GenerateKeyPair", "nth": 1, "action": "hang", "forever": True}])
    config = tmp_path / "config.json"
    config.write_bytes(orjson.dumps(chaos.config()))
    program = f"""
        import asyncio, os, sys, time
        from hsmcore.config import load
        from hsmcore.control import ControlPlane

        async def main():
            control = ControlPlane.for_settings(load({str(config)!r}).key_manager.config, isolated=True)
            await control.list_keys()
            sibling = os.fork() if {sibling} else None
            if sibling == 0:
                time.sleep(20)
                os._exit(0)
            print(control._remote._child._process.pid, sibling or 0, flush=True)
            await control.generate_key("ed25519", "x")
            await asyncio.sleep(20)

        asyncio.run(main())
    """
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE) as application:
        child, other = map(int, application.stdout.readline().split())
        assert child > 1
        watched = os.pidfd_open(child)
        try:
            if hanging:
                deadline = time.monotonic() + 10
                while chaos.stats()["hung"] != 1 and time.monotonic() < deadline:
                    time.sleep(0.01)
            assert not ends_within(watched, 0.1)
            application.kill()
            assert ends_within(watched, 5.0)
        finally:
            os.close(watched)
            if other:
                send_signal(other, 9)


def test_a_request_larger_than_the_pipe_to_a_child_that_does_not_read(tmp_path, monkeypatch):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexec sleep 30\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    child = control_process.Child(os.environb)
    with pytest.raises(control_process.ChildLost, match="did not answer"):
        child.call({"call": "x", "data": "x" * 500_000}, 0.2)
    child.close()
    child.close()
    child.kill()
