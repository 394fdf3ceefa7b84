"""A PIN that a token has refused is sent to it no more: by no start, no command and no process, until another one is
given, or an operator says so."""

import asyncio
import json
import os
import signal
import subprocess
from collections import Counter

import pytest
from tests.support.chaos import Chaos, engine_of, send_signal, wrap
from tests.support.loops import one_loop
from tests.support.managers import becomes, opened
from tests.support.terminal import PROGRAM
from tests.support.zygote import CLI, Forked

import hsmcore
from hsmcore.config import load
from hsmcore.members.control import ControlPlane
from hsmcore.members.supervisor import LOGIN_SECONDS

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("terminal")]
WRONG = "wrong-pin"
ISOLATIONS = ["thread", "process"]


class Site:
    """A token behind the fault-injecting module, which counts logins, with a PIN file of its own."""

    def __init__(self, token, folder, **settings):
        self.token, self.folder = token, folder
        logged = [{"function": "C_Login", "every": 1, "action": "hang", "milliseconds": 1}]
        self.chaos = Chaos(folder, wrap(token), faults=logged, socket=str(folder / "chaos-%p.sock"))
        self.pin = folder / "pin"
        self.give(WRONG)
        self.settings = {"pin": {"file": str(self.pin)}, **settings}

    def give(self, pin):
        """Put a PIN where the configuration says it is."""
        self.pin.touch(mode=0o600)
        self.pin.write_text(pin)

    def config(self, settings=None, **rules):
        rules = {"stateFile": str(self.folder / "state.db"), **rules}
        return self.chaos.config(settings={**self.settings, **(settings or {})}, **rules)

    @property
    def logins(self):
        """How often a PIN has come to the token."""
        return Counter(self.chaos.log.read_text().split())["C_Login"] if self.chaos.log.exists() else 0

    def run(self, *arguments, config=None):
        path = self.folder / "hsmcore.json"
        path.write_text(json.dumps(config or self.config()))
        command = [*PROGRAM, *arguments, "--config", str(path)]
        return subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=120, stdin=subprocess.DEVNULL
        )


@pytest.fixture
def site(fresh_token, tmp_path):
    return Site(fresh_token(), tmp_path)


@pytest.mark.parametrize("isolation", ISOLATIONS)
@one_loop
async def test_it_is_sent_once_whatever_starts(site, isolation):
    config = site.config({"isolation": isolation})
    for _ in range(3):
        with pytest.raises(hsmcore.PinIncorrect):
            async with opened(config):
                pass
    assert site.logins == 1
    with pytest.raises(
        hsmcore.PinIncorrect, match=r"refused at \d{4}-.*not sent again.*hsmcore failover readmit"
    ) as caught:
        async with opened(config):
            pass
    assert not caught.value.retryable
    assert WRONG not in str(caught.value) + repr(caught.value)
    memory = load(config).key_manager.refused_logins
    assert memory.parent == site.folder
    assert memory.stat().st_mode & 0o777 == 0o600
    assert WRONG not in memory.read_text()


@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_it_is_sent_once_whichever_command_runs(site, isolation):
    config = site.config({"isolation": isolation})
    commands = (["sign", "--text", "m"], ["keys", "list"], ["doctor"], ["keys", "list"], ["sign", "--text", "m"])
    for number, command in enumerate(commands):
        ran = site.run(*command, config=config)
        assert ran.returncode == 1
        assert WRONG not in ran.stdout + ran.stderr
        if number:
            assert "not sent again" in ran.stdout + ran.stderr
    assert site.logins == 1


@one_loop
async def test_an_isolated_control_plane_remembers_it_too(site):
    settings, memory = load(site.config()).key_manager.config, load(site.config()).key_manager.refused_logins
    for _ in range(3):
        plane = ControlPlane.for_settings(settings, isolated=True, member="m", refused=memory)
        for _ in range(2):
            with pytest.raises(hsmcore.PinIncorrect):
                await plane.list_keys()
        await plane.close()
    assert site.logins == 1
    site.give(site.token.pin)
    async with ControlPlane.for_settings(settings, isolated=True, member="m", refused=memory) as plane:
        assert await plane.list_keys()


def test_processes_that_start_at_once_send_it_once(site):
    path = site.folder / "hsmcore.json"
    path.write_text(json.dumps(site.config()))
    command = [CLI, "sign", "--text", "m", "--config", str(path)]
    running = [Forked(command, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL) for _ in range(4)]
    said = [process.communicate(timeout=120)[1].decode() for process in running]
    assert [process.returncode for process in running] == [1] * 4
    assert sum("not sent again" in text for text in said) == 3
    assert site.logins == 1


@one_loop
async def test_the_token_counts_and_not_the_name_by_which_it_is_configured(site):
    with pytest.raises(hsmcore.PinIncorrect):
        async with opened(site.config()):
            pass
    [serial] = [record.serial for record in await listed(site.config()) if record.label == site.token.label]
    with pytest.raises(hsmcore.PinIncorrect, match="not sent again"):
        async with opened(site.config({"tokenSerial": serial})):
            pass
    assert site.logins == 1


