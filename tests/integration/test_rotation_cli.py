"""The commands of rotation and backup, as an operator uses them."""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
from functools import partial
from subprocess import DEVNULL, PIPE
from unittest.mock import ANY

import pytest
from nacl.public import PrivateKey
from nacl.signing import SigningKey
from tests.support.managers import becomes, opened, start
from tests.support.terminal import OWN_PROCESS

from hsmcore import create_key_manager
from hsmcore.cli.app import run as run_command
from hsmcore.config import load

pytestmark = pytest.mark.integration
ALICE, BOB = SigningKey(bytes(range(32))), SigningKey(bytes(range(1, 33)))
APPROVERS = [{"name": n, "publicKey": bytes(k.verify_key).hex()} for n, k in (("alice", ALICE), ("bob", BOB))]


@pytest.fixture
def hsmcore(tmp_path, capsys):
    """Runs a command; returns its exit code, and its output or error as JSON."""

    def run(*arguments, config=None, text=False):
        if config is not None:
            (tmp_path / "hsm.json").write_text(json.dumps(config))
        code = run_command([*arguments, "--config", str(tmp_path / "hsm.json"), *([] if text else ["--json"])])
        out, err = capsys.readouterr()
        if text:
            return code, out
        lines = [line for line in (out or err).splitlines() if line.startswith(("{", "["))]
        return code, json.loads(lines[-1]) if lines else None

    return run


def configured(token, key, tmp_path, **rotation):
    block = {"intervalDays": 30, "overlapDays": 2, **rotation}
    rules = {"maxCacheSize": 0, "requestTimeoutMs": 2000, "stateFile": str(tmp_path / "state.db"), "keyRotation": block}
    return token.config(key, **rules)


def test_a_command_ends_the_overlap_of_a_replaced_key(fresh_token, tmp_path, hsmcore):
    """The token refused it, and the key ring and the set of the keys went on to call it good."""
    token = fresh_token()
    old, config = token.keys["ed25519"].id, configured(token, "ed25519", tmp_path)
    assert hsmcore("rotate", "now", config=config)[0] == 0
    new = hsmcore("rotate", "status")[1]["current"]["id"]
    code, error = hsmcore("keys", "deactivate", new)
    assert (code, "is the one that signs" in error["error"]["message"]) == (1, True)
    until = []
    for _ in range(2):
        code, done = hsmcore("keys", "deactivate", old.upper())
        assert (code, done["enforced"]) == (0, True)
        rows = {row["id"]: row for row in hsmcore("keys")[1]}
        assert [(rows[key]["state"], rows[key]["canSign"]) for key in (old, new)] == [
            ("deactivated", False),
            ("active", True),
        ]
        until.append(rows[old]["validUntil"])
    assert until[0] == until[1]  # the second time changes nothing

    async def goes_on():
        async with opened(config) as manager:
            assert await manager.get_current_key_id() == new
            assert await manager.sign(b"m")

    asyncio.run(goes_on())


