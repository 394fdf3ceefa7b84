"""A log that another program changes: a running signer notices at its next record, a start refuses what no crash
leaves."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from tests.support.audit_logs import copy_of, settings, write_log
from tests.support.loops import one_loop
from tests.support.managers import opened, until
from tests.support.scrapes import Scrape
from tests.support.zygote import Forked

import hsmcore
from hsmcore.audit import AuditLog
from hsmcore.audit.check.verify import verify
from hsmcore.audit.layout import Layout
from hsmcore.audit.segment import Segment, compress
from hsmcore.tlog.checkpoint import history

pytestmark = pytest.mark.integration


def add_a_byte(log: Path) -> None:
    with log.open("ab") as file:
        file.write(b" ")


def cut_the_last_line(log: Path) -> None:
    os.truncate(log, log.read_bytes().rstrip(b"\n").rfind(b"\n") + 1)


def empty(log: Path) -> None:
    """What logrotate's copytruncate does."""
    os.truncate(log, 0)


def delete_the_folder(log: Path) -> None:
    shutil.rmtree(Layout(log).folder)


CHANGES = [add_a_byte, cut_the_last_line, empty, delete_the_folder]


@one_loop
@pytest.mark.parametrize("change", CHANGES)
async def test_nothing_is_signed_behind_a_changed_file(world, tmp_path, change):
    log = tmp_path / "audit.log"
    async with opened(world.config(maxCacheSize=0, auditLogFile=str(log))) as manager:
        await manager.sign(b"before")
        change(log)
        with pytest.raises(hsmcore.AuditUnavailable):
            await manager.sign(b"after")
        assert manager.audit.status.failing
        assert manager.audit.describe()["failure"]


@one_loop
@pytest.mark.parametrize("change", CHANGES)
async def test_a_log_that_may_be_without_records_says_that_it_is(world, tmp_path, change):
    log = tmp_path / "audit.log"
    config = world.config(maxCacheSize=0, auditLogFile=str(log), audit={"onFailure": "open"})
    async with opened(config) as manager:
        await manager.sign(b"before")
        change(log)
        await manager.sign(b"after")
        await until(lambda: manager.audit.status.failing)


@one_loop
async def test_it_goes_on_once_the_file_is_as_it_was(world, tmp_path):
    log = tmp_path / "audit.log"
    async with opened(world.config(maxCacheSize=0, auditLogFile=str(log))) as manager:
        await manager.sign(b"before")
        size = log.stat().st_size
        add_a_byte(log)
        with pytest.raises(hsmcore.AuditUnavailable, match="another program"):
            await manager.sign(b"after")
        os.truncate(log, size)
        await until(lambda: not manager.audit.status.failing)
        await manager.sign(b"again")
    report = verify(Layout(log))
    assert report.ok, report.findings
    assert report.unsealed == 0


@one_loop
@pytest.mark.parametrize("rule", ["closed", "open"])
async def test_a_line_that_cannot_be_sealed_is_a_failure_of_the_log(world, tmp_path, rule):
    log = tmp_path / "audit.log"
    rules = {"onFailure": rule, "checkpointEverySeconds": 3600}
    async with opened(world.config(maxCacheSize=0, auditLogFile=str(log), audit=rules)) as manager:
        await manager.sign(b"before")
        with log.open("r+b") as file:  # of the same length: no record any more
            file.seek(log.read_bytes().rindex(b'{"seq"'))
            file.write(b"[")
        with pytest.raises(hsmcore.AuditUnavailable, match="the line is no record"):
            await manager.audit.checkpoint()
        await until(lambda: manager.audit.status.failing)
        if rule == "closed":
            with pytest.raises(hsmcore.AuditUnavailable):
                await manager.sign(b"after")
        else:
            await manager.sign(b"after")
            assert manager.audit.status.failing


