"""Commands of administrators are in the audit log, whichever process holds it at that time."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support.audit_logs import settings, write_log
from tests.support.loops import one_loop
from tests.support.terminal import PROGRAM

from hsmcore.audit import AuditLog
from hsmcore.audit.check.verify import verify
from hsmcore.audit.intake import Intake
from hsmcore.audit.layout import Layout
from hsmcore.audit.query import Query
from hsmcore.audit.spool import Intention, spooled

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("terminal")]


def commands(layout: Layout) -> list[dict]:
    return [record for block in Query(layout, None, None, {"operation": "command"}).blocks() for record in block]


@pytest.fixture
def place(tmp_path):
    """A token of its own, and a configuration with an audit log and failover."""
    made = subprocess.run(
        [*PROGRAM, "init", "--state", tmp_path / "state", "--json"], capture_output=True, check=True, timeout=60
    )
    config = Path(json.loads(made.stdout)["config"])
    document = json.loads(config.read_bytes())
    manager = document.get("sequencer", document)["keyManager"]
    manager["auditLogFile"] = str(tmp_path / "audit.log")
    manager["failover"] = {"emergencyModeEnabled": True}
    config.write_text(json.dumps(document))
    return config, manager, tmp_path


def run(config, *arguments, code=0):
    done = subprocess.run(
        [*PROGRAM, *map(str, arguments), "--config", config, "--json"],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


@pytest.mark.slow("each command that changes something")
def test_every_command_that_changes_something_is_recorded(place):
    config, _, folder = place
    layout = Layout(folder / "audit.log")
    wanted = ("--label", "second", "--extractable", "--algorithm", "ecdsa-p256")
    made = json.loads(run(config, "keys", "generate", *wanted).stdout)
    run(config, "keys", "export", made["id"], "--output", folder / "backup")
    run(config, "keys", "deactivate", made["id"])
    run(config, "keys", "deactivate", "00ff", code=1)
    run(config, "keys", "import", folder / "backup", code=1)
    run(config, "sign", "--text", "its start makes the state store")
    run(config, "emergency", "reset", "--reason", "incident 42")
    run(config, "emergency", "disable", "--reason", "not on chain")
    run(config, "failover", "force", "emergency", "--reason", "game day")
    run(config, "failover", "drain", "softhsm:nobody", code=2)
    run(config, "keys", "list")
    found = [(r["command"], r["result"], r.get("key_id") or r.get("reason")) for r in commands(layout)]
    assert found[:4] == [
        ("keys generate", "ok", made["id"]),
        ("keys export", "ok", made["id"]),
        ("keys deactivate", "ok", made["id"]),
        ("keys deactivate", "error", "00ff"),
    ]
    assert [row[:2] for row in found[4:5]] == [("keys import", "error")]
    assert found[5:] == [
        ("emergency reset", "ok", "incident 42"),
        ("emergency disable", "ok", "not on chain"),
        ("failover force", "ok", "game day"),
    ]
    first = commands(layout)[0]
    assert first["public_key"] == made["publicKey"]
    assert first["source"]["pid"] != os.getpid()
    assert list(layout.spool.iterdir()) == []
    report = verify(layout)
    assert report.ok
    assert report.unsealed == 0


@one_loop
async def test_a_running_key_manager_takes_a_record_in_within_a_second(place):
    config, manager, folder = place
    layout = Layout(folder / "audit.log")
    log = AuditLog(manager["auditLogFile"], settings())
    await log.open()
    done = await asyncio.to_thread(run, config, "keys", "generate", "--label", "second")
    assert done.stderr == ""
    loop = asyncio.get_running_loop()
    begun = loop.time()
    while not commands(layout):
        assert loop.time() - begun < 20
        await asyncio.sleep(0.02)
    [record] = commands(layout)
    await log.close()
    assert (record["command"], record["label"]) == ("keys generate", "second")
    assert record["source"]["pid"] != os.getpid()
    assert list(layout.spool.iterdir()) == []


def test_a_command_that_is_killed_halfway_is_recorded(tmp_path):
    layout = Layout(tmp_path / "audit.log")
    program = (
        "import sys, time\nfrom hsmcore.audit.layout import Layout\nfrom hsmcore.audit.spool import Intention\n"
        "i = Intention(Layout(sys.argv[1]), 'keys generate', {'label': 'x', 'pin': 'hush'})\n"
        "print('there', flush=True)\ntime.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", program, layout.log], stdout=subprocess.PIPE) as child:
        assert child.stdout.readline() == b"there\n"
        assert spooled(layout) == []  # it may still say how it ends
        child.kill()
    asyncio.run(write_log(layout.log, 1))
    [record] = commands(layout)
    assert (record["command"], record["result"], record["source"]["pid"]) == ("keys generate", "unknown", child.pid)
    assert "hush" not in layout.log.read_text()


@pytest.mark.parametrize("crash", ["before the rename", "after the record"])
@one_loop
async def test_no_record_is_lost_between_the_steps(tmp_path, crash, monkeypatch):
    layout = Layout(tmp_path / "audit.log")
    intention = Intention(layout, "keys generate", {})
    if crash == "before the rename":
        monkeypatch.setattr("pathlib.Path.rename", lambda *_: (_ for _ in ()).throw(OSError("crash")))
        with pytest.raises(OSError, match="crash"):
            intention.complete({"result": "ok"})
        monkeypatch.undo()
    else:
        intention.complete({"result": "ok"})
        kept = intention.path.read_bytes()
        await write_log(layout.log, 1)
        intention.path.write_bytes(kept)
    await write_log(layout.log, 1)
    found = commands(layout)
    assert {(record["result"], record["at_ns"], record["file"].partition(".")[0]) for record in found} == {
        ("ok", found[0]["at_ns"], intention.path.stem)
    }
    assert len(found) == (1 if crash == "before the rename" else 2)


@one_loop
async def test_whatever_lies_in_the_spool_is_recorded_as_what_it_is(tmp_path):
    layout = Layout(tmp_path / "audit.log")
    await write_log(layout.log, 1)
    secret = tmp_path / "secret"
    secret.write_text('{"fields":{"label":"stolen"}}')
    spool = layout.spool
    (spool / "1.json").write_bytes(b"no JSON")
    (spool / "2.json").write_bytes(b'{"fields":[]}')
    (spool / "3.json").symlink_to(secret)
    (spool / "4.json").write_bytes(b'{"fields":{"x":"' + b"y" * 100_000 + b'"}}')
    os.mkfifo(spool / "5.json")
    (spool / "6.json").write_bytes(
        b'{"fields":{"seq":1,"operation":"sign","time_ns":1,"command":"keys\\ngenerate","pin":"hush","user":"alice"},'
        b'"user":"alice","source":{"pid":"x","evil":"hush"},"at_ns":"z"}'
    )
    await write_log(layout.log, 1)
    found = commands(layout)
    assert [record["result"] for record in found[:5]] == ["unreadable"] * 5
    text = layout.log.read_text()
    assert "hush" not in text
    assert "stolen" not in text
    assert "alice" not in json.dumps(found[5]["user"])
    assert verify(layout).ok
    assert list(spool.iterdir()) == []


def test_what_cannot_be_recorded_is_not_done(place):
    config, manager, folder = place
    (folder / "audit.log.d").write_text("in the way")
    error = json.loads(run(config, "keys", "generate", "--label", "second", code=1).stderr)["error"]
    assert "cannot be recorded" in error["message"]
    assert error["hint"].startswith("Free space or repair its folder")  # another user could not record it either
    assert [key["label"] for key in json.loads(run(config, "keys", "list").stdout)] != ["second"]
    assert len(json.loads(run(config, "keys", "list").stdout)) == 1
    document = json.loads(config.read_bytes())
    document.get("sequencer", document)["keyManager"]["audit"] = {"onFailure": "open"}
    config.write_text(json.dumps(document))
    assert "cannot be recorded" in run(config, "keys", "generate", "--label", "second").stderr
    assert manager["auditLogFile"]


@one_loop
async def test_what_is_recorded_leaves_the_spool_before_the_log_is_closed(tmp_path):
    layout = Layout(tmp_path / "audit.log")
    Intention(layout, "keys generate", {}).complete({"result": "ok"})
    recorded, durable = asyncio.Event(), asyncio.Event()

    async def becomes_durable(_: int) -> None:
        recorded.set()
        await durable.wait()

    intake = Intake(layout, lambda *_: 1, becomes_durable)
    beginning = asyncio.create_task(intake.begin())
    await recorded.wait()
    beginning.cancel()
    asyncio.get_running_loop().call_later(0.1, durable.set)
    await intake.end()
    assert spooled(layout) == []