def test_rotate_plan_status_history_backup(fresh_token, tmp_path, hsmcore):
    token = fresh_token({"name": "p256", "kind": "ecdsa-p256"})
    config = configured(token, "p256", tmp_path, backupEnabled=True, backupLocation=str(tmp_path / "backups"))
    assert hsmcore("rotate", "plan", config=config) == (0, [])
    code, dry = hsmcore("rotate", "now", "--dry-run")
    assert (code, dry["stops"]) == (0, None)
    assert "drill" in dry["steps"]
    assert "approve" not in dry["steps"]
    code, done = hsmcore("rotate", "now", "--reason", "test")
    assert (code, done["status"], done["reason"]) == (0, "overlap", "test")
    code, status = hsmcore("rotate", "status")
    new = status["current"]["id"]
    assert status["current"]["version"] == 2
    assert status["open"][0]["step"] == "deactivate"
    code, rows = hsmcore("keys")
    states = {row["id"]: (row["version"], row["state"], row["validUntil"] is None) for row in rows}
    assert states[token.keys["p256"].id] == (1, "overlap", False)
    assert states[new] == (2, "active", True)
    code, plan = hsmcore("rotate", "plan", "--count", "3")
    assert len(plan) == 3
    assert plan[0]["at"] == status["next"]
    assert hsmcore("rotate", "history")[1][0]["id"] == 1
    assert any(row["step"] == "drill" for row in hsmcore("rotate", "history", "--rotation", "1")[1])
    assert hsmcore("rotate", "history", "--rotation", "9")[0] == 1
    assert hsmcore("rotate", "abort")[0] == 1
    code, [backup] = hsmcore("backup", "list")
    assert (code, backup["ok"], backup["keyId"]) == (0, True, new)
    assert hsmcore("backup", "verify", backup["name"])[0] == 0
    code, error = hsmcore("backup", "restore", backup["name"])
    assert (code, "already" in error["error"]["message"]) == (1, True)
    assert hsmcore("rotate", "status", text=True)[0] == 0
    assert "overlap" in hsmcore("rotate", "history", text=True)[1]
    assert backup["name"] in hsmcore("backup", "list", text=True)[1]
    file = tmp_path / "backups" / backup["name"]
    file.write_bytes(file.read_bytes()[:-1])
    code, [damaged] = hsmcore("backup", "verify")
    assert (code, damaged["ok"]) == (1, False)
    code, error = hsmcore("backup", "restore", backup["name"])
    assert (code, "nothing was restored" in error["error"]["message"]) == (1, True)
    file.unlink()
    assert hsmcore("backup", "list")[1][0]["problem"] == "it is not there"
    assert "hsmcore backup list" in hsmcore("backup", "restore", backup["name"])[1]["error"]["hint"]


def test_a_lost_key_is_put_back(fresh_token, tmp_path, hsmcore):
    recovery = PrivateKey.generate()
    (tmp_path / "recovery.key").write_text(bytes(recovery).hex())
    ceremony = {"recoveryPublicKey": bytes(recovery.public_key).hex()}
    place = str(tmp_path / "backups")
    config = configured(
        fresh_token(), "ed25519", tmp_path, backupEnabled=True, backupLocation=place, keyCeremony=ceremony
    )
    assert hsmcore("rotate", "now", config=config)[0] == 0
    [backup] = hsmcore("backup", "list")[1]
    assert hsmcore("backup", "verify", "--recovery-key", str(tmp_path / "recovery.key"))[0] == 0
    (tmp_path / "wrong.key").write_text("00" * 31 + "07")
    code, [bad] = hsmcore("backup", "verify", "--recovery-key", str(tmp_path / "wrong.key"))
    assert (code, bad["problem"]) == (1, "the recovery key does not open it")

    async def lose():
        from hsmcore.config import load
        from hsmcore.members.control import ControlPlane

        async with ControlPlane.for_settings(load(config).key_manager.config, log_in=True) as plane:
            await plane.destroy(backup["keyId"])

    asyncio.run(lose())
    assert hsmcore("backup", "restore", backup["name"])[0] == 1
    code, back = hsmcore("backup", "restore", backup["name"], "--recovery-key", str(tmp_path / "recovery.key"))
    assert (code, back["publicKey"]) == (0, backup["publicKey"])