@one_loop
async def test_a_checkpoint_that_cannot_be_stored_is_overdue_until_it_is(world, tmp_path):
    log = tmp_path / "audit.log"
    rules = {"checkpointEverySeconds": 1}
    async with opened(world.config(maxCacheSize=0, auditLogFile=str(log), audit=rules)) as manager:
        await until(lambda: manager.audit.status.sealed > 0)
        aside = Layout(log).history.rename(tmp_path / "checkpoints")
        Layout(log).history.mkdir()
        await manager.sign(b"it is recorded, and not sealed")
        await until(lambda: Scrape.of(manager)("hsmcore_audit_checkpoint_overdue_seconds") > 0)
        assert not manager.audit.status.failing
        await until(lambda: "checkpoints" in (manager.audit.describe()["notSealed"] or ""))
        Layout(log).history.rmdir()
        aside.rename(Layout(log).history)
        await until(lambda: manager.audit.status.overdue_s == 0)  # no further record is needed
        assert manager.audit.status.sealed == manager.audit.status.last_seq
        assert manager.audit.describe()["notSealed"] is None
    assert verify(Layout(log)).ok


@one_loop
async def test_what_is_written_while_a_checkpoint_is_made_is_covered_by_the_next(tmp_path, monkeypatch):
    log = AuditLog(str(tmp_path / "audit.log"), settings(checkpointEverySeconds=1))
    await log.open()
    begun, held = asyncio.Event(), asyncio.Event()
    sign = log._open._signer.sign

    async def slowly(text):
        begun.set()
        await held.wait()
        return await sign(text)

    monkeypatch.setattr(log._open._signer, "sign", slowly)
    log.record("sign", message=b"before", result="ok")
    await begun.wait()
    log.record("sign", message=b"meanwhile", result="ok")
    await log.flush()
    held.set()
    await until(lambda: log.status.sealed == log.status.last_seq)  # no further record is needed
    await log.close()


def sizes_of(layout: Layout) -> list[int]:
    return [checkpoint.size for checkpoint in history(layout.history)[0]]


@one_loop
@pytest.mark.parametrize(("most", "whole"), [(300, 1 << 16), (350, 100)])
async def test_one_checkpoint_covers_so_many_records_and_the_next_ones_the_rest(tmp_path, monkeypatch, most, whole):
    monkeypatch.setattr("hsmcore.audit.open_log.MOST_SEALED", most)
    monkeypatch.setattr("hsmcore.audit.open_log._WHOLE", whole)
    log = AuditLog(str(tmp_path / "audit.log"), settings(checkpointEveryRecords=10**6, checkpointEverySeconds=3600))
    await write_records(log, 1000)
    await log.checkpoint()
    assert log.status.sealed == log.status.last_seq == 1000
    await log.close()
    assert sizes_of(Layout(tmp_path / "audit.log")) == [0, 300, 600, 900, 1000]
    report = verify(Layout(tmp_path / "audit.log"))
    assert report.ok, report.findings
    assert report.checkpoints == 5


@one_loop
async def test_what_is_left_is_sealed_at_once_and_not_after_an_interval(tmp_path, monkeypatch):
    """Records that came while a checkpoint was made, more than `checkpointEveryRecords`, wait for no timer."""
    log = AuditLog(str(tmp_path / "audit.log"), settings(checkpointEveryRecords=100, checkpointEverySeconds=3600))
    await log.open()
    seal, more = log._open.seal, [500]

    async def slowly() -> None:
        await seal()
        for n in range(more.pop() if more else 0):
            log.record("sign", message=b"%d" % n, result="ok")
        await log.flush()

    monkeypatch.setattr(log._open, "seal", slowly)
    monkeypatch.setattr("hsmcore.audit.open_log._LEAST_SECONDS", 0.0)
    await write_records(log, 100, is_open=True)
    await until(lambda: log.status.sealed == log.status.last_seq == 600)
    await log.close()