async def listed(config):
    plane = ControlPlane.for_settings(load(config).key_manager.config)
    try:
        return await plane.list_tokens()
    finally:
        await plane.close()


@one_loop
async def test_another_pin_is_sent_and_a_login_that_is_accepted_forgets_the_refusal(site):
    for pin in (WRONG, "also-wrong", WRONG, "also-wrong"):
        site.give(pin)
        with pytest.raises(hsmcore.PinIncorrect):
            async with opened(site.config()):
                pass
    assert site.logins == 2
    site.give(site.token.pin)
    async with opened(site.config()) as manager:
        assert await manager.sign(b"m")
    assert json.loads(load(site.config()).key_manager.refused_logins.read_text())["refused"] == []


def test_another_token_with_the_same_pin_is_asked(site, fresh_token):
    """The refusal is a token's, not the PIN's."""
    assert site.run("sign", "--text", "m").returncode == 1
    other = fresh_token()
    other.change_pin(WRONG)
    config = site.config({"tokenLabel": other.label, "keyId": other.keys["ed25519"].id, "pin": {"file": str(site.pin)}})
    assert site.run("sign", "--text", "m", config=config).returncode == 0


@pytest.mark.parametrize("failover", [None, {"enabled": True}])
def test_an_operator_has_it_sent_again(site, failover):
    """The token takes the PIN by now: nothing that hsmcore could see has changed."""
    config = site.config(failover=failover, auditLogFile=str(site.folder / "audit.log")) if failover else site.config()
    assert site.run("sign", "--text", "m", config=config).returncode == 1
    site.token.change_pin(WRONG)
    assert "not sent again" in site.run("sign", "--text", "m", config=config).stderr
    assert site.logins == 1
    member = load(config).key_manager.members()[0][1].name
    readmitted = site.run("failover", "readmit", member, "--reason", "its PIN was set", config=config)
    assert readmitted.returncode == 0, readmitted.stderr
    signed = site.run("sign", "--text", "m", config=config)
    assert signed.returncode == 0, signed.stderr
    assert site.logins == 2


@one_loop
async def test_what_another_writer_made_of_the_memory_is_no_obstacle(site):
    memory = load(site.config()).key_manager.refused_logins
    site.give(site.token.pin)
    rows = [{}, {"salt": 7, "refused": 7}, {"salt": "00", "refused": [{"time_ns": "x"}]}, [], "x"]
    for content in [*map(json.dumps, rows), "", "{", "\0" * 100_000]:
        memory.write_text(content)
        async with opened(site.config()) as manager:
            assert await manager.sign(b"m")


@one_loop
async def test_a_memory_that_cannot_be_written_holds_in_the_process(site):
    config = site.config(stateFile="/proc/hsmcore/state.db")
    for _ in range(2):
        with pytest.raises(hsmcore.PinIncorrect):
            async with opened(config):
                pass
    assert site.logins == 1


# ---- the host process starts again -----------------------------------------------------------------------------------


async def signs(manager):
    try:
        return bool(await manager.sign(os.urandom(8), 1.0))
    except hsmcore.HsmError:
        return False


async def refuses(manager):
    try:
        await manager.sign(os.urandom(8), 1.0)
    except hsmcore.HsmError as error:
        return isinstance(error, hsmcore.PinIncorrect) and not error.retryable
    return False


@one_loop
async def test_a_pin_that_was_changed_on_the_token_alone_is_refused_once_and_the_new_one_ends_it(site):
    site.give(site.token.pin)
    async with opened(site.config({"isolation": "process"})) as manager:
        assert await manager.sign(b"m")
        site.token.change_pin("another-pin")
        assert send_signal(engine_of(manager).host_pid, signal.SIGKILL)
        await becomes(lambda: refuses(manager))
        await asyncio.sleep(3 * LOGIN_SECONDS)
        assert await refuses(manager)
        assert site.logins == 2
        site.give("another-pin")
        await becomes(lambda: signs(manager))
        assert site.logins == 3


# ---- what a service's supervisor is told -----------------------------------------------------------------------------


@pytest.mark.parametrize("command", [["gateway"], ["serve"]], ids=" ".join)
@pytest.mark.slow("a process for each start")
def test_a_start_that_no_attempt_mends_has_an_exit_code_of_its_own(site, command):
    config = site.config()
    config["sequencer"]["gateway"] = {
        "listen": [f"unix:{site.folder}/sock"],
        "clients": {"me": {"uid": [0], "keys": ["default"]}},
    }
    config["sequencer"]["keyManager"]["monitoring"] = {"listen": "127.0.0.1:0"}
    for _ in range(2):
        assert site.run(*command, config=config).returncode == 78
    assert site.logins == 1
    key = config["sequencer"]["keyManager"]["config"]
    site.give(site.token.pin)
    key["keyId"] = "00ff00"
    assert site.run(*command, config=config).returncode == 78
    key["tokenLabel"] = "nobody"  # a token may come
    assert site.run(*command, config=config).returncode == 1
    site.pin.unlink()  # a secret may be mounted later
    key["tokenLabel"] = site.token.label
    assert site.run(*command, config=config).returncode == 1
    key["tokenLable"] = "typo"
    assert site.run(*command, config=config).returncode == 2
