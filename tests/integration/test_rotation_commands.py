"""Every command, after a rotation whose overlap is over, after a failover, and after a restore elsewhere: the key
is the one that signs, and what cannot be done says what to do next."""

from __future__ import annotations

import asyncio
import json
import re
from types import SimpleNamespace

import pytest
from tests.integration.test_rotation import rules, stored
from tests.support.commands import commands, tree
from tests.support.every_command import APART, LINES, LONG, lines, path_of, walk
from tests.support.managers import becomes, opened

from hsmcore.config import load

pytestmark = [pytest.mark.integration, pytest.mark.slow("every command, after what changes the key or the member")]
P256 = {"name": "p256", "kind": "ecdsa-p256"}
SIGNERS = {"ed25519": "raw-1,sign-64", "ecdsa-p256": "raw-p256,sign-p256"}
FORMS = pytest.mark.parametrize("text", [LINES, pytest.param(LONG, marks=pytest.mark.deep)], ids=["short", "long"])
NO_LEVELS = {line for line in lines(LINES) if line.startswith(("failover", "emergency"))} - {
    "failover readmit MEMBER --reason WHY"  # holds without levels, too
}
NO_FLEET = {line for line in lines(LINES) if re.match(r"fleet (?!export|import)", line)}
REFUSED = NO_FLEET | {
    "cluster",  # of CloudHSM
    "keys attest KEY",  # SoftHSM gives no certificate
    "keys set",  # the policy lists none
    "batch proof 0",  # nothing is kept of batches
    "keys deactivate KEY",
    "rotate approve",
    "rotate abort",
    "notices test",
    "state seal",
    "state restore FOLDER/later.hsmstate --reason WHY",  # there is a store
    "keys import FOLDER/key.backup",  # the key is there
    "backup restore BACKUP",  # likewise
    "audit adopt",
    "audit ship",
    "audit device-log",
}
"""Refused in each of the worlds."""
"""Beside a first member that is gone, a key manager that runs, and without a log."""
"""Several members are loaded as a whole; the first one is tuned."""


def test_every_command_is_run_or_has_its_reason():
    run = {path_of(line) for line in lines(LINES + LONG)}
    assert run & {*APART} == set()
    assert {" ".join(words) for words, _ in tree()} == run | {*APART}


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
def command(tmp_path, capfdbinary):
    """Runs a command in this process."""
    (tmp_path / "config.json").write_text("{}")
    with commands(tmp_path, capfdbinary) as run:
        yield run


def steps_of(provider, outcome):
    return {step["name"] for step in provider["steps"] if step["outcome"] == outcome}


def the_commands_mean(command, key, *, member=0):
    """What they show is of the key that signs. `member`: the number of the first one that is well."""
    code, report, _ = command("doctor")
    provider = report["providers"][member]
    assert code == (0 if member == 0 else 1)
    assert steps_of(provider, "fail") == set(), report
    assert (provider["identity"]["keyId"], provider["identity"]["publicKey"]) == (key.id, key.public)
    code, keys, err = command("keys", "list")
    assert code == 0, err
    [row] = [row for row in keys if row.get("state") == "active"]
    assert row["id"] == key.id
    code, backups, _ = command("backup", "list")
    assert (code, [backup["keyId"] for backup in backups]) == (0, key.backups)
    return report


def config_in(folder, token, text):
    """With backups, a log, and positions; `load` signs what only a key without a policy does."""
    block = {"backupEnabled": True, "backupLocation": str(folder / "backups")}
    beside = rules(folder, **block) | {
        "auditLogFile": str(folder / "audit" / "audit.log"),
        "requestTimeoutMs": 5000,
        "policy": {"kinds": ["raw", "block"]} if text is LINES else None,
    }
    return token.config("p256", **beside)


def as_key(stored, *backups):
    return SimpleNamespace(
        id=stored.key_id, public=stored.public_key.hex(), label=stored.label, backups=[*backups, stored.key_id]
    )


def values_of(folder, config, token, key, algorithm, number=0):
    member = load(config).key_manager.members()[number][1].name
    return {
        "KEY": key.id, "PUBLIC": key.public, "LABEL": key.label, "MEMBER": member, "FOLDER": str(folder),
        "TOKEN": f"--token {token.label} --label {key.label} --algorithm {algorithm}",
        "CONTENDERS": SIGNERS[algorithm],
        "BACKUP": f"{key.label}.{key.id}.hsmbackup",
    }  # fmt: skip


def as_text(command):
    """The same commands, for `walk`: `bench` takes no configuration."""

    def run(*arguments):
        return command(*arguments, "--json", config=None if arguments[0] == "bench" else "config.json", plain=True)

    return run


def signed_in(log, first):
    """The keys that signed, going by the records from that one on."""
    records = map(json.loads, log.read_text().splitlines())
    return {one["key_id"] for one in records if one["seq"] >= first and one["operation"] == "sign"}


def walked(folder, command, config, token, key, text):
    """Run all, with the key that signs only. Return the lines that were refused."""
    log = folder / "audit" / "audit.log"
    first = len(log.read_text().splitlines())
    refused = walk(as_text(command), values_of(folder, config, token, key, "ecdsa-p256"), text)
    assert signed_in(log, first) == {key.id}
    return refused


@FORMS
@pytest.mark.timeout(600)
def test_after_a_rotation_each_command_means_the_key_that_signs(fresh_token, tmp_path, command, monkeypatch, text):
    token = fresh_token(dict(P256))
    monkeypatch.setenv("HSM_PIN", token.pin)
    config = config_in(tmp_path, token, text)
    (tmp_path / "config.json").write_text(json.dumps(config))
    code, before, _ = command("doctor")
    assert (code, before["providers"][0]["identity"]["publicKey"]) == (0, token.keys["p256"].public_key.hex())
    current = asyncio.run(rotated(config, tmp_path))
    report = the_commands_mean(command, as_key(current))
    [ring] = [step["found"] for step in report["providers"][0]["steps"] if step["name"] == "key-ring"]
    assert "version 1, is deactivated: as it should be" in ring
    code, _, err = command("rotate", "adopt")
    assert (code, "Name the key that is to sign in the configuration" in err) == (1, True)
    refused = walked(tmp_path, command, config, token, as_key(current), text)
    assert refused == (REFUSED | NO_LEVELS | {"rotate adopt"} if text is LINES else set())
    the_commands_mean(command, as_key(current))
