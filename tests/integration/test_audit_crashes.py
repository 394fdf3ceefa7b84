"""The audit log survives what happens to processes, disks and clocks."""

from __future__ import annotations

import asyncio
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from tests.support.audit_kills import kill_again_and_again, kill_at_segment_ends
from tests.support.audit_logs import copy_of, files_at_most, keys_of, settings, turn_clock, write_log
from tests.support.child import in_fork
from tests.support.loops import one_loop
from tests.support.size import share

import hsmcore
from hsmcore._native import Journal
from hsmcore.audit import AuditLog, tagged
from hsmcore.audit import open_log as audit_open_log
from hsmcore.audit.check.trust import Trust
from hsmcore.audit.check.verify import verify
from hsmcore.audit.layout import Layout
from hsmcore.audit.query import Query
from hsmcore.audit.recover import open_log, rebuild
from hsmcore.audit.segment import segments
from hsmcore.tlog.checkpoint import Checkpoint


def records(layout: Layout) -> list[dict]:
    return [record for block in Query(layout, None, None, None).blocks() for record in block]


async def opened(path: Path, **more) -> AuditLog:
    log = AuditLog(str(path), settings(**more))
    await log.open()
    return log


def test_a_log_verifies_after_every_kill(tmp_path):
    kill_again_and_again(tmp_path / "audit.log", share(12), seed=1)


async def fill(log: AuditLog) -> None:
    """Record until the kernel refuses."""
    while True:
        seq = log.record("sign", signature=bytes(2000))
        await log.durable(seq)


async def until_written_again(log: AuditLog) -> int:
    async with asyncio.timeout(30):
        while True:
            try:
                seq = log.record("sign", result="ok")
            except hsmcore.AuditUnavailable:
                await asyncio.sleep(0.05)
            else:
                return seq


async def test_while_nothing_can_be_written_nothing_goes_unrecorded(tmp_path):
    log = await opened(tmp_path / "audit.log", rotateBytes=1 << 20)
    with files_at_most(60_000):
        with pytest.raises(hsmcore.AuditUnavailable, match="File too large"):
            await fill(log)
        with pytest.raises(hsmcore.AuditUnavailable):
            log.record("sign")
    seq = await until_written_again(log)
    await log.durable(seq)
    await log.close()
    report = verify(Layout(tmp_path / "audit.log"))
    assert report.ok, report.findings
    assert report.records == seq


@one_loop
async def test_an_open_log_goes_on_and_says_what_it_lost(tmp_path, monkeypatch):
    monkeypatch.setattr("hsmcore.audit.journal.MAX_PENDING", 100)
    log = await opened(tmp_path / "audit.log", rotateBytes=1 << 20, onFailure="open")
    given = 0
    with files_at_most(60_000):
        async with asyncio.timeout(30):
            while (seq := log.record("sign", signature=bytes(2000))) is not None:
                given = seq
                await log.durable(seq)
        for _ in range(9):
            assert log.record("sign") is None
    async with asyncio.timeout(30):
        while log.record("sign") is None:  # noqa: ASYNC110  # the writer tries again by itself
            await asyncio.sleep(0.05)
    await log.close()
    found = records(Layout(tmp_path / "audit.log"))
    lost = [record["records"] for record in found if record["operation"] == "audit-lost"]
    assert sum(lost) >= 10
    assert [record["seq"] for record in found] == list(range(1, len(found) + 1))
    assert len(found) > given
    assert verify(Layout(tmp_path / "audit.log")).ok


@one_loop
async def test_a_second_writer_is_refused(tmp_path):
    log = await opened(tmp_path / "audit.log")
    with pytest.raises(hsmcore.AuditUnavailable, match="this process is writing it"):
        await opened(tmp_path / "audit.log")
    await log.close()
    await (await opened(tmp_path / "audit.log")).close()


@one_loop
async def test_a_clock_that_jumps_back_is_recorded(tmp_path, monkeypatch):
    path = tmp_path / "audit.log"
    log = await opened(path)
    log.record("sign")
    await log.close()
    later = time.time_ns() + 10**15
    monkeypatch.setattr(audit_open_log, "open_log", lambda *given: replace(open_log(*given), last_time_ns=later))
    log = await opened(path)
    log.record("sign")
    log.record("sign")
    await log.close()
    found = records(Layout(path))
    assert [record["operation"] for record in found] == ["sign", "clock-step", "sign", "sign"]
    assert found[1]["from_ns"] == later
    assert abs(found[1]["to_ns"] - time.time_ns()) < 60 * 10**9
    assert verify(Layout(path)).ok


