"""`hsmcore tune` on simulated devices and on SoftHSM: the knee, what is written, what is left alone."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import time
from typing import Any

import pytest
from tests.support.tuning import device, simulated, written
from tests.support.wrapper import compile_wrapper

import hsmcore
from hsmcore.audit.layout import Layout
from hsmcore.audit.query import Query
from hsmcore.cli.app import run as command_line
from hsmcore.config import load
from hsmcore.state import Desired, Store
from hsmcore_bench.tune import cli
from hsmcore_bench.tune.sweep import PASSES, PATIENCE, VISIT_SIGNATURES, visits_at_most

pytestmark = [pytest.mark.integration]

FOUR = {"latency": {"C_Sign": {"kind": "constant", "microseconds": 4000}}, "capacity": {"servers": 4}}
"""A device that serves four requests at once."""


@pytest.fixture(autouse=True)
def no_other_configuration(monkeypatch, tmp_path):
    monkeypatch.delenv("HSMCORE_CONFIG", raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state-home"))


def tuned(capsys, *arguments: object, code: int = 0) -> tuple[dict[str, Any], str]:
    """The result, or the error, and what was said on standard error."""
    assert command_line(["tune", *map(str, arguments), "--json"]) == code
    output = capsys.readouterr()
    return json.loads(output.out) if code == 0 else json.loads(output.err.splitlines()[-1])["error"], output.err


def test_a_fast_device_signs_no_more_often_than_was_said(tmp_path, capsys):
    """In the 20 s of each visit it could sign a hundred thousand times."""
    result, _ = tuned(capsys, device(tmp_path), "--seconds", 60, "--most", 1)
    assert result["members"][0]["signatures"] <= PATIENCE * PASSES * VISIT_SIGNATURES


def test_only_the_number_is_written(tmp_path, capsys):
    path = device(tmp_path, **FOUR)
    before = path.read_bytes()
    command = (path, "--seconds", 0.15, "--most", 16, "--picture", tmp_path / "knee.svg")
    result, _ = tuned(capsys, *command)
    assert result["written"] is False
    assert path.read_bytes() == before
    assert "knee: " in (tmp_path / "knee.svg").read_text()
    result, _ = tuned(capsys, *command, "--write")
    [(where, sessions)] = result["sessions"].items()
    assert (where, result["written"]) == ("$.sequencer.keyManager.config.sessions", True)
    assert 2 <= sessions <= 8
    assert path.read_bytes() == before.replace(b'"sessions":   2', b'"sessions":   %d' % sessions)
    assert load(path).key_manager.config.sessions == sessions


def test_a_table_for_people(tmp_path, capsys):
    path = device(tmp_path, **FOUR)
    assert command_line(["tune", str(path), "--seconds", "0.1", "--most", "2"]) == 0
    said = capsys.readouterr().out
    assert "→ 2 " in said
    assert "may lie beyond" in said
    assert f"{path}: $.sequencer.keyManager.config.sessions: 2 → 2\nnot written: repeat with --write\n" in said


def test_a_file_that_changes_during_the_run_is_not_written(tmp_path, capsys, monkeypatch):
    path = device(tmp_path, **FOUR)
    other = path.read_bytes() + b"\n"
    monkeypatch.setattr(cli, "note", lambda _: path.write_bytes(other))  # said before the first probe
    error, _ = tuned(capsys, path, "--seconds", 0.3, "--most", 4, "--write", code=2)
    assert "was changed while the device was measured" in error["message"]
    assert "$.sequencer.keyManager.config.sessions " in error["hint"]
    assert path.read_bytes() == other


@pytest.mark.parametrize(
    ("provider", "says"),
    [
        ({"type": "aws-kms", "config": {"keyId": "alias/sequencer"}}, "a provider of type aws-kms has no sessions"),
        (
            {"type": "ephemeral", "config": {"allowEphemeralPrimary": True}},
            "a provider of type ephemeral has no sessions",
        ),
    ],
)
def test_what_has_no_sessions_is_refused(provider, says, tmp_path, capsys):
    error, _ = tuned(capsys, written(tmp_path, {"keyManager": provider}), code=2)
    assert says in error["message"]


def test_a_member_that_is_not_there_is_named(tmp_path, capsys):
    error, _ = tuned(capsys, device(tmp_path, **FOUR), "--member", "nobody", code=2)
    assert 'it has "pkcs11:noop"' in error["message"]


def test_a_host_process_is_tuned_as_it_will_run(tmp_path, capsys):
    path = device(tmp_path, settings={"isolation": "process"}, **FOUR)
    [found] = tuned(capsys, path, "--seconds", 0.1, "--most", 4)[0]["members"]
    assert [point["sessions"] for point in found["points"]][-1] == 4


def test_each_member_with_sessions_gets_its_number(world, fresh_token, tmp_path, capsys):
    """The emergency level has none; it is passed over."""
    other = fresh_token()
    [second] = [other.config()["sequencer"]["keyManager"]]
    del second["config"]["sessions"]
    levels = {"emergencyModeEnabled": True, "secondary": [second], "acceptOtherKeys": ["secondary"]}
    path = written(tmp_path, world.config(stateFile=str(tmp_path / "state.db"), failover=levels))
    command = (path, "--seconds", 0.1, "--most", 1, "--write")
    result, _ = tuned(capsys, *command, "--member", "secondary")
    first, secondary = (f"$.sequencer.keyManager{part}.config.sessions" for part in ("", ".failover.secondary[0]"))
    assert result["sessions"] == {secondary: 1}
    assert result["members"][0]["configured"] is None
    result, _ = tuned(capsys, *command)
    assert result["sessions"] == {first: 1, secondary: 1}
    manager = load(path).key_manager
    assert [member.config.sessions for _, member in manager.members()[:2]] == [1, 1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_leaves_nothing(number, tmp_path):
    chaos = simulated(tmp_path, **FOUR)
    path = written(tmp_path, chaos.config())
    before, files = path.read_bytes(), sorted(tmp_path.iterdir())
    program = "from hsmcore.cli import main; main()"
    with subprocess.Popen(
        [sys.executable, "-c", program, "tune", path, "--write", "--seconds", "60"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stderr is not None
        assert b"signs at most" in process.stderr.readline()
        while chaos.calls("C_Sign") < 20:
            time.sleep(0.01)
        process.send_signal(number)
        out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (130, b""), err
    assert b"Traceback" not in err
    assert path.read_bytes() == before
    assert [file for file in sorted(tmp_path.iterdir()) if file.suffix not in (".sock", ".log")] == files


def test_the_run_is_recorded_and_its_probes_are_not(world, tmp_path, capsys):
    log = tmp_path / "audit" / "audit.log"
    path = written(tmp_path, world.config(auditLogFile=str(log)))
    result, _ = tuned(capsys, path, "--seconds", 0.1, "--most", 2)
    blocks = Query(Layout(log), None, None, {}).blocks()
    records = [record for block in blocks for record in block]
    [command] = [record for record in records if record["operation"] == "command"]
    assert (command["command"], command["result"]) == ("tune", "ok")
    assert command["members"] == f"softhsm:{world.label}"
    assert command["signatures"] == result["members"][0]["signatures"] > 0
    assert not [record for record in records if record["operation"] == "sign"]


def test_a_running_signer_is_told_of(world, tmp_path, capsys):
    store = tmp_path / "state.db"
    path = written(tmp_path, world.config(stateFile=str(store)))

    async def report() -> None:
        opened = await Store.open(store)
        await Desired(opened).report("signer:1:00", {"process": 4711, "members": []})
        await opened.close()

    asyncio.run(report())
    _, said = tuned(capsys, path, "--seconds", 0.1, "--most", 1)
    assert "1 key manager(s) run on this state store" in said


_BUSY = """
static CK_RV token_info(CK_SLOT_ID slot, CK_TOKEN_INFO_PTR info) {
    CK_RV rv = theirs->C_GetTokenInfo(slot, info);
    info->ulMaxSessionCount = 10;
    info->ulSessionCount = 5; /* SoftHSM itself does not say */
    return rv;
}

