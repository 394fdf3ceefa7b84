"""Old records are deleted only for a prune record that a checkpoint of the log covers."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from tests.support.audit_logs import (
    SMALLEST_SEGMENT,
    copy_of,
    keys_of,
    put_text,
    settings,
    text_of,
    turn_clock,
    write_log,
)
from tests.support.audit_tampering import prune_line
from tests.support.loops import one_loop
from tests.support.size import FULL
from tests.support.terminal import PROGRAM

import hsmcore
from hsmcore.audit import AuditLog, index
from hsmcore.audit.check.findings import Report
from hsmcore.audit.check.trust import Trust
from hsmcore.audit.check.verify import verify
from hsmcore.audit.layout import Layout
from hsmcore.audit.open_log import OpenLog
from hsmcore.audit.query import Query
from hsmcore.audit.retention import DAY_NS
from hsmcore.audit.segment import segments
from hsmcore.base import steady
from hsmcore.tlog.checkpoint import history

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("terminal")]
RECORDS = 900
LATER_NS = 40 * DAY_NS
EXPECTED = Trust(retain_days=30)


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Layout:
    return asyncio.run(write_log(tmp_path_factory.mktemp("audit") / "log" / "audit.log", RECORDS))


@pytest.fixture
def layout(original, tmp_path) -> Layout:
    """A copy that a process can go on with."""
    copy = copy_of(original, tmp_path / "copy")
    shutil.copy(original.default_key, copy.log.parent)
    return copy


def operations(layout: Layout, name: str) -> list[dict]:
    return [record for block in Query(layout, None, None, {"operation": name}).blocks() for record in block]


def findings(report: Report) -> list[tuple[str, int | None, int | None]]:
    return [(finding.kind, finding.first, finding.last) for finding in report.findings]


def oldest(layout: Layout) -> int:
    """The last record of the oldest segment."""
    return segments(layout)[1].first - 1


def forge(layout: Layout, seq: int) -> int:
    """Say behind the last checkpoint that the oldest segment was pruned; returns its last record."""
    last = oldest(layout)
    with layout.log.open("ab") as file:
        file.write(prune_line(layout, seq, last))
    return last


def remove_oldest(layout: Layout) -> None:
    segment = segments(layout)[0]
    segment.path.unlink()
    layout.index(segment.first).unlink()


def command(*arguments: str) -> tuple[int, dict]:
    program = [*PROGRAM, "audit", *arguments, "--json"]
    done = subprocess.run(program, capture_output=True, check=False, timeout=60)
    return done.returncode, json.loads(done.stdout)


async def pruned(layout: Layout, monkeypatch) -> None:
    """Have the log's own retention prune it."""
    with monkeypatch.context() as clock:
        turn_clock(time.time_ns() + LATER_NS, clock.setattr)
        log = AuditLog(str(layout.log), settings(retainDays=30, checkpointEveryRecords=1))
        await log.open()
        await log.durable(log.record("sign", result="ok"))
        first = segments(layout)[0].first
        async with asyncio.timeout(30):
            while segments(layout)[0].first == first:  # noqa: ASYNC110  # a thread deletes it
                await asyncio.sleep(0.01)
        await log.close()


@pytest.mark.parametrize("kept", [True, False])
def test_a_forged_prune_record_explains_nothing(original, layout, tmp_path, kept):
    last = forge(layout, RECORDS + 1)
    remove_oldest(layout)
    [key] = keys_of(original)
    report = verify(layout, Trust(keys=[key], against=[original.checkpoint.read_bytes()] if kept else []))
    assert findings(report) == [("removed", 1, last)]
    assert any("counts for nothing" in note for note in report.notes)
    against = ["--against", str(original.checkpoint)] if kept else []
    code, shown = command("verify", str(layout.log), "--expect-retention", "30d", "--key", str(key), *against)
    assert (code, shown["status"]) == (1, "failed")


@one_loop
async def test_a_start_does_not_seal_a_forged_prune_record(layout):
    last = forge(layout, RECORDS + 1)
    remove_oldest(layout)
    before = layout.checkpoint.read_bytes()
    with pytest.raises(hsmcore.AuditUnavailable, match=f"records 1 to {last} are gone"):
        await write_log(layout.log, 1)
    assert layout.checkpoint.read_bytes() == before


@one_loop
async def test_a_start_rejects_a_forged_prune_record_where_every_full_segment_is_gone(layout):
    *full, newest = segments(layout)
    with layout.log.open("ab") as file:
        file.write(prune_line(layout, RECORDS + 1, newest.first - 1))
    for segment in full:
        segment.path.unlink()
    with pytest.raises(hsmcore.AuditUnavailable, match=f"the records from 1 to {newest.first - 1} are missing"):
        await write_log(layout.log, 1)


