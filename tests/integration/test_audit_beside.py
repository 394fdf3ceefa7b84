"""Readers beside a running writer, which rotates, compresses and seals while they read: an honest log stays honest."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.support.audit_beside import look, signing
from tests.support.audit_logs import settings, turn_clock
from tests.support.loops import one_loop
from tests.support.size import share

from hsmcore.audit import AuditLog
from hsmcore.audit.check.overview import overview
from hsmcore.audit.check.prove import latest
from hsmcore.audit.check.trust import Trust
from hsmcore.audit.check.verify import verify
from hsmcore.audit.layout import Layout
from hsmcore.audit.query import Query
from hsmcore.audit.segment import segments
from hsmcore.audit.tiles import Tiles
from hsmcore.base.steady import SteadyClock

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("terminal")]


async def writing(path: Path, work: Callable[[Layout, Callable[[int], None]], None]) -> None:
    """Do `work` in a thread, beside a log that is open. Its second argument has the log grow by a number of records,
    over any number of files, all sealed and compressed."""
    log = AuditLog(str(path), settings(checkpointEveryRecords=10**6))
    await log.open()
    loop = asyncio.get_running_loop()

    async def grow(records: int) -> None:
        for n in range(records):
            log.record("sign", message=b"%d" % n, result="ok", signature=bytes(64))
            if n % 100 == 99:
                await log.flush()
        await log.flush()
        await log.checkpoint()

    def more_records(records: int) -> None:
        asyncio.run_coroutine_threadsafe(grow(records), loop).result(50)

    try:
        await grow(500)
        await asyncio.to_thread(work, Layout(path), more_records)
    finally:
        await log.close()


@one_loop
@pytest.mark.parametrize("at", range(6))
async def test_a_log_that_grows_while_it_is_verified_is_good(tmp_path, at):
    def work(layout: Layout, grow: Callable[[int], None]) -> None:
        grow(100 * at)
        files = len(segments(layout))
        steps = 0

        def progress(_done: int, _all: int) -> None:
            nonlocal steps
            steps += 1
            if steps <= 3:
                grow(700)

        report = verify(layout, None, progress)
        assert report.ok, report.findings
        assert len(segments(layout)) > files + 1

    await writing(tmp_path / "audit.log", work)


@one_loop
async def test_records_that_were_there_are_found_while_the_log_grows(tmp_path):
    def work(layout: Layout, grow: Callable[[int], None]) -> None:
        before = len([record for block in Query(layout, None, None, None).blocks() for record in block])
        found: list[int] = []
        for block in Query(layout, None, None, None).blocks():
            found += [record["seq"] for record in block]
            grow(700)
            if len(found) > before:
                break
        assert found[:before] == list(range(1, before + 1))

    await writing(tmp_path / "audit.log", work)


@one_loop
async def test_what_was_listed_can_be_read_wherever_it_is_by_now(tmp_path):
    def work(layout: Layout, grow: Callable[[int], None]) -> None:
        grow(300)
        listed = segments(layout)
        before = b"".join(text for segment in listed for text in segment.chunks())
        grow(700)
        assert b"".join(text for segment in listed for text in segment.chunks()).startswith(before)
        assert b"".join(segment.read(0, 1 << 30) for segment in listed).startswith(before)
        assert overview(layout)["lastSeq"] > before.count(b"\n")

    await writing(tmp_path / "audit.log", work)


def test_a_file_that_was_empty_when_it_was_listed_stays_so(tmp_path):
    """The writer has rotated once more since: there are records between."""
    layout = Layout(tmp_path / "audit.log")
    layout.segments.mkdir(parents=True)
    layout.log.touch()
    listed = segments(layout)
    layout.log.write_bytes(b'{"seq":900,"time_ns":1,"operation":"sign"}\n')
    assert [b"".join(segment.chunks()) for segment in listed] == [b""]
    assert [b"".join(segment.chunks()) for segment in segments(layout)] == [layout.log.read_bytes()]


@one_loop
async def test_a_tile_that_becomes_full_while_it_is_read_is_read(tmp_path):
    def work(layout: Layout, grow: Callable[[int], None]) -> None:
        checkpoint = latest(layout)

        class Late(Tiles):
            def path(self, level: int, number: int) -> Path:
                found = super().path(level, number)
                if level == 0 and found.parent.suffix == ".p":
                    grow(700)  # the full tile replaces the partial one
                return found

        assert Late(layout, checkpoint.size).root() == checkpoint.root

    await writing(tmp_path / "audit.log", work)


@one_loop
async def test_a_log_that_is_pruned_while_it_is_verified_is_good(tmp_path, monkeypatch):
    log = AuditLog(str(tmp_path / "audit.log"), settings(retainDays=30, checkpointEveryRecords=10**6))
    await log.open()
    for n in range(2000):
        log.record("sign", message=b"%d" % n, result="ok", signature=bytes(64))
        if n % 100 == 99:
            await log.flush()
    await log.checkpoint()
    layout, loop, attempts = Layout(tmp_path / "audit.log"), asyncio.get_running_loop(), []

    def progress(done: int, _all: int) -> None:
        if not attempts:
            attempts.append(done)
            turn_clock(time.time_ns() + 40 * 86_400 * 10**9, monkeypatch.setattr)
            log._open._clock = SteadyClock()  # which believes it
            log.record("sign", result="ok")
            asyncio.run_coroutine_threadsafe(log._open.seal_or_say(prune=True), loop).result(50)
            assert segments(layout)[0].first > 1

    report = await asyncio.to_thread(verify, layout, Trust(retain_days=30), progress)
    await log.close()
    assert report.ok, report.findings
    assert report.pruned > attempts[0]


def test_what_reads_beside_a_signer_finds_nothing_wrong(tmp_path):
    """The program, beside a key manager that signs as fast as the module allows; audit_beside_at_length.py has more."""
    with signing(tmp_path) as layout:
        for number, verb in enumerate(["verify", "query", "prove", "mend", *["verify"] * share(4)]):
            assert look(layout, verb, number) == ""
