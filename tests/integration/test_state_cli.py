"""`hsmcore state seal`, what other commands and `doctor` say of a store that is not genuine, and `init`'s secret."""

from __future__ import annotations

import asyncio
import json
import stat

import pytest
from tests.integration.test_rotation import rules
from tests.support.commands import commands
from tests.support.forged import Original
from tests.support.managers import opened

from hsmcore.audit import AuditLog
from hsmcore.cli.app import run as cli
from hsmcore.config import load
from hsmcore.doctor.store import NAME, check_store

pytestmark = pytest.mark.integration
SECRET = "a-secret-of-more-than-thirty-two-bytes"


@pytest.fixture
def config(fresh_token, tmp_path):
    """A configuration whose store has a key ring already, sealed."""
    (tmp_path / "state-secret").write_text(SECRET)
    (tmp_path / "state-secret").chmod(0o600)
    given = fresh_token().config(**rules(tmp_path), auditLogFile=str(tmp_path / "audit" / "audit.log"))
    given["sequencer"]["keyManager"]["failover"] = {"emergencyModeEnabled": True}
    given["sequencer"]["stateSecret"] = {"file": str(tmp_path / "state-secret")}
    (tmp_path / "config.json").write_text(json.dumps(given))

    async def begins():
        async with opened(given):
            pass

    asyncio.run(begins())
    return given


@pytest.fixture
def command(tmp_path, config, capfdbinary):
    with commands(tmp_path, capfdbinary) as command:
        yield command


def forge(tmp_path, statement="UPDATE key_version SET note = 'forged'"):
    original = Original(tmp_path / "state.db")
    original._write(lambda on: on.execute(statement))
    return original


def records(tmp_path):
    async def read():
        log = AuditLog(str(tmp_path / "audit" / "audit.log"))
        return [record async for record in log.query(match={"operation": "command"})]

    return asyncio.run(read())


def steps(config):
    return [(step.outcome, step.found) for step in check_store(load(config)) if step.name == NAME]


def test_a_store_that_is_as_it_was_written(command, config):
    code, found, _ = command("state", "seal")
    assert (code, found["sealed"], found["problems"]) == (0, True, {})
    assert [key["state"] for key in found["keys"]] == ["active"]
    assert (found["openRotations"], found["budget"], found["orders"]) == ([], [], [])
    assert "seal     holds" in command("state", "seal", plain=True)[1]
    [(outcome, said)] = steps(config)
    assert outcome == "ok", said


def test_a_forged_row_is_shown_refused_and_adopted_after_comparison(command, config, tmp_path):
    forge(tmp_path)
    code, found, _ = command("state", "seal")
    assert (code, list(found["problems"])) == (1, ["ring"])
    [(outcome, said)] = steps(config)
    assert (outcome, "ring" in said) == ("fail", True)
    for name in ("rotate", "failover"):
        code, status, _ = command(name, "status")
        assert (code, list(status["storeNotGenuine"])) == (0, ["ring"])
        assert "NOT GENUINE: ring" in command(name, "status", plain=True)[1]
    code, status, _ = command("emergency", "status")
    assert (code, status["usable"], len(status["notGenuine"])) == (0, True, 1)
    code, _, said = command("rotate", "now")
    assert (code, "not genuine" in said) == (1, True)
    assert command("keys")[0] == 1, "verifiers elsewhere believe this list"
    for wrong in ("00" * 32, "", "no digest"):
        assert command("state", "seal", "--adopt", wrong)[0] == 1
    assert command("state", "seal")[1]["problems"].keys() == {"ring"}
    code, adopted, _ = command("state", "seal", "--adopt", found["digest"])
    assert (code, adopted["problems"], adopted["keys"][0]["note"]) == (0, {}, "forged")
    assert command("rotate", "now")[0] == 0
    done = [r for r in records(tmp_path) if r.get("command") == "state seal"]
    assert [r["result"] for r in done] == ["error", "error", "error", "ok"]
    assert done[-1]["sha256"] == found["digest"]


def test_orders_need_the_secret(command, tmp_path):
    """An operator who can write the file, and has no secret."""
    (tmp_path / "state-secret").unlink()
    original = Original(tmp_path / "state.db")
    code, status, said = command("rotate", "status")
    assert (code, status["current"]["version"]) == (0, 1)
    assert "is not checked" in said
    for arguments in (("rotate", "now", "--no-wait"), ("rotate", "abort"), ("emergency", "disable"), ("emergency",
                      "reset", "--reason", "x"), ("failover", "force", "emergency"), ("state", "seal")):  # fmt: skip
        assert command(*arguments)[0] in (1, 2), arguments
    assert not original.differs()


def test_what_a_forged_row_says_reaches_no_terminal(command, tmp_path):
    original = forge(tmp_path, "INSERT INTO desired_state VALUES ('force' || char(27) || '[2J', x'00ff', char(7), 1)")
    code, shown, _ = command("state", "seal", plain=True)
    assert code == 1
    assert "\x1b" not in shown
    assert "\x07" not in shown
    assert command("state", "seal")[0] == 1
    original.put_back()
    forge(tmp_path, "UPDATE key_version SET public_key = 'no hex', members = '{'")
    assert command("state", "seal")[0] == 1
    code, _, said = command("rotate", "status")
    assert (code, "a forged row cannot be shown" in said) == (1, True)


def test_a_store_without_the_secret(command, config, tmp_path):
    del config["sequencer"]["stateSecret"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    code, _, said = command("state", "seal")
    assert (code, "$.sequencer.stateSecret" in said) == (2, True)
    [(outcome, said)] = steps(config)
    assert (outcome, "no seal" in said) == ("warn", True)
    assert steps({"keyManager": {"type": "ephemeral", "config": {"allowEphemeralPrimary": True}}}) == []


def test_doctor_says_what_is_wrong_with_the_secret(config, tmp_path):
    (tmp_path / "state-secret").write_text("short")
    [(outcome, said)] = steps(config)
    assert (outcome, "5 bytes" in said) == ("fail", True)
    (tmp_path / "state-secret").unlink()
    [(outcome, said)] = steps(config)
    assert outcome == "fail"
    (tmp_path / "state.db").unlink()
    assert steps(config)[0][0] == "ok"
    assert not (tmp_path / "state.db").exists()


def test_init_makes_a_secret_and_the_first_use_a_seal(tmp_path, command, capfdbinary):
    assert cli(["init", "--state", str(tmp_path / "made")]) == 0
    capfdbinary.readouterr()
    secret = tmp_path / "made" / "state-secret"
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    assert len(secret.read_bytes()) >= 32
    made = json.loads((tmp_path / "made" / "config.json").read_text())
    assert made["sequencer"]["stateSecret"] == {"file": secret.name}
    made["sequencer"]["stateSecret"] = {"file": str(secret)}
    made["sequencer"]["keyManager"]["config"]["pin"] = {"file": str(tmp_path / "made" / "pin")}
    made["sequencer"]["keyManager"] |= rules(tmp_path / "made")
    (tmp_path / "config.json").write_text(json.dumps(made))
    assert command("state", "seal")[1]["sealed"] is True