@one_loop
async def test_checkpoints_are_apart_however_fast_records_come(tmp_path, monkeypatch):
    monkeypatch.setattr("hsmcore.audit.open_log._LEAST_SECONDS", 3600.0)
    log = AuditLog(str(tmp_path / "audit.log"), settings(checkpointEveryRecords=100, checkpointEverySeconds=3600))
    await write_records(log, 100)
    await until(lambda: log.status.sealed >= 100)
    for _ in range(5):
        await write_records(log, 100, is_open=True)
    assert log.status.sealed < 300 < log.status.last_seq
    await log.close()
    assert len(sizes_of(Layout(tmp_path / "audit.log"))) <= 4  # the empty tree's, one or two, and the last
    assert verify(Layout(tmp_path / "audit.log")).ok


@one_loop
async def test_records_that_no_key_can_seal_yet_keep_nothing_waiting(tmp_path):
    rules = settings(checkpointEveryRecords=100, checkpointEverySeconds=3600, signingKey={"hsmKeyId": "01"})
    log = AuditLog(str(tmp_path / "audit.log"), rules)
    await write_records(log, 300)
    await write_records(log, 300, is_open=True)
    assert (log.status.sealed, log.status.last_seq) == (0, 600)
    await log.close()


@one_loop
@pytest.mark.parametrize("name", ["checkpoints", "keys", "origin"])
async def test_what_is_deleted_beside_the_checkpoints_is_told_by_the_next_one(tmp_path, name):
    """None is made until it is put back: a file of all checkpoints that began anew would lack the earlier ones."""
    rules = settings(checkpointEverySeconds=1)
    log = AuditLog(str(tmp_path / "audit.log"), rules)
    await write_records(log, 10)
    await log.checkpoint()
    layout = Layout(tmp_path / "audit.log")
    aside = (layout.folder / name).rename(tmp_path / name)
    await write_records(log, 10, is_open=True)
    await until(lambda: name in (log.status.not_sealed or ""))
    assert not (layout.folder / name).exists()
    aside.rename(layout.folder / name)
    await until(lambda: log.status.sealed == log.status.last_seq)
    await log.close()
    report = verify(layout)
    assert report.ok, report.findings


@one_loop
async def test_a_log_that_is_closed_leaves_to_the_next_start_what_would_take_long(tmp_path, monkeypatch):
    monkeypatch.setattr("hsmcore.audit.open_log.MOST_SEALED", 300)
    monkeypatch.setattr("hsmcore.audit.open_log.CLOSE_SECONDS", 0.0)
    rules = settings(checkpointEveryRecords=10**6, checkpointEverySeconds=3600)
    log = AuditLog(str(tmp_path / "audit.log"), rules)
    await write_records(log, 1000)
    await log.close()
    layout = Layout(tmp_path / "audit.log")
    _, sealed = sizes_of(layout)
    assert 0 < sealed <= 300  # those of one file, or what is read at once
    assert verify(layout).unsealed == 1000 - sealed
    log = AuditLog(str(tmp_path / "audit.log"), rules)
    await log.open()
    await log.checkpoint()
    await log.close()
    report = verify(layout)
    assert report.ok, report.findings
    assert (report.records, report.unsealed) == (1000, 0)


def test_a_file_whose_compressing_is_cut_short_stays_as_it_is(tmp_path):
    layout = Layout(tmp_path / "audit.log")
    layout.segments.mkdir(parents=True)
    plain = layout.archived(1, compressed=False)
    lengths, text = [7, 5, 6], b"frame1\nand2\nlast.\n"
    plain.write_bytes(text)
    answers = iter([False, True])
    assert not compress(layout, 1, lengths, lambda: next(answers))
    assert list(layout.segments.iterdir()) == [plain]
    assert plain.read_bytes() == text
    assert compress(layout, 1, lengths)
    (made,) = layout.segments.iterdir()
    assert list(Segment(1, made).chunks()) == [b"frame1\n", b"and2\n", b"last.\n"]