static void change(void) {
    own.C_GetTokenInfo = token_info;
}
"""


def test_sessions_of_others_are_left_to_them(world, tmp_path, capsys):
    module = compile_wrapper(_BUSY, world.module, tmp_path / "busy.so")
    path = written(tmp_path, world.config(settings={"modulePath": str(module)}))
    result, said = tuned(capsys, path, "--seconds", 0.1)
    assert max(point["sessions"] for point in result["members"][0]["points"]) <= 4, "ten, less five, less the login's"
    assert "5 sessions of the token are in use; they are left alone" in said
    assert f"in up to {visits_at_most(4)} stretches" in said


def test_the_sweep_ends_where_the_token_opens_no_more(tmp_path, capsys):
    refused = {"function": "C_OpenSession", "every": 9, "action": "return", "ckr": "CKR_SESSION_COUNT"}
    chaos = FOUR | {"capacity": {"servers": 100}, "faults": [refused]}
    result, _ = tuned(capsys, device(tmp_path, **chaos), "--seconds", 0.1)
    [found] = result["members"]
    assert max(point["sessions"] for point in found["points"]) < 9
    assert found["stopped"] is not None


def test_a_refused_pin_is_sent_once(tmp_path, capsys):
    refused = {"function": "C_Login", "every": 1, "action": "return", "ckr": "CKR_PIN_INCORRECT"}
    error, _ = tuned(capsys, device(tmp_path, faults=[refused]), code=1)
    assert "login" in error["message"]
    assert (tmp_path / "chaos.log").read_text().count("C_Login") == 1


def test_a_rotated_key_signs(fresh_token, tmp_path, capsys):
    """The configuration still names the first key, which signs no more."""
    document = fresh_token().config(stateFile=str(tmp_path / "state.db"), keyRotation={"backupEnabled": False})
    path = written(tmp_path, document)

    async def rotate() -> None:
        async with hsmcore.create_key_manager(path) as manager:
            first = await manager.get_current_key_id()
            await manager.rotate_key()
            await manager.deactivate_key(first)

    asyncio.run(rotate())
    result, _ = tuned(capsys, path, "--seconds", 0.1, "--most", 1)
    assert result["members"][0]["knee"] == 1