@pytest.mark.parametrize("here", [False, True], ids=["a key manager runs", "the command rotates"])
@pytest.mark.slow("a process for each command, beside a key manager")
@pytest.mark.timeout(120)
def test_rotate_now_says_at_once_what_it_waits_for_and_how_to_go_on(fresh_token, tmp_path, hsmcore, here):
    """The signed set of keys wants a signature, and the last member is drained."""
    config = configured(fresh_token(), "ed25519", tmp_path)
    rules = config["sequencer"]["keyManager"]
    rules |= {"failover": {"enabled": True}, "policy": {"kinds": ["raw", "key-set"], "domain": "my-rollup"}}
    member = load(config).key_manager.own.name

    async def once():
        async with opened(config):
            pass

    asyncio.run(once())
    assert hsmcore("failover", "drain", member, "--yes", config=config)[0] == 0
    arguments = ("rotate", "now", "--yes", "--config", str(tmp_path / "hsm.json"))

    async def rotated():
        process = await asyncio.create_subprocess_exec(
            *OWN_PROCESS, *arguments, stdout=DEVNULL, stderr=PIPE, env={**os.environ, "HSMCORE_LOG": "CRITICAL"}
        )
        said = [(await process.stderr.readline()).decode() for _ in range(2)]
        assert await asyncio.to_thread(hsmcore, "failover", "drain", member, "--undo", text=True) == (0, ANY)
        rest = await process.stderr.read()
        return await process.wait(), said, rest.decode()

    async def beside_a_key_manager():
        async with opened(config):
            return await rotated()

    code, [what, how], rest = asyncio.run(rotated() if here else beside_a_key_manager())
    assert "rotation 1 waits at step notify for a signed set of keys that lists the new key" in what
    assert f"hsmcore failover drain {member} --undo, hsmcore rotate abort" in how
    assert (code, "waits at step" in rest) == (0, False), rest


def test_adopting_another_key(fresh_token, tmp_path, hsmcore):
    token = fresh_token({"name": "ed25519", "kind": "ed25519"}, {"name": "other", "kind": "ed25519"})
    assert hsmcore("rotate", "now", config=configured(token, "ed25519", tmp_path))[0] == 0
    config = configured(token, "other", tmp_path)
    code, adopted = hsmcore("rotate", "adopt", config=config)
    assert (code, adopted["id"]) == (0, token.keys["other"].id)

    async def current():
        async with opened(config) as manager:
            return await manager.get_current_key_id()

    assert asyncio.run(current()) == token.keys["other"].id


@pytest.fixture
def approve(tmp_path, hsmcore):
    """Signs the statement of the rotation that is under way, and hands in the signature."""

    async def sign(name, key, *, in_hex=False):
        text = (await asyncio.to_thread(hsmcore, "rotate", "approve", text=True))[1]
        signature, path = key.sign(text.encode()).signature, tmp_path / "statement.sig"
        path.write_bytes(signature.hex().encode() if in_hex else signature)
        return await asyncio.to_thread(hsmcore, "rotate", "approve", "--as", name, "--signature", str(path))

    return sign


def test_two_operators_approve(fresh_token, tmp_path, hsmcore, approve):
    config = configured(fresh_token(), "ed25519", tmp_path, approvals=2, approvers=APPROVERS)
    (tmp_path / "hsm.json").write_text(json.dumps(config))

    async def scenario():
        command = partial(asyncio.to_thread, hsmcore)
        async with opened(config) as manager:
            old = await manager.get_current_key_id()
            rotating = start(manager.rotate_key())

            async def waits():
                return bool((await command("rotate", "status"))[1]["open"])

            await becomes(waits)
            assert (await approve("alice", ALICE))[1]["approvedBy"] == ["alice"]
            assert (await approve("alice", ALICE))[1]["approvedBy"] == ["alice"]
            assert not rotating.done()
            assert await manager.get_current_key_id() == old
            assert (await approve("bob", ALICE))[0] == 1
            signature = str(tmp_path / "statement.sig")
            assert (await command("rotate", "approve", "--signature", signature))[0] == 2
            assert (await approve("bob", BOB, in_hex=True))[0] == 0
            assert await rotating != old
            # The next one needs approvals of its own: its statement is another.
            rotating = start(manager.rotate_key())
            await becomes(waits)
            code, error = await command("rotate", "approve", "--as", "bob", "--signature", signature)
            assert (code, "no signature of bob" in error["error"]["message"]) == (1, True)
            assert (await command("rotate", "abort"))[0] == 0
            with pytest.raises(Exception, match="aborted"):
                await rotating

    asyncio.run(scenario())


