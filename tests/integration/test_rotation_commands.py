"""Every command that names a key, after a rotation whose overlap is over: the key is the one that signs."""

from __future__ import annotations

import asyncio
import json

import pytest
from tests.integration.test_rotation import rules, stored
from tests.support.managers import becomes, opened

from hsmcore.cli.app import run as run_command

pytestmark = pytest.mark.integration
TEXT = "after the rotation"


async def rotated(config, tmp_path):
    """Rotate to the end of the overlap. Return the key that signs."""
    async with opened(config) as manager:
        await manager.rotate_key("test")

        async def ended():
            return (await stored(tmp_path))[1][0].run.status == "done"

        await becomes(ended)
        [first, second], _, _ = await stored(tmp_path)
        assert (first.state, second.state) == ("deactivated", "active")
        return second


@pytest.fixture
def command(tmp_path, capsys):
    def run(*arguments):
        code = run_command([*arguments, "--config", str(tmp_path / "hsm.json"), "--json"])
        out, err = capsys.readouterr()
        lines = [line for line in out.splitlines() if line.startswith(("{", "["))]
        return code, json.loads(lines[-1]) if lines else err

    return run


@pytest.mark.timeout(180)
def test_each_command_means_the_key_that_signs(fresh_token, tmp_path, command):
    token = fresh_token()
    config = token.config(**rules(tmp_path))
    (tmp_path / "hsm.json").write_text(json.dumps(config))
    code, before = command("doctor")
    assert (code, before["providers"][0]["identity"]["publicKey"]) == (0, token.keys["ed25519"].public_key.hex())
    current = asyncio.run(rotated(config, tmp_path))

    code, report = command("doctor")
    [provider] = report["providers"]
    steps = {step["name"]: step for step in provider["steps"]}
    assert (code, {name for name, step in steps.items() if step["outcome"] == "fail"}) == (0, set()), report
    assert (provider["identity"]["keyId"], provider["identity"]["publicKey"]) == (
        current.key_id,
        current.public_key.hex(),
    )
    assert "version 1, is deactivated: as it should be" in steps["key-ring"]["found"]

    code, signed = command("sign", "--text", TEXT)
    assert (code, signed["publicKey"]) == (0, current.public_key.hex())
    assert command("verify", "--text", TEXT, "--signature", signed["signature"])[0] == 0
    code, keys = command("keys", "list")
    [row] = [row for row in keys if row.get("state") == "active"]
    assert (code, row["id"]) == (0, current.key_id)
    assert command("load", "--rate", "20", "--duration", "1s")[0] == 0
    assert command("load", "--path", "ring", "--rate", "20", "--duration", "1s")[0] == 0
    assert command("tune", "--seconds", "0.05", "--most", "2")[0] == 0
