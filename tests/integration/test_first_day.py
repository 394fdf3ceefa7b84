"""What a newcomer meets: a fresh token, a name that is wrong, a module whose own configuration, daemon or device is
missing. Each message says what can be done."""

from __future__ import annotations

import asyncio
import http.server
import json
import os
import re
import subprocess
import threading
from pathlib import Path

import pytest
from tests.integration.test_doctor import failures, probed, step
from tests.support.softhsm import PATHS

import hsmcore
from hsmcore.cli.app import run as cli
from hsmcore.config import load
from hsmcore.doctor.doctor import diagnose
from hsmcore.errors import HsmError
from hsmcore.members.control.advice import advice
from hsmcore.members.control.quirks import quirks_for

pytestmark = pytest.mark.integration

FOREIGN = Path("/usr/lib/x86_64-linux-gnu")
YUBIHSM = FOREIGN / "pkcs11" / "yubihsm_pkcs11.so"
OPENCRYPTOKI = FOREIGN / "opencryptoki" / "libopencryptoki.so.0"
REFUSING = "127.0.0.1:9"
"""The discard service's port, which nothing serves here."""


def test_a_fresh_token_gives_no_warning(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("SOFTHSM2_CONF", os.environ["SOFTHSM2_CONF"])  # restored afterwards: the command sets it
    assert cli(["init", "--state", str(tmp_path / "state")]) == 0
    capsys.readouterr()
    assert cli(["doctor", "--state", str(tmp_path / "state")]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert re.fullmatch(r"\d+ good, \d+ known issues", last), last


def test_advice_against_the_default_is_never_a_warning(world):
    """Isolation "thread" is SoftHSM's default, and for keys that matter the better one."""
    for isolation in ("thread", "process"):
        steps = probed(world.config(settings={"isolation": isolation})).steps
        assert {one.outcome for one in steps if one.name in ("known-issues", "privileges")} == {"ok"}
        assert ("logout-crash" in {one.data.get("issue") for one in steps}) == (isolation == "thread")


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        ({"slotId": 77}, "slotId "),
        ({"tokenManufacturer": "Acme"}, 'tokenManufacturer "SoftHSM project"?'),
        (
            {"tokenModel": "M", "tokenManufacturer": "A"},
            'tokenManufacturer "SoftHSM project" and tokenModel "SoftHSM v2"',
        ),
    ],
)
def test_a_token_that_differs_in_one_thing_is_meant_by_that(world, wrong, meant):
    hint = step(probed(world.config(settings=wrong)), "token").hint
    assert hint.startswith("Did you mean ")
    assert meant in hint
    assert "tokenLabel" not in hint


def test_two_members_that_cannot_share_a_new_key_fail_the_doctor(world):
    settings = world.config()["sequencer"]["keyManager"]["config"]
    there = {"name": "there", "type": "softhsm", "config": {**settings, "slotId": 77}}
    failover = {"enabled": True, "secondary": [there]}
    rotation = {"intervalDays": 30, "backupPolicy": "warn", "backupEnabled": True, "backupLocation": "/nowhere"}
    report = diagnose(load(world.config(failover=failover, keyRotation=rotation, stateFile="/nowhere/s.db")))
    found = step(report.providers[0], "backup")
    assert found.outcome == "fail"
    assert "other members" in found.found
    assert "keyCeremony" in found.hint
    assert "hsmcore backup recovery-key" in found.hint


def test_a_recovery_key_is_made_once(tmp_path, capsys):
    path = tmp_path / "recovery.key"
    assert cli(["backup", "recovery-key", "--output", str(path)]) == 0
    printed = capsys.readouterr().out
    public = printed.split()[1]
    assert len(bytes.fromhex(public)) == len(bytes.fromhex(path.read_text())) == 32
    assert path.read_text().strip() not in printed
    assert path.stat().st_mode & 0o777 == 0o600
    assert cli(["backup", "recovery-key", "--output", str(path)]) == 2
    assert "is not overwritten" in capsys.readouterr().err


# ---- modules that cannot start ----


def unusable(config: dict) -> tuple[str, str]:
    """The hints of doctor's first failed step, and of the start of a key manager."""
    report = probed(config)
    first = step(report, failures(report)[0])

    async def start() -> None:
        async with hsmcore.create_key_manager(config):
            pass

    with pytest.raises(HsmError) as caught:
        asyncio.run(start())
    return first.hint, caught.value.hint


