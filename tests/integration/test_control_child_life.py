"""The life of a control child: it ends when it should, whatever its module does, and another one takes its place."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import textwrap
import time

import orjson
import pytest
from tests.support.chaos import CHAOS, Chaos, copy_of, ends_within, send_signal, wrap
from tests.support.leaks import children
from tests.support.loops import one_loop
from tests.support.managers import start, until
from tests.support.size import crossed

from hsmcore.config import load
from hsmcore.errors import EngineClosed, HostUnusable, MemberDown
from hsmcore.members.control import ControlPlane, plane
from hsmcore.members.control import process as control_process

pytestmark = pytest.mark.integration


def isolated(config, **options):
    return ControlPlane.for_settings(load(config).key_manager.config, isolated=True, **options)


@pytest.fixture
def chaos(fresh_token, tmp_path):
    """A copy of the fault-injecting module that no other test has loaded."""
    return Chaos(tmp_path, wrap(fresh_token()), module=copy_of(CHAOS, tmp_path))


@one_loop
async def test_it_ends_when_it_is_idle_and_starts_again(fresh_token, monkeypatch):
    monkeypatch.setattr(plane, "IDLE_SECONDS", 0.05)
    async with isolated(fresh_token().config()) as control:
        for _ in range(3):
            assert len(await control.list_keys()) == 1
            await until(lambda: not children())


@one_loop
@pytest.mark.parametrize("function", ["C_GetSlotList", "C_GenerateKeyPair"])
async def test_a_module_that_hangs(chaos, function):
    chaos.write(faults=[{"function": function, "nth": 1, "action": "hang", "forever": True}])
    control = isolated(chaos.config(), timeout=3.0, member="m")
    with pytest.raises(MemberDown, match="did not answer within") as caught:
        await control.generate_key("ed25519", "x")
    assert (caught.value.status, caught.value.member, caught.value.retryable) == ("HOST_LOST", "m", True)
    assert children() == frozenset()
    chaos.write()
    control._admin._seconds = 60.0  # what follows is no matter of the time that another child takes to start
    assert (await control.generate_key("ed25519", "x")).can_sign
    await control.close()
    with open("/proc/self/maps") as maps:  # noqa: ASYNC230, PTH123  # no real file
        assert chaos.module not in maps.read()


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


@one_loop
async def test_closing_does_not_wait_for_a_module_that_hangs(chaos, monkeypatch):
    monkeypatch.setattr(plane, "CLOSE_SECONDS", 0.3)
    chaos.write(faults=[{"function": "C_GenerateKeyPair", "nth": 1, "action": "hang", "forever": True}])
    control = isolated(chaos.config())
    assert await control.list_keys()
    hanging = [start(control.generate_key("ed25519", f"{n}")) for n in range(3)]
    await until(lambda: chaos.stats()["hung"] == 1)
    await control.close()
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
async def test_a_child_with_invalid_output(fresh_token, tmp_path, monkeypatch):
    config = fresh_token().config()
    python = tmp_path / "python"
    monkeypatch.setattr(sys, "executable", str(python))
    wrong = """echo '{"result":null}'; echo '{"result":[{"id":7}]}'; cat > /dev/null"""  # no list of keys
    lines = "echo hello; cat > /dev/null"
    for script, said in ((lines, "nonsense"), ("exit 3", "exit code 3"), ("cat", "nonsense"), (wrong, "nonsense")):
        python.write_text(f"#!/bin/sh\n{script}\n")
        python.chmod(0o755)
        control = isolated(config)
        with pytest.raises(MemberDown, match=said):
            await control.list_keys()
        assert children() == frozenset()
        await control.close()


@pytest.mark.parametrize(("hanging", "sibling"), crossed([False, True], [False, True]))
def test_it_does_not_outlive_its_parent(chaos, tmp_path, hanging, sibling):
    """Whatever the module does, and even if a fork of the parent's holds the pipes open."""
    if hanging:
        chaos.write(faults=[{"function": "C_GenerateKeyPair", "nth": 1, "action": "hang", "forever": True}])
    config = tmp_path / "config.json"
    config.write_bytes(orjson.dumps(chaos.config()))
    program = f"""
        import asyncio, os, sys, time
        from hsmcore.config import load
        from hsmcore.members.control import ControlPlane

        async def main():
            control = ControlPlane.for_settings(load({str(config)!r}).key_manager.config, isolated=True)
            await control.list_keys()
            sibling = os.fork() if {sibling} else None
            if sibling == 0:
                time.sleep(600)
                os._exit(0)
            print(control._remote._child._process.pid, sibling or 0, flush=True)
            await control.generate_key("ed25519", "x")
            await asyncio.sleep(600)

        asyncio.run(main())
    """
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE) as application:
        child, other = map(int, application.stdout.readline().split())
        assert child > 1
        watched = os.pidfd_open(child)
        try:
            if hanging:
                deadline = time.monotonic() + 60
                while chaos.stats()["hung"] != 1 and time.monotonic() < deadline:
                    time.sleep(0.01)
            assert not ends_within(watched, 0.1)
            application.kill()
            assert ends_within(watched, 60.0)
        finally:
            os.close(watched)
            if other:
                send_signal(other, 9)


def test_a_request_larger_than_the_pipe_to_a_child_that_does_not_read(tmp_path, monkeypatch):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexec sleep 30\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    child = control_process.Child(os.environ)
    with pytest.raises(control_process.ChildLost, match="did not answer"):
        child.call("x", "x" * 500_000, str, 0.2)
    child.close()
    child.close()
    child.kill()


def answering(tmp_path, monkeypatch, *answers, then="exec sleep 30"):
    """In the place of Python, a program that answers its requests with these lines."""
    python = tmp_path / "python"
    lines = [f"read -r request; printf '%s\\n' '{answer}'" for answer in answers]
    python.write_text("\n".join(["#!/bin/sh", "read -r greeting", *lines, then, ""]))
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))


def test_an_answer_without_an_end_ends_the_child(tmp_path, monkeypatch):
    monkeypatch.setattr(control_process, "MOST_BYTES", 1 << 20)
    answering(tmp_path, monkeypatch, then="read -r request; exec tr '\\0' x </dev/zero")
    child = control_process.Child(os.environ)
    with pytest.raises(control_process.ChildLost, match="more than 1048576 bytes"):
        child.call("x", None, str, 30.0)
    assert child._process.poll() is not None
    child.close()