@one_loop
async def test_an_orphaned_or_forged_prune_record_counts_for_nothing(layout, monkeypatch):
    """Both look alike: it is there, no checkpoint covers it, and so nothing was deleted for it."""
    forge(layout, RECORDS + 1)
    assert verify(layout).ok
    await write_log(layout.log, 5)
    assert [(r["first"], r["last"]) for r in operations(layout, "audit-prune-void")] == [(RECORDS + 1, RECORDS + 1)]
    report = verify(layout)
    assert (report.findings, report.unsealed) == ([], 0)
    held = copy_of(layout, layout.log.parent / "held")
    remove_oldest(held)
    assert findings(verify(held)) == [("removed", 1, oldest(layout))]
    await pruned(layout, monkeypatch)
    assert verify(layout, EXPECTED).ok


@one_loop
async def test_a_prune_record_written_into_a_log_that_is_open_counts_for_nothing(layout):
    log = AuditLog(str(layout.log), settings(checkpointEveryRecords=10**6))
    await log.open()
    await log.checkpoint()
    seq = log.record("sign", result="ok", signature=bytes(300))
    await log.durable(seq)
    genuine = layout.log.read_bytes().splitlines(keepends=True)[-1]
    forged = prune_line(layout, seq, oldest(layout)).removesuffix(b"}\n")
    padding = b"x" * (len(genuine) - len(forged) - len(b',"tag":""}\n'))
    forged += b',"tag":"' + padding + b'"}\n'
    assert len(forged) == len(genuine)
    with layout.log.open("r+b") as file:
        file.seek(-len(genuine), os.SEEK_END)
        file.write(forged)
    await log.checkpoint()
    await log.close()
    assert [record["first"] for record in operations(layout, "audit-prune-void")] == [seq]
    assert verify(layout).ok
    last = oldest(layout)
    remove_oldest(layout)
    assert findings(verify(layout)) == [("removed", 1, last)]


