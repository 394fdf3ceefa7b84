"""docs/operations/yubihsm.md: its commands, done on an empty simulated device, lead to the first signature."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from tests.support.loops import one_loop
from tests.support.managers import opened
from tests.support.verifiers import is_good
from tests.support.yubihsm import Connector, Device, Kind

import hsmcore
from hsmcore.errors import HsmError
from hsmcore.members.control import ControlPlane
from hsmcore.members.control.backup import ExportWrapped, ImportWrapped
from hsmcore.providers.yubihsm.drain import drain
from hsmcore.providers.yubihsm.settings import default_yubihsm_module

PAGE = (Path(__file__).parents[2] / "docs" / "operations" / "yubihsm.md").read_text()
PASSWORDS = {
    f"{name}_PASSWORD": f"{name.lower()} password" for name in ("OFFICER", "SIGNER", "AUDITOR", "ADMINISTRATOR")
}

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(
        shutil.which("yubihsm-shell") is None or not Path(default_yubihsm_module()).is_file(),
        reason="yubihsm-shell or yubihsm_pkcs11.so is not installed",
    ),
]


def block(language, number=0):
    """A code block of the page."""
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)[number]


def follow(commands):
    """Do what the page says, in a shell that stops at the first failure."""
    done = subprocess.run(["bash", "-eu", "-c", commands], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


@one_loop
async def test_from_an_empty_device_to_the_first_signature(monkeypatch):
    for name, value in PASSWORDS.items():
        monkeypatch.setenv(name, value)
    device = Device()
    with Connector(device) as connector:
        commands = block("sh").replace("http://127.0.0.1:12345", connector.url)
        follow(commands)
        users = {stored.id for stored in device.store if stored.kind == Kind.AUTHENTICATION_KEY}
        assert users == {0x0002, 0x0003, 0x0004, 0x0010}

        config = json.loads(block("json"))
        config["keyManager"]["config"]["connector"] = connector.url
        settings = hsmcore.config.load(config).key_manager.config
        entries = []
        result = await drain(settings, None, lambda new, _anchor: entries.extend(new))
        assert (entries[0].name, result.findings) == ("initialized", [])
        async with opened(config) as manager:
            assert is_good("ed25519", manager.public_key, b"first", await manager.sign(b"first"))
            with pytest.raises(HsmError):
                await manager.generate_key()

        administrator = {"authKeyId": 4, "password": {"env": "ADMINISTRATOR_PASSWORD"}}
        config["keyManager"]["config"] |= administrator
        with pytest.raises(HsmError):  # it may not sign
            async with opened(config):
                pass
        await drain(settings, result.anchor, lambda _new, _anchor: None)
        settings = hsmcore.config.load(config).key_manager.config
        async with ControlPlane.for_settings(settings, isolated=True) as control:
            [before] = await control.list_keys()
            backup = await control.do(ExportWrapped("0064"))
            await control.destroy("0064")
            assert await control.do(ImportWrapped(backup)) == before
            made = await control.generate_key("ed25519", "next", extractable=True)
            assert len(made.id) == 4
        assert device.sessions == {}


def test_the_second_configuration_is_one_too():
    config = json.loads(block("json"))
    several = json.loads(block("json", 1))
    del config["keyManager"]["config"]["connector"]
    config["keyManager"]["config"] |= several
    assert len(hsmcore.config.load(config).key_manager.primary) == len(several["connectors"])