async def test_the_engine_s_own_records_look_at_the_clock_too(tmp_path):
    steps = []
    archive = tmp_path / "segments"
    archive.mkdir()
    journal = Journal(
        path=str(tmp_path / "audit.log"),
        archive=str(archive),
        first_seq=1,
        next_seq=1,
        rotate_bytes=1 << 20,
        interval_seconds=0.05,
        durability="fsync",
        fail_open=False,
        wait_seconds=10,
        max_pending=1 << 20,
        last_time_ns=2**63,
    )
    journal.attach(
        asyncio.get_running_loop(), lambda *_: None, OSError, lambda before, now: steps.append((before, now))
    )
    first, second = journal.stamp(), journal.stamp()
    assert steps == [(2**63, first)]
    assert second >= first
    journal.detach()
    assert journal.close() == 0


@one_loop
async def test_a_forked_child_records_nothing(tmp_path):
    log = await opened(tmp_path / "audit.log")
    assert in_fork(lambda: log.record("sign")) == "EngineForked"
    seq = log.record("sign")
    await log.close()
    assert [record["seq"] for record in records(Layout(tmp_path / "audit.log"))] == list(range(1, seq + 1))


@one_loop
async def test_the_folder_of_another_log_is_refused(tmp_path):
    one = await write_log(tmp_path / "one" / "audit.log", 900)
    other = await write_log(tmp_path / "other" / "audit.log", 700)
    mixed = copy_of(one, tmp_path / "mixed")
    mixed.log.write_bytes(other.log.read_bytes())
    with pytest.raises(hsmcore.AuditUnavailable, match=r"audit log .*mixed"):
        await opened(mixed.log)
    swapped = copy_of(one, tmp_path / "swapped")
    for name in ("checkpoint", "checkpoints"):
        (swapped.folder / name).write_bytes((other.folder / name).read_bytes())
    with pytest.raises(hsmcore.AuditUnavailable, match="belongs to the log"):
        await opened(swapped.log)
    assert {finding.kind for finding in verify(swapped).findings} >= {"foreign-log"}
    with pytest.raises(hsmcore.AuditUnavailable, match="not to example"):
        await opened(one.log, origin="example.com/third")


@one_loop
async def test_a_checkpoint_by_another_key_is_refused(tmp_path):
    one = await write_log(tmp_path / "one" / "audit.log", 300, origin="example.com/log")
    forged = await write_log(tmp_path / "forged" / "audit.log", 300, origin="example.com/log")
    forged.keys.write_bytes(one.keys.read_bytes())
    with pytest.raises(hsmcore.AuditUnavailable, match="signed by another key"):
        await opened(forged.log)
    report = verify(forged, Trust(keys=keys_of(one)))
    assert "key" in {finding.kind for finding in report.findings}


@one_loop
async def test_a_new_signing_key_is_recorded(tmp_path):
    path = tmp_path / "audit.log"
    layout = await write_log(path, 10)
    first = keys_of(layout)
    await write_log(path, 10, signingKey={"file": str(tmp_path / "other.key")})
    [change] = [record for record in records(layout) if record["operation"] == "audit-key"]
    old, new = keys_of(layout)
    assert ([old], str(new)) == (first, change["verifier_key"])
    assert change["previous_verifier_key"] == str(old)
    assert verify(layout, Trust(keys=[new])).ok
    assert not verify(layout, Trust(keys=[old])).ok
    (tmp_path / "other.key").chmod(0o644)
    with pytest.raises(hsmcore.AuditUnavailable, match="open to others"):
        await opened(path, signingKey={"file": str(tmp_path / "other.key")})


