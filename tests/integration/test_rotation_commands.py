"""Every command that names a key, after a rotation whose overlap is over, after a failover and after a restore: the key
is the one that signs."""

from __future__ import annotations

import asyncio
import json
import subprocess
import tempfile
from types import SimpleNamespace

import pytest
from nacl.public import PrivateKey
from tests.integration.test_rotation import rules, stored
from tests.integration.test_runbooks import Members
from tests.support.chaos import needs_chaos
from tests.support.levels import SAME
from tests.support.loops import one_loop
from tests.support.managers import becomes, opened
from tests.support.terminal import PROGRAM

pytestmark = [pytest.mark.integration, pytest.mark.slow("every command, after what changes the key or the member")]
TEXT = "what every command signs"
P256 = {"name": "p256", "kind": "ecdsa-p256"}
BRIEF = ("--rounds", "1", "--seconds", "0.02", "--patience", "0")
SIGNERS = {"ed25519": ["raw-1", "sign-64"], "ecdsa-p256": ["raw-p256", "sign-p256"]}


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
def command(tmp_path, terminal):
    """Runs a command in a process of its own: exit code, and its output or error as JSON."""

    def run(*arguments, config="hsm.json"):
        named = () if config is None else ("--config", str(tmp_path / config))
        done = subprocess.run([*PROGRAM, *arguments, *named, "--json"], capture_output=True, check=False, timeout=120)
        return done.returncode, json.loads(done.stdout) if done.stdout else done.stderr.decode()

    return run


def steps_of(provider, outcome):
    return {step["name"] for step in provider["steps"] if step["outcome"] == outcome}


def the_commands_mean(command, key, monkeypatch, *, token, algorithm, member=0):
    """Run each of them. `member`: the number of the first one that is well."""
    code, report = command("doctor")
    provider = report["providers"][member]
    assert code == (0 if member == 0 else 1)
    assert steps_of(provider, "fail") == set(), report
    assert (provider["identity"]["keyId"], provider["identity"]["publicKey"]) == (key.id, key.public)

    code, signed = command("sign", "--text", TEXT)
    assert code == 0, signed
    assert signed["publicKey"] == key.public
    assert command("verify", "--text", TEXT, "--signature", signed["signature"])[0] == 0
    code, keys = command("keys", "list")
    assert code == 0, keys
    [row] = [row for row in keys if row.get("state") == "active"]
    assert row["id"] == key.id
    for path in ("facade", "ring")[: 2 - member]:  # several members are loaded as a whole
        code, found = command("load", "--path", path, "--rate", "20", "--duration", "1s")
        assert code == 0, found
    code, backups = command("backup", "list")
    assert (code, [backup["keyId"] for backup in backups]) == (0, key.backups)
    assert command("backup", "verify")[0] == 0
    monkeypatch.setenv("HSM_PIN", token.pin)
    named = ("--token", token.label, "--label", key.label, "--algorithm", algorithm)
    with tempfile.TemporaryDirectory() as out:
        contenders = ("--only", ",".join(SIGNERS[algorithm]))
        code, found = command("bench", *BRIEF, *contenders, *named, "--out", out, config=None)
    assert (code, found["failed"]) == (0, {})
    assert {one["contender"] for one in found["summaries"]} >= {*SIGNERS[algorithm]}, found["skipped"]


def with_backups(token, tmp_path):
    block = {"backupEnabled": True, "backupLocation": str(tmp_path / "backups")}
    beside = rules(tmp_path, **block) | {
        "auditLogFile": str(tmp_path / "audit" / "audit.log"),
        "requestTimeoutMs": 5000,
    }
    config = token.config("p256", **beside)
    (tmp_path / "hsm.json").write_text(json.dumps(config))
    return config


def as_key(stored, *backups):
    return SimpleNamespace(
        id=stored.key_id, public=stored.public_key.hex(), label=stored.label, backups=[*backups, stored.key_id]
    )


@pytest.mark.timeout(600)
def test_after_a_rotation_each_command_means_the_key_that_signs(fresh_token, tmp_path, command, monkeypatch):
    token = fresh_token(dict(P256))
    config = with_backups(token, tmp_path)
    code, before = command("doctor")
    assert (code, before["providers"][0]["identity"]["publicKey"]) == (0, token.keys["p256"].public_key.hex())
    current = asyncio.run(rotated(config, tmp_path))
    the_commands_mean(command, as_key(current), monkeypatch, token=token, algorithm="ecdsa-p256")
    [provider] = command("doctor")[1]["providers"]
    [ring] = [step["found"] for step in provider["steps"] if step["name"] == "key-ring"]
    assert "version 1, is deactivated: as it should be" in ring
    code, refused = command("keys", "deactivate", current.key_id)
    assert (code, "is the one that signs" in refused) == (1, True), "the token would refuse the key that signs"
    assert command("tune", "--seconds", "0.05", "--most", "2")[0] == 0


@pytest.mark.timeout(600)
def test_after_a_restore_each_command_means_the_key_that_signs(fresh_token, tmp_path, command, monkeypatch):
    token = fresh_token(dict(P256))
    config = with_backups(token, tmp_path)
    current = asyncio.run(rotated(config, tmp_path))
    saved = tmp_path / "saved.hsmstate"
    assert command("state", "backup", "--to", str(saved))[0] == 0
    (tmp_path / "state.db").unlink()
    for left in tmp_path.glob("state.db-*"):
        left.unlink()
    code, done = command("state", "restore", str(saved), "--reconcile", "--reason", "the disk is gone")
    assert code == 0, done
    the_commands_mean(command, as_key(current), monkeypatch, token=token, algorithm="ecdsa-p256")


@needs_chaos
@one_loop
@pytest.mark.timeout(600)
async def test_after_a_failover_each_command_goes_by_the_member_that_signs(
    fresh_token, tmp_path, command, terminal, monkeypatch
):
    site = Members(tmp_path, fresh_token, SAME, SAME)
    block = {"enabled": True, "backupEnabled": True, "backupLocation": str(tmp_path / "backups")}
    ceremony = {"recoveryPublicKey": bytes(PrivateKey.generate().public_key).hex()}
    config = site.config(keyRotation={**block, "keyCeremony": ceremony}, requestTimeoutMs=5000)
    site.settle(terminal, config)
    token = site.tokens[1]

    def here(*arguments, config="config.json"):
        return command(*arguments, config=config)

    async with opened(config) as manager:
        await manager.sign(b"m")
        site.kill(0)
        assert (await manager.sign_with_receipt(b"n")).member == site.name(1)
        key = SimpleNamespace(
            id=token.keys["ed25519"].id,
            public=token.keys["ed25519"].public_key.hex(),
            label=token.keys["ed25519"].label,
            backups=[],
        )
        given = {"token": token, "algorithm": "ed25519", "member": 1}
        await asyncio.to_thread(the_commands_mean, here, key, monkeypatch, **given)