@pytest.mark.parametrize(
    ("conf", "says"),
    [
        (None, "SOFTHSM2_CONF is not set"),
        ("/nowhere/softhsm2.conf", "SOFTHSM2_CONF is /nowhere/softhsm2.conf, which is not there"),
    ],
)
def test_softhsm_without_its_configuration(world, conf, says, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    config = world.config(settings={"isolation": "process"})
    if conf is None:
        monkeypatch.delenv("SOFTHSM2_CONF")
    else:
        monkeypatch.setenv("SOFTHSM2_CONF", conf)
    for hint in unusable(config):
        assert says in hint


def test_tokens_without_any_says_what_to_do(world, monkeypatch, tmp_path, capfd):
    (tmp_path / "conf").write_text(f"directories.tokendir = {tmp_path}\n")
    monkeypatch.setenv("SOFTHSM2_CONF", str(tmp_path / "conf"))
    given = tmp_path / "config.json"
    given.write_text(json.dumps(world.config(settings={"isolation": "process"})))
    assert cli(["tokens", "--config", str(given)]) == 1
    said = capfd.readouterr().err
    assert "initialize one" in said
    assert f"SOFTHSM2_CONF is {tmp_path / 'conf'}" in said
    assert "what is listed" not in said


def test_softhsm_with_a_store_that_is_not_compiled_in(world, monkeypatch, tmp_path):
    (tmp_path / "conf").write_text(f"directories.tokendir = {tmp_path}\nobjectstore.backend = db\n")
    monkeypatch.setenv("SOFTHSM2_CONF", str(tmp_path / "conf"))
    for hint in unusable(world.config(settings={"isolation": "process"})):
        assert f"SOFTHSM2_CONF is {tmp_path / 'conf'}" in hint
        assert "objectstore.backend" in hint


@pytest.mark.skipif(not YUBIHSM.exists(), reason="yubihsm_pkcs11 is not installed")
def test_a_connector_that_does_not_answer_is_named(monkeypatch):
    monkeypatch.setenv("P", "password")
    settings = {"connector": f"http://{REFUSING}", "authKeyId": 1, "password": {"env": "P"}, "keyLabel": "k"}
    for hint in unusable({"keyManager": {"type": "yubihsm", "config": {"modulePath": str(YUBIHSM), **settings}}}):
        assert f"answers at http://{REFUSING}" in hint


@pytest.mark.skipif(not OPENCRYPTOKI.exists(), reason="openCryptoki is not installed")
def test_a_daemon_that_does_not_run_is_named(monkeypatch):
    monkeypatch.setenv("P", "1234")
    settings = {"modulePath": str(OPENCRYPTOKI), "isolation": "process", "tokenLabel": "t", "keyLabel": "k"}
    for hint in unusable({"keyManager": {"type": "pkcs11", "config": {**settings, "pin": {"env": "P"}}}}):
        assert "pkcsslotd" in hint


STOCK = Path("/etc/opencryptoki/opencryptoki.conf")


@pytest.mark.skipif(not STOCK.exists(), reason="openCryptoki is not installed")
def test_the_recipe_finds_the_soft_token_s_slot():
    """Debian's first slot is a TPM's."""
    recipe = (Path(__file__).parents[2] / "docs" / "operations" / "any-pkcs11.md").read_text()
    [line] = re.findall(r"^\$ (slot=.*)$", recipe, re.MULTILINE)
    found = subprocess.run(["sh", "-c", f'{line}; echo "$slot"'], capture_output=True, text=True, check=True).stdout
    [stock] = re.findall(r"slot (\d+)\s*\{[^}]*libpkcs11_sw", STOCK.read_text())
    assert found.strip() == stock
    assert '--init-token --slot "$slot"' in recipe


def test_each_module_is_known_by_its_file(monkeypatch):
    for path in PATHS:
        assert "SOFTHSM2_CONF" in advice("start", path)
    monkeypatch.setenv("P11_KIT_SERVER_ADDRESS", "unix:path=/run/p11")
    assert "P11_KIT_SERVER_ADDRESS is unix:path=/run/p11" in advice("empty", str(FOREIGN / "pkcs11/p11-kit-client.so"))
    monkeypatch.delenv("TPM2_PKCS11_STORE", raising=False)
    assert "TPM2_PKCS11_STORE is not set" in advice("start", str(FOREIGN / "libtpm2_pkcs11.so.1"))
    for said in ("configure-pkcs11", "customerCA.crt", "2223", "/opt/cloudhsm/run/cloudhsm-pkcs11.log"):
        assert said in advice("start", "/opt/cloudhsm/lib/libcloudhsm_pkcs11.so")
    assert advice("start", "/opt/other.so") == ""


def test_only_a_device_that_counts_wrong_pins_is_said_to():
    assert "counts wrong attempts" in quirks_for("softhsm").wrong_pin_hint("it")
    assert "counts no wrong attempts" in quirks_for("yubihsm").wrong_pin_hint("it")


@pytest.mark.parametrize(
    ("source", "call"),
    [
        ("__attribute__((constructor)) static void f(void) { __builtin_trap(); }", "the library's loading"),
        ("unsigned long C_GetFunctionList(void *l) { __builtin_trap(); }", "C_GetFunctionList"),
    ],
)
def test_a_crash_before_the_first_call_is_not_laid_to_it(world, source, call, tmp_path):
    (tmp_path / "m.c").write_text(source)
    subprocess.run(["gcc", "-shared", "-fPIC", "-w", "-o", tmp_path / "m.so", tmp_path / "m.c"], check=True)
    report = probed(world.config(settings={"modulePath": str(tmp_path / "m.so")}))
    assert failures(report) == ["module"]
    assert step(report, "module").found.startswith(f"in {call}:")


# ---- a server that wants a token ----


def test_a_scrape_without_its_token_names_the_option(capsys):
    class Refusing(http.server.BaseHTTPRequestHandler):
        def do_GET(self):  # the base class's name
            self.send_error(401)

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Refusing) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            assert cli(["metrics", "--scrape", f"http://127.0.0.1:{server.server_port}/metrics"]) == 1
        finally:
            server.shutdown()
            thread.join()
    assert "--token-file" in capsys.readouterr().err