@one_loop
async def test_a_log_that_was_cut_or_changed_is_not_gone_on_with(tmp_path):
    layout = await write_log(tmp_path / "log" / "audit.log", 900)
    for number, damage in enumerate(
        (
            lambda text: text[: len(text) // 2],
            lambda text: b"",
            lambda text: text.replace(b'"result":"ok"', b'"result":"no"', 1),
            lambda text: b"\n".join(text.split(b"\n")[1:]),
        )
    ):
        copy = copy_of(layout, tmp_path / f"copy{number}")
        copy.log.write_bytes(damage(copy.log.read_bytes()))
        with pytest.raises(hsmcore.AuditUnavailable, match="audit verify"):
            await opened(copy.log)
        assert not verify(copy).ok


@one_loop
async def test_tiles_and_index_are_made_again_from_the_records(tmp_path):
    layout = await write_log(tmp_path / "log" / "audit.log", 900)
    for path in sorted(layout.folder.joinpath("tile").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    await write_log(layout.log, 300, begin=900)
    report = verify(layout)
    assert report.ok, report.findings
    assert report.records == 1200


@one_loop
async def test_tiles_are_made_again_of_all_records_or_not_at_all(tmp_path):
    layout = await write_log(tmp_path / "log" / "audit.log", 5)
    shutil.rmtree(layout.tiles)
    with pytest.raises(hsmcore.AuditUnavailable, match="so are the records from 6 on"):
        rebuild(layout, 6)
    lines = layout.log.read_bytes().splitlines(keepends=True)
    for at in (2, 4):
        layout.log.write_bytes(b"".join([*lines[:at], *lines[at + 1 :], b"no record\n"]))
        with pytest.raises(hsmcore.AuditUnavailable, match=f"record {at + 1} is not in"):
            rebuild(layout, 5)
    layout.log.write_bytes(b"".join(lines))
    rebuild(layout, 5)
    assert verify(layout).ok


def killed_at_a_segment_s_end(path: Path) -> tuple[Layout, Path]:
    """A log that ends as in audit_segment_end, and the index of its full segment."""
    done = subprocess.run([sys.executable, "-m", "tests.support.audit_segment_end", str(path)], check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL
    layout = Layout(path)
    full, newest = segments(layout)
    assert layout.index(full.first).stat().st_size == 0
    assert Checkpoint.parse(layout.checkpoint.read_bytes()).size == newest.first - 1
    return layout, layout.index(full.first)


@one_loop
async def test_an_index_that_a_kill_left_empty_is_made_again_and_its_segment_compressed(tmp_path):
    layout, path = killed_at_a_segment_s_end(tmp_path / "audit.log")
    await write_log(layout.log, 10)
    report = verify(layout)
    assert report.ok, report.findings
    assert path.stat().st_size > 0
    assert segments(layout)[0].compressed
    await write_log(layout.log, 10)
    assert verify(layout).ok


def test_kills_at_the_ends_of_files_leave_logs_that_verify(tmp_path):
    assert kill_at_segment_ends(tmp_path, share(8), seed=1) == share(8)


@one_loop
async def test_verify_reports_records_that_no_checkpoint_covered_at_first(tmp_path):
    layout = await write_log(tmp_path / "audit.log", 50)
    kept = layout.checkpoint.read_bytes()
    layout.log.write_bytes(layout.log.read_bytes().replace(b'"result":"ok"', b'"result":"no"', 1))
    shutil.rmtree(layout.folder / "tile")
    for path in (layout.checkpoint, layout.history, layout.keys):
        path.unlink()
    await write_log(layout.log, 5)
    [finding] = verify(layout).findings
    assert (finding.kind, finding.first, finding.last) == ("adopted", 1, 50)
    assert "the first 50 records" in finding.text
    trust = Trust(against=[kept], adopted=50)
    assert [finding.kind for finding in verify(layout, trust).findings] == ["rewritten"]


@one_loop
async def test_old_records_go_and_proofs_stay(tmp_path, monkeypatch):
    path = tmp_path / "audit.log"
    layout = await write_log(path, 900)
    before = layout.checkpoint.read_bytes()
    turn_clock(time.time_ns() + 40 * 86_400 * 10**9, monkeypatch.setattr)
    log = await opened(path, retainDays=30, checkpointEveryRecords=1)
    await log.durable(log.record("sign", result="ok"))
    async with asyncio.timeout(30):
        while segments(layout)[0].first == 1:  # noqa: ASYNC110  # a thread deletes it
            await asyncio.sleep(0.01)
    await log.close()
    first = segments(layout)[0].first
    report = verify(layout, Trust(against=[before], retain_days=30))
    assert report.ok, report.findings
    assert report.pruned == first - 1 > 0
    assert [record["last"] for record in records(layout) if record["operation"] == "audit-prune"] == [first - 1]
    await write_log(path, 500)
    report = verify(layout, Trust(against=[before], retain_days=30))
    assert report.ok, report.findings
    segments(layout)[0].path.unlink()
    assert not verify(layout).ok, "more is gone than was said"


@one_loop
async def test_a_tag_is_recorded(tmp_path):
    log = await opened(tmp_path / "audit.log")
    with tagged("batch-7"):
        log.record("sign")
    log.record("sign")
    await log.close()
    assert [record.get("tag") for record in records(Layout(tmp_path / "audit.log"))] == ["batch-7", None]


@one_loop
async def test_a_crash_between_a_new_file_and_the_next_checkpoint(tmp_path):
    """The records since the last checkpoint may reach over any number of files."""
    log = AuditLog(str(tmp_path / "log" / "audit.log"), settings(checkpointEveryRecords=10**6))
    await log.open()
    for n in range(700):
        log.record("sign", message=b"%d" % n, result="ok")
        if n % 100 == 0:
            await log.flush()
    await log.flush()
    copy = copy_of(Layout(tmp_path / "log" / "audit.log"), tmp_path / "copy")
    shutil.copy(tmp_path / "log" / "audit.log.key", tmp_path / "copy")
    await log.close()
    assert len(segments(copy)) >= 3
    again = await write_log(copy.log, 10, begin=700)
    report = verify(again, Trust([], [], []))
    assert report.ok, report.findings
    assert report.records == 710