def test_write_access_to_the_store_does_not_approve(fresh_token, tmp_path, hsmcore, approve):
    """Forged rows: invented ones, another rotation's, one approver's twice, and a rotation without its first step."""
    config = configured(fresh_token(), "ed25519", tmp_path, approvals=2, approvers=APPROVERS, overlapDays=0)
    (tmp_path / "hsm.json").write_text(json.dumps(config))

    def write(statement, *values):
        with sqlite3.connect(tmp_path / "state.db", timeout=10) as connection:
            connection.execute(statement, values)
        connection.close()

    def forge(rotation, approver, proof, method="signature"):
        into = "INSERT INTO approval (rotation_id, approver, method, time_ns, proof)"
        write(into + " VALUES (?, ?, ?, 0, ?)", rotation, approver, method, proof)

    async def scenario():
        command = partial(asyncio.to_thread, hsmcore)
        async with opened(config) as manager:
            rotation = manager._background.rotation

            async def waits():
                return [r.id for r in await rotation.rotations.open() if r.run.step == "approve"]

            async def looked(number, approved, refused):
                steps = await rotation.rotations.steps(number, ["approve"])
                found = [(step["details"].get("approvedBy"), step["details"].get("notGenuine")) for step in steps]
                assert not rotating.done()
                return (approved, refused) in found

            old, rotating = await manager.get_current_key_id(), start(manager.rotate_key())
            await becomes(waits)
            forge(1, "alice", "00" * 64)
            forge(1, "bob", "no proof")
            await becomes(lambda: looked(1, [], ["alice", "bob"]))
            assert (await command("rotate", "status"))[1]["open"][0]["notGenuine"] == ["alice", "bob"]
            assert (await approve("alice", ALICE))[1]["approvedBy"] == ["alice"], "a real one replaces a forged one"
            write("DROP INDEX approval_once")
            write("DELETE FROM approval WHERE approver = 'bob'")
            again = "INSERT INTO approval (rotation_id, approver, method, time_ns, proof) SELECT rotation_id, approver,"
            write(again + " method, time_ns, proof FROM approval")
            await becomes(lambda: looked(1, ["alice"], ["alice"]))
            assert (await approve("bob", BOB))[1]["approvedBy"] == ["alice", "bob"]
            new = await rotating
            assert new != old

            # What was given to the first rotation is worth nothing for the second.
            rotating = start(manager.rotate_key())
            await becomes(waits)
            [second] = await waits()
            write("UPDATE approval SET rotation_id = ?", second)
            await becomes(lambda: looked(second, [], ["alice", "bob"]))

            # Nor is it enough to leave the step out.
            write("UPDATE rotation SET step = 'backup-old', step_begun = 0, wait_ns = 0 WHERE id = ?", second)
            with pytest.raises(Exception, match="0 of 2 approvals"):
                await rotating
            assert await manager.get_current_key_id() == new
            assert len(await manager._path.member.control.list_keys()) == 2

    asyncio.run(scenario())


def test_what_changes_something_is_recorded(fresh_token, tmp_path, hsmcore):
    from hsmcore.config import load

    config = configured(fresh_token(), "ed25519", tmp_path)
    config["sequencer"]["keyManager"]["auditLogFile"] = str(tmp_path / "audit" / "audit.log")
    assert hsmcore("rotate", "now", config=config)[0] == 0
    assert hsmcore("rotate", "abort")[0] == 1
    assert hsmcore("rotate", "clock")[0] == 2
    assert hsmcore("rotate", "clock", "--reason", "compared")[0] == 0

    async def operations():
        manager = create_key_manager(load(config))
        return [record async for record in manager.audit.query()]

    found = asyncio.run(operations())
    commands = {record["command"]: record["result"] for record in found if record["operation"] == "command"}
    assert commands == {"rotate now": "ok", "rotate abort": "error", "rotate clock": "ok"}
    rotated = [record["operation"] for record in found if "rotat" in record["operation"]]
    assert rotated == ["rotation-begun", "key-rotated"]