async def write_records(log: AuditLog, records: int, *, is_open: bool = False) -> None:
    if not is_open:
        await log.open()
    for n in range(records):
        log.record("sign", message=b"%d" % n, result="ok", signature=bytes(64))
    await log.flush()


async def unsealed_copy(tmp_path: Path) -> Layout:
    """What a kill leaves: records, most of them behind the last checkpoint."""
    log = AuditLog(str(tmp_path / "log" / "audit.log"), settings(checkpointEveryRecords=10**6))
    await log.open()
    for n in range(50):
        log.record("sign", message=b"%d" % n, result="ok")
    await log.flush()
    copy = copy_of(Layout(tmp_path / "log" / "audit.log"), tmp_path / "copy")
    shutil.copy(tmp_path / "log" / "audit.log.key", tmp_path / "copy")
    await log.close()
    return copy


def with_a_byte(lines: list[bytes]) -> list[bytes]:
    return [*lines[:20], b" " + lines[20], *lines[21:]]


def without_a_line(lines: list[bytes]) -> list[bytes]:
    return lines[:20] + lines[21:]


def without_the_last_but_one(lines: list[bytes]) -> list[bytes]:
    return [*lines[:-2], lines[-1]]


def with_a_line_more(lines: list[bytes]) -> list[bytes]:
    return [*lines[:20], b"\n", *lines[20:]]


@one_loop
@pytest.mark.parametrize("change", [with_a_byte, without_a_line, without_the_last_but_one, with_a_line_more])
async def test_a_start_refuses_whole_records_behind_a_line_that_is_none(tmp_path, change):
    layout = await unsealed_copy(tmp_path)
    lines = layout.log.read_bytes().splitlines(keepends=True)
    layout.log.write_bytes(b"".join(change(lines)))
    before = layout.log.read_bytes()
    with pytest.raises(hsmcore.AuditUnavailable, match="no crash"):
        await write_log(layout.log, 1)
    assert layout.log.read_bytes() == before
    assert not layout.lost.exists()
    assert not verify(layout).ok
    layout.log.write_bytes(b"".join(lines))  # what was changed is put right
    await write_log(layout.log, 1)
    assert verify(layout).ok


@one_loop
@pytest.mark.parametrize("rest", [b'{"seq":51,"time_ns":1', b"\0" * 4000, b"no record\n", b"no record\nand no end"])
async def test_a_torn_end_is_put_aside_as_before(tmp_path, rest):
    layout = await unsealed_copy(tmp_path)
    with layout.log.open("ab") as file:
        file.write(rest)
    await write_log(layout.log, 1)
    assert verify(layout).ok
    assert [path.read_bytes() for path in layout.lost.iterdir()] == [rest]


def start(config: Path) -> subprocess.Popen[bytes]:
    return Forked(["tests.support.signing_victim", str(config)], stdout=subprocess.PIPE, stderr=subprocess.PIPE)


async def test_every_signature_of_a_killed_signer_is_in_the_log_or_the_next_start_refuses(world, tmp_path):
    """A signer whose file is changed while it signs, and which is killed then, has handed out no signature that the log
    of its next life lacks."""
    log = tmp_path / "audit.log"
    config = world.config(maxCacheSize=0, auditLogFile=str(log))
    (tmp_path / "config.json").write_text(json.dumps(config))
    victim = start(tmp_path / "config.json")
    said: list[bytes] = []
    try:
        while len(said) < 200:
            said.append(await asyncio.to_thread(victim.stdout.readline))
        add_a_byte(log)
        rest = await asyncio.to_thread(victim.stdout.read)  # its callers are refused, so it ends by itself
        said += rest.splitlines()
    finally:
        victim.kill()
        _, told = await asyncio.to_thread(victim.communicate)
    assert b"AuditUnavailable" in told
    async with opened(config):
        pass
    report = verify(Layout(log))
    assert report.ok, report.findings
    recorded = log.read_bytes()
    missing = [line for line in said if line.split()[1] not in recorded]
    assert missing == []
