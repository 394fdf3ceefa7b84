"""A log without checkpoints is taken over by an operator's decision alone, and that stays a finding."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys

import pytest
from tests.support.audit_logs import copy_of, keys_of, put_text, settings, text_of, write_log
from tests.support.loops import one_loop
from tests.support.managers import opened
from tests.support.terminal import PROGRAM

from hsmcore.audit import AuditLog
from hsmcore.audit.check.adopt import adopt
from hsmcore.audit.check.trust import Trust
from hsmcore.audit.check.verify import verify
from hsmcore.audit.layout import Layout
from hsmcore.audit.query import Query
from hsmcore.audit.segment import segments
from hsmcore.errors import AuditUnavailable, BadArgument

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("terminal")]
RECORDS = 900


def command(*arguments: str, code: int = 0) -> dict:
    done = subprocess.run([*PROGRAM, *arguments, "--json"], capture_output=True, check=False, timeout=60)
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout or done.stderr)


def operations(layout: Layout, name: str) -> list[dict]:
    return [record for block in Query(layout, None, None, {"operation": name}).blocks() for record in block]


def change(layout: Layout) -> None:
    """Change record 100, and delete all checkpoints."""
    oldest = segments(layout)[0]
    text = text_of(oldest).replace(b'"result":"ok"', b'"result":"no"', 1)
    put_text(layout, oldest, text)
    layout.checkpoint.unlink()
    layout.history.unlink()


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Layout:
    return asyncio.run(write_log(tmp_path_factory.mktemp("audit") / "log" / "audit.log", RECORDS))


@pytest.fixture
def layout(original, tmp_path) -> Layout:
    copy = copy_of(original, tmp_path / "copy")
    (copy.log.parent / original.default_key.name).write_bytes(original.default_key.read_bytes())
    copy.default_key.chmod(0o600)
    return copy


@pytest.mark.parametrize("tiles", [True, False])
@one_loop
async def test_a_log_with_keys_and_without_checkpoints_is_refused(layout, tiles):
    change(layout)
    if not tiles:
        for path in sorted(layout.tiles.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        layout.tiles.rmdir()
    with pytest.raises(AuditUnavailable, match="its checkpoints are missing") as refused:
        await write_log(layout.log, 1)
    assert "hsmcore audit adopt" in str(refused.value.hint)
    assert not layout.checkpoint.exists()
    assert not verify(layout).ok


@one_loop
async def test_full_files_that_no_checkpoint_covers_are_refused(layout):
    """A file is compressed only under a checkpoint: one from before was put back, or all keys and tiles are gone."""
    note = b"\n\n".join(layout.history.read_bytes().split(b"\n\n")[:2]) + b"\n"
    layout.checkpoint.write_bytes(note)
    layout.history.write_bytes(note + b"\n")
    with pytest.raises(AuditUnavailable, match="its last checkpoint is older than its full files"):
        await write_log(layout.log, 1)
    before = layout.log.read_bytes()
    for path in (layout.checkpoint, layout.history, layout.keys):
        path.unlink()
    layout.tiles.rename(layout.folder / "elsewhere")
    with pytest.raises(AuditUnavailable, match="its checkpoints are missing"):
        await write_log(layout.log, 1)
    assert layout.log.read_bytes() == before
    assert not layout.lost.exists()


@one_loop
async def test_an_adopted_log_is_a_finding_until_an_auditor_expects_it(layout, monkeypatch):
    with pytest.raises(BadArgument, match="has checkpoints"):
        adopt(layout)
    change(layout)
    monkeypatch.setenv("SUDO_USER", "carol")
    done = command("audit", "adopt", str(layout.log))
    assert done["records"] == RECORDS
    await write_log(layout.log, 5)
    [adopted] = operations(layout, "audit-adopted")
    assert adopted["records"] == RECORDS
    [decided] = operations(layout, "command")
    assert (decided["command"], decided["sudo_user"], decided["result"]) == ("audit adopt", "carol", "ok")
    assert {path.name for path in (layout.lost).rglob("*") if path.name in ("keys", "tile")} == {"keys", "tile"}

    report = verify(layout, Trust(keys_of(layout)))
    assert [(each.kind, each.first, each.last) for each in report.findings] == [("adopted", 1, RECORDS)]
    assert f"user {adopted['user']!r}" in report.findings[0].text
    assert not verify(layout, Trust(keys_of(layout), adopted=RECORDS - 1)).ok
    report = verify(layout, Trust(keys_of(layout), adopted=RECORDS))
    assert report.ok
    assert any(note.startswith("as expected, ") for note in report.notes)
    shown = command("audit", "verify", str(layout.log), code=1)
    assert [each["kind"] for each in shown["findings"]] == ["adopted"]
    assert command("audit", "verify", str(layout.log), "--expect-adopted", str(RECORDS))["ok"]


@one_loop
async def test_a_log_in_use_is_not_adopted(layout):
    log = AuditLog(str(layout.log), settings())
    await log.open()
    shown = command("audit", "adopt", str(layout.log), code=1)
    assert "use" in json.dumps(shown)
    await log.close()
    assert verify(layout).ok


def test_a_kill_at_any_point_of_the_first_start_leaves_a_log_that_starts(tmp_path):
    program = [sys.executable, "-m", "tests.support.audit_begin_kills", str(tmp_path)]
    subprocess.run(program, check=True, timeout=120)
    killed = sorted(tmp_path.iterdir())
    assert len(killed) > 15
    for place in killed:
        layout = asyncio.run(write_log(place / "audit.log", 3))
        report = verify(layout)
        assert report.ok, f"{place}: {report.findings}"
        assert report.unsealed == 0


async def test_commands_before_the_first_start_leave_nothing_to_adopt(fresh_token, tmp_path):
    """A key of the HSM signs; the command that makes it has no checkpoint to be recorded under."""
    token = fresh_token()
    path, config = tmp_path / "audit.log", tmp_path / "hsm.json"
    rules = token.config(auditLogFile=str(path), audit={"signingKey": {"hsmKeyId": "00"}})
    config.write_text(json.dumps(rules))
    made = command("keys", "generate", "--label", "audit", "--config", str(config))
    rules["sequencer"]["keyManager"]["audit"]["signingKey"]["hsmKeyId"] = made["id"]
    async with opened(rules) as manager:
        await manager.sign(b"x")
    report = verify(Layout(path))
    assert report.ok, report.findings
    assert [record["command"] for record in operations(Layout(path), "command")] == ["keys generate"]