@one_loop
async def test_what_retention_deleted_is_a_finding_until_an_auditor_expects_it(layout, tmp_path, monkeypatch):
    await pruned(layout, monkeypatch)
    report = verify(layout)
    gone = report.pruned
    assert findings(report) == [("pruned", 1, gone)]
    [record] = operations(layout, "audit-prune")
    moment = datetime.fromtimestamp(record["time_ns"] // 10**9, UTC).isoformat()
    user = f"user {record['user']!r} on {record['source']['hostname']!r}"
    assert f"by record {record['seq']} ({moment}, {user})" in report.findings[0].text
    assert 0 < report.seconds < 3600
    expected = {
        "30d": (30, 0),
        "39d": (39, 0),
        "41d": None,  # no record was that old
        str(gone): (None, gone),
        str(gone - 1): None,
    }
    for text, trust in expected.items():
        code, shown = command("verify", str(layout.log), "--expect-retention", text)
        assert (code, [each["kind"] for each in shown["findings"]]) == ((1, ["pruned"]) if trust is None else (0, []))
        if trust is not None:
            report = verify(layout, Trust(retain_days=trust[0], pruned=trust[1]))
            assert report.ok
            assert any(note.startswith(f"as expected, records 1 to {gone} were pruned") for note in report.notes)
    config = tmp_path / "hsm.json"
    for days, code in ((30, 0), (41, 1), (None, 1)):
        settings_of = {"tokenLabel": "t", "keyLabel": "k", "pin": {"env": "NONE"}}
        manager = {"type": "softhsm", "config": settings_of, "auditLogFile": str(layout.log)}
        config.write_text(json.dumps({"keyManager": manager | ({"audit": {"retainDays": days}} if days else {})}))
        assert command("verify", "--config", str(config))[0] == code
    for path in layout.segments.glob("*.idx"):
        path.write_bytes(b"")
    assert command("mend", str(layout.log), "--expect-retention", "30d")[0] == 0
    assert command("mend", str(layout.log))[0] == 1


@one_loop
@pytest.mark.parametrize("gone", [False, True])
async def test_a_changed_record_is_named_exactly(layout, monkeypatch, gone):
    """Wherever the good records end, there the search begins: at the log's begin, behind what was pruned, behind a
    checkpoint."""
    await write_log(layout.log, 5, begin=RECORDS)
    if gone:
        await pruned(layout, monkeypatch)
    first = segments(layout)[0].first
    for seq in (first, first + 1, RECORDS + 1, RECORDS + 2):
        segment = [one for one in segments(layout) if one.first <= seq][-1]
        text = text_of(segment)
        lines = text.splitlines(keepends=True)
        changed = lines[seq - segment.first].replace(b'"result":"ok"', b'"result":"no"')
        put_text(layout, segment, b"".join([*lines[: seq - segment.first], changed, *lines[seq - segment.first + 1 :]]))
        [found] = [one for one in verify(layout, EXPECTED).findings if not one.derived]
        offset = sum(map(len, lines[: seq - segment.first]))
        path = next(one.path for one in segments(layout) if one.first == segment.first)
        assert (found.kind, found.first, found.last) == ("changed", seq, seq)
        assert found.where == f"{path} at byte {offset}"
        put_text(layout, next(one for one in segments(layout) if one.first == segment.first), text)
    assert verify(layout, EXPECTED).ok
    shutil.rmtree(layout.tiles / "0")
    lost = [found for found in verify(layout, EXPECTED).findings if found.kind == "tile"]
    assert (lost[0].first, lost[0].last) == (1, first - 1 if gone else 256)


def test_a_checkpoint_that_a_crash_cut_off_is_told_and_no_finding(layout):
    assert not any("in the middle of a checkpoint" in note for note in verify(layout, EXPECTED).notes)
    whole = layout.history.read_bytes()
    with layout.history.open("ab") as file:
        file.write(whole[: whole.index(b"\n\n")])
    report = verify(layout, EXPECTED)
    assert report.ok
    assert [note for note in report.notes if "in the middle of a checkpoint" in note]


@one_loop
@pytest.mark.parametrize("order", [[0, 2, 1], [0, 1, 1, 2]])
async def test_checkpoints_that_do_not_grow_are_a_finding(layout, order):
    for more in range(2):
        await write_log(layout.log, 1, begin=RECORDS + more)
    parts = layout.history.read_bytes().split(b"\n\n")
    notes = [b"\n\n".join([*parts[n : n + 2], b""]) for n in range(0, len(parts) - 1, 2)]
    sizes = [one.size for one in history(layout.history)[0]]
    layout.history.write_bytes(b"".join(notes[n] for n in [*order, *range(3, len(notes))]))
    [found] = verify(layout, EXPECTED).findings
    assert (found.kind, found.text) == ("checkpoint", f"size {sizes[1]} follows {sizes[order[1]]}")


@one_loop
async def test_a_file_is_kept_until_the_record_behind_it_is_old(layout, monkeypatch):
    """The record that is left is the only evidence of the age of those that are gone."""
    newest, begun = segments(layout)[-1].first, time.time_ns()
    long = bytes(2000)  # a line of 4,000 bytes more
    for days in (0, 31, 62):
        with monkeypatch.context() as clock:
            turn_clock(begun + days * DAY_NS, clock.setattr)
            log = AuditLog(str(layout.log), settings(retainDays=30, checkpointEveryRecords=1))
            await log.open()
            while days == 0 and layout.log.stat().st_size < SMALLEST_SEGMENT - 4000:
                await log.durable(log.record("sign", result="ok", signature=bytes(64)))
            while days == 31 and segments(layout)[-1].first == newest:
                await log.durable(log.record("sign", result="ok", signature=long))
            young = segments(layout)[-1].first
            await log.checkpoint()
            await log._open._prune()
            await log.close()
        report = verify(layout, EXPECTED)
        assert report.ok, report.findings
        oldest = {0: 1, 31: newest, 62: young}[days]
        assert segments(layout)[0].first == oldest
    assert young > newest


@one_loop
async def test_a_forged_index_makes_retention_delete_nothing(layout):
    for segment in segments(layout)[:-1]:
        path = layout.index(segment.first)
        rows = index.read(path)
        old = [index.Block(b.first, b.offset, b.length, b.count, 1, 2, b.operations, b.keys) for b in rows]
        path.write_bytes(b"".join(row.pack() for row in old))
    log = AuditLog(str(layout.log), settings(retainDays=30, checkpointEveryRecords=1))
    await log.open()
    await log.durable(log.record("sign", result="ok"))
    await log.close()
    assert segments(layout)[0].first == 1
    assert operations(layout, "audit-prune") == []


@one_loop
async def test_retention_goes_on_while_records_come(layout, monkeypatch):
    turn_clock(time.time_ns() + LATER_NS, monkeypatch.setattr)
    log = AuditLog(str(layout.log), settings(retainDays=30, checkpointEveryRecords=1))
    await log.open()
    async with asyncio.timeout(30):
        while segments(layout)[0].first == 1:
            log.record("sign", result="ok")
            await asyncio.sleep(0)
    await log.close()
    assert verify(layout, EXPECTED).ok


@pytest.mark.slow("a process for each point")
def test_after_a_kill_at_each_point_of_a_pruning_the_log_verifies_and_goes_on(original, tmp_path, monkeypatch):
    folder = tmp_path / "killed"
    folder.mkdir()
    program = [sys.executable, "-m", "tests.support.audit_pruning_kills", str(original.log), str(folder)]
    subprocess.run(program, check=True, timeout=120)
    *killed, whole = sorted(folder.iterdir())
    assert len(killed) > 20
    trust = replace(EXPECTED, keys=keys_of(original), against=[original.checkpoint.read_bytes()])
    seen = set()
    for place in killed[:: 1 if FULL else 2]:
        log = Layout(place / original.log.name)
        report = verify(log, trust)
        assert report.ok, f"{place}: {report.findings}"
        prunes, gone = len(operations(log, "audit-prune")), report.pruned > 0
        seen.add((prunes, gone))
        asyncio.run(write_log(log.log, 3))
        report = verify(log, trust)
        assert report.ok, f"{place}, gone on with: {report.findings}"
        assert report.unsealed == 0
        assert {int(path.stem) for path in log.segments.glob("*.idx")} == {s.first for s in segments(log)}
    assert seen == {(0, False), (1, False), (1, True)}
    report = verify(Layout(whole / original.log.name), trust)
    assert report.ok
    assert report.pruned > 0


class Turned:
    """A clock of the wall that is wrong, and one since the boot that runs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ahead = self.passed = 0
        wall, boot, put = time.time_ns, steady.boottime, OpenLog._put
        monkeypatch.setattr(time, "time_ns", lambda: wall() + self.passed + self.ahead)
        monkeypatch.setattr(steady, "boottime", lambda: boot() + self.passed)
        monkeypatch.setattr(OpenLog, "_put", lambda log, _now, *record: put(log, time.time_ns(), *record))


async def looked(layout: Layout, clock: Turned | None = None, ahead: int = 0) -> list[dict]:
    """A life of a key manager's log that looks for old records; the clock may step meanwhile. Returns the steps that
    it recorded."""
    log = AuditLog(str(layout.log), settings(retainDays=30, checkpointEveryRecords=1))
    await log.open()
    if clock is not None:
        clock.ahead, log._open._looked_at = ahead, 0.0
    await log.durable(log.record("sign", result="ok"))
    await log.checkpoint()
    log._open._pruned_at = None
    await log._open._prune()
    await log.close()
    return operations(layout, "clock-step")


@one_loop
async def test_a_start_with_a_clock_that_is_wrong_deletes_nothing_until_it_has_held_for_a_day(layout, monkeypatch):
    clock = Turned(monkeypatch)
    clock.ahead = 100 * DAY_NS
    for _ in range(3):  # one start after the other
        await looked(layout)
        assert segments(layout)[0].first == 1
        assert operations(layout, "audit-prune") == []
    clock.ahead = 0
    await looked(layout)
    clock.ahead = 100 * DAY_NS
    await looked(layout)
    clock.passed = DAY_NS - 3600 * 10**9
    await looked(layout)
    assert segments(layout)[0].first == 1
    clock.passed = DAY_NS + 3600 * 10**9
    await looked(layout)
    assert segments(layout)[0].first > 1
    assert verify(layout, EXPECTED).ok


@one_loop
async def test_a_step_forward_is_recorded_and_deletes_nothing(layout, monkeypatch):
    clock = Turned(monkeypatch)
    begun = time.time_ns()
    [step] = await looked(layout, clock, 100 * DAY_NS)
    assert abs(step["from_ns"] - begun) < DAY_NS
    assert abs(step["to_ns"] - begun - 100 * DAY_NS) < DAY_NS
    assert segments(layout)[0].first == 1
    clock.ahead = 0
    await looked(layout)
    assert verify(layout).ok


@one_loop
@pytest.mark.parametrize("mark", [b"", b"\xff{", b"[1, 2]", b'{"boot":"","at":1,"offset":"x","step":0,"since":0}'])
async def test_a_mark_that_is_none_makes_retention_wait(layout, monkeypatch, mark):
    layout.clock.write_bytes(mark)
    clock = Turned(monkeypatch)
    clock.ahead = 100 * DAY_NS
    await looked(layout)
    assert segments(layout)[0].first == 1
