"""The audit log: a line for each operation, found again by time and content, whatever a crash did to its end."""

from __future__ import annotations

import asyncio
import hashlib
import json
import stat
import time
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from tests.support.audit_logs import files_at_most, keys_of
from tests.support.loops import one_loop
from tests.support.managers import opened, start

import hsmcore
from hsmcore.audit import AuditLog
from hsmcore.audit.check.trust import Trust
from hsmcore.audit.check.verify import verify
from hsmcore.audit.layout import Layout

pytestmark = pytest.mark.integration


def lines(path: Path) -> list[dict[str, Any]]:
    """The records in the file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


async def query(log: Any, *arguments: Any) -> list[dict[str, Any]]:
    return [record async for record in log.query(*arguments)]


async def test_every_operation_has_a_record(fresh_token, tmp_path):
    path = tmp_path / "folder" / "audit.log"
    token = fresh_token()
    async with opened(token.config(auditLogFile=str(path))) as manager:
        old = await manager.get_current_key_id()
        signature = await manager.sign(b"a transfer")
        await manager.sign(b"a transfer")
        await manager.sign_many([b"b", b"c"])
        with pytest.raises(hsmcore.InvalidMessage):
            await manager.sign(b"")
        new = await manager.generate_key()
        await manager.set_current_key_id(new)
        await manager.deactivate_key(old)
        with pytest.raises(hsmcore.HsmError):
            await manager.export_key_backup(new)
    records = lines(path)
    assert [(record["operation"], record.get("result")) for record in records] == [
        ("configuration-load", "ok"),
        ("login", "ok"),
        ("open", "ok"),
        ("sign", "ok"),
        ("sign", "ok"),
        ("sign", "ok"),
        ("sign", "ok"),
        ("sign", "error"),
        ("generate-key", "ok"),
        ("set-current-key", "ok"),
        ("deactivate-key", "ok"),
        ("backup", "error"),
        ("close", None),
    ]
    assert [record["seq"] for record in records] == list(range(1, 14))
    assert [record["time_ns"] for record in records] == sorted(record["time_ns"] for record in records)
    first, cached = records[3], records[4]
    assert first["message_sha256"] == hashlib.sha256(b"a transfer").hexdigest()
    assert first["message_bytes"] == 10
    assert first["signature"] == cached["signature"] == signature.hex()
    assert (first["cached"], cached["cached"]) == (False, True)
    assert first["key_id"] == old
    assert first["public_key"] == token.keys["ed25519"].public_key.hex()
    assert first["member"] == f"softhsm:{token.label}"
    assert first["level"] == "primary"
    assert first["latency_ns"] > 0
    assert records[10]["enforced"] is True
    text = path.read_text()
    assert token.pin not in text
    assert "a transfer" not in text
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@one_loop
async def test_a_failed_start_is_recorded(world, tmp_path):
    path = tmp_path / "audit.log"
    with pytest.raises(hsmcore.KeyNotFound):
        await hsmcore.create_key_manager(world.config(settings={"keyLabel": "no"}, auditLogFile=str(path))).initialize()
    _, record = lines(path)
    assert (record["operation"], record["result"], record["error"]) == ("open", "error", "KeyNotFound")


async def test_records_are_found_by_time_and_content(world, tmp_path):
    async with opened(world.config(auditLogFile=str(tmp_path / "audit.log"))) as manager:
        begun = datetime.now(UTC)
        await manager.sign(b"early")
        await asyncio.sleep(0.01)
        middle = datetime.now(UTC)
        await asyncio.sleep(0.01)
        await manager.sign(b"late")
        ended = datetime.now(UTC)
        late = hashlib.sha256(b"late").hexdigest()

        assert len(await query(manager.audit)) == 5
        assert [r["operation"] for r in await query(manager.audit, begun)] == ["sign", "sign"]
        assert [r["message_sha256"] for r in await query(manager.audit, middle, ended)] == [late]
        assert len(await query(manager.audit, begun, middle)) == 1
        assert len(await query(manager.audit, None, middle)) == 4
        assert await query(manager.audit, ended) == []
        assert await query(manager.audit, ended, begun) == []
        assert len(await query(manager.audit, begun.timestamp(), middle.timestamp())) == 1
        elsewhere = middle.astimezone(timezone(timedelta(hours=9)))
        assert len(await query(manager.audit, elsewhere, ended)) == 1
        assert len(await query(manager.audit, None, None, {"operation": "sign"})) == 2
        assert len(await query(manager.audit, None, None, {"operation": "sign", "message_sha256": late})) == 1
        assert await query(manager.audit, None, None, {"operation": "mint"}) == []
        with pytest.raises(hsmcore.HsmError, match="time zone"):
            await query(manager.audit, datetime(2026, 1, 1))  # noqa: DTZ001  # that is what is refused


async def test_what_was_signed_a_moment_ago_is_found(world, tmp_path):
    async with opened(world.config(auditLogFile=str(tmp_path / "audit.log"))) as manager:
        for n in range(20):
            receipt = await manager.sign_with_receipt(b"%d" % n)
            found = await query(manager.audit, None, None, {"seq": receipt.audit_seq})
            assert [record["signature"] for record in found] == [receipt.signature.hex()]


async def test_a_query_that_is_not_read_to_its_end_leaves_nothing(world, tmp_path):
    async with opened(world.config(auditLogFile=str(tmp_path / "audit.log"))) as manager:
        await manager.sign_many([b"%d" % n for n in range(1, 50)])
        async for record in manager.audit.query():
            assert record["operation"] == "configuration-load"
            break


async def test_the_log_can_be_read_after_close(world, tmp_path):
    async with opened(world.config(auditLogFile=str(tmp_path / "audit.log"))) as manager:
        await manager.sign(b"x")
    found = [record["operation"] for record in await query(manager.audit)]
    assert found == ["configuration-load", "login", "open", "sign", "close"]


async def test_without_a_file_nothing_is_recorded_and_nothing_can_be_asked(world):
    async with opened(world.config()) as manager:
        assert (await manager.sign_with_receipt(b"x")).audit_seq is None
        with pytest.raises(hsmcore.HsmError, match="auditLogFile"):
            await query(manager.audit)


async def test_counting_goes_on_after_a_restart(world, tmp_path):
    path = tmp_path / "audit.log"
    for n in range(3):
        async with opened(world.config(auditLogFile=str(path))) as manager:
            await manager.sign(b"%d" % n)
    assert [record["seq"] for record in lines(path)] == list(range(1, 16))


async def test_five_hundred_signatures_have_five_hundred_records(world, tmp_path):
    path = tmp_path / "audit.log"
    async with opened(world.config(auditLogFile=str(path), maxCacheSize=0)) as manager:
        messages = [b"%d" % n for n in range(500)]
        signatures = await asyncio.gather(*map(manager.sign, messages))
    records = {r["message_sha256"]: r["signature"] for r in lines(path) if r["operation"] == "sign"}
    expected = [hashlib.sha256(message).hexdigest() for message in messages]
    assert records == dict(zip(expected, (signature.hex() for signature in signatures), strict=True))


async def test_abandoned_signatures_are_recorded_as_abandoned(world, shim, tmp_path):
    path = tmp_path / "audit.log"
    config = world.config(settings={"modulePath": shim.path, "sessions": 1}, auditLogFile=str(path))
    async with opened(config) as manager:
        shim.hold()
        task = start(manager.sign(b"x"))
        await shim.until_inside(1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        with pytest.raises(hsmcore.DeadlineExceeded):
            await manager.sign(b"y", timeout=0.05)
        shim.release()
    signs = {r["result"]: r for r in lines(path) if r["operation"] == "sign"}
    assert signs.keys() == {"unclaimed", "error"}
    assert signs["error"]["error"] == "DEADLINE_EXCEEDED"
    assert signs["unclaimed"]["message_sha256"] == hashlib.sha256(b"x").hexdigest()
    assert signs["unclaimed"]["signature"]


@pytest.mark.parametrize("call", ["sign", "sign_many"])
async def test_the_digest_is_that_of_what_was_signed(world, shim, tmp_path, call):
    path = tmp_path / "audit.log"
    config = world.config(settings={"modulePath": shim.path, "sessions": 1}, auditLogFile=str(path))
    message = bytearray(b"pay 1 to Bob")
    async with opened(config) as manager:
        shim.hold()
        task = start(manager.sign(message) if call == "sign" else manager.sign_many([message]))
        await shim.until_inside(1)
        message[:] = b"pay 9 to Eve"
        shim.release()
        await task
    [record] = [record for record in lines(path) if record["operation"] == "sign"]
    assert record["message_sha256"] == hashlib.sha256(b"pay 1 to Bob").hexdigest()


async def test_a_batch_that_fails_in_part_has_a_record_of_each_signature(world, shim, tmp_path):
    path = tmp_path / "audit.log"
    config = world.config(settings={"modulePath": shim.path, "sessions": 1}, auditLogFile=str(path), maxCacheSize=0)
    messages = [b"%d" % n for n in range(10)]
    async with opened(config) as manager:
        shim.fail("C_Sign", 0x21, times=2)
        results = await manager.sign_many(messages, return_exceptions=True)
    records = [record for record in lines(path) if record["operation"] == "sign"]
    assert [record["result"] for record in records] == [
        "error" if isinstance(result, hsmcore.HsmError) else "ok" for result in results
    ]


# ---- the end of a file that a crash cut off --------------------------------------------------------------------------


async def reopened(path: Path) -> tuple[list[int], AuditLog]:
    """Open the log, record twice, close: the sequence numbers."""
    log = AuditLog(str(path))
    await log.open()
    sequence = [log.record("sign", count=n) for n in range(2)]
    await log.close()
    return sequence, log


@one_loop
@pytest.mark.parametrize("cut", [1, 5, 30])
async def test_a_line_that_was_cut_off_is_put_aside_and_recorded(tmp_path, cut):
    path = tmp_path / "audit.log"
    sequence, _ = await reopened(path)
    assert sequence == [1, 2]
    whole = path.read_bytes()
    torn = whole.splitlines()[-1][:-cut]
    path.write_bytes(whole + torn)
    sequence, log = await reopened(path)
    assert sequence == [4, 5]
    records = await query(log)
    assert [record["seq"] for record in records] == [1, 2, 3, 4, 5]
    assert path.read_bytes().startswith(whole), "what was there is still there"
    assert (records[2]["operation"], records[2]["bytes"]) == ("audit-recovered", len(torn))
    assert records[2]["sha256"] == hashlib.sha256(torn).hexdigest()
    assert (path.with_name("audit.log.d") / records[2]["file"]).read_bytes() == torn


@one_loop
async def test_a_new_line_that_lacks_only_its_end_counts(tmp_path):
    path = tmp_path / "audit.log"
    await reopened(path)
    third = path.read_bytes().splitlines()[-1].replace(b'{"seq":2,', b'{"seq":3,')
    path.write_bytes(path.read_bytes() + third)
    sequence, log = await reopened(path)
    assert sequence == [4, 5]
    assert [record["seq"] for record in await query(log)] == [1, 2, 3, 4, 5]


@one_loop
async def test_a_second_crash_before_any_record_does_not_restart_the_count(tmp_path):
    path = tmp_path / "audit.log"
    await reopened(path)
    path.write_bytes(path.read_bytes() + b'{"seq":3,"tim')
    log = AuditLog(str(path))
    await log.open()
    await log.close()
    sequence, log = await reopened(path)
    assert sequence == [4, 5]
    assert [record["seq"] for record in await query(log)] == [1, 2, 3, 4, 5]


@one_loop
@pytest.mark.parametrize(
    "line", [b"no json", b"42", b"null", b'"text"', b"[1]", b"{}", b'{"seq": "x"}', b"\xff\xfe", b""]
)
async def test_a_line_that_is_no_record_is_put_aside(tmp_path, line):
    path = tmp_path / "audit.log"
    await reopened(path)
    path.write_bytes(path.read_bytes() + line + b"\n")
    _, log = await reopened(path)
    found = await query(log, 1.0)
    assert [record.get("count") for record in found] == [0, 1, None, 0, 1]
    assert found[2]["operation"] == "audit-recovered"


@one_loop
async def test_an_empty_file_is_a_new_log(tmp_path):
    path = tmp_path / "audit.log"
    path.touch()
    assert (await reopened(path))[0] == [1, 2]


@one_loop
async def test_a_relative_path_means_the_folder_that_the_process_is_in(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("audit.log", "some/where/audit.log"):
        assert (await reopened(Path(name)))[0] == [1, 2]
        assert (tmp_path / name).stat().st_size > 0


@one_loop
async def test_a_long_log_is_read_in_pieces(tmp_path):
    path = tmp_path / "audit.log"
    log = AuditLog(str(path))
    await log.open()
    for n in range(6000):
        log.record("sign", count=n, signature=b"x" * 300)
    await log.close()
    assert path.stat().st_size > 2 << 20
    assert [record["count"] for record in await query(log)] == list(range(6000))
    assert (await reopened(path))[0] == [6001, 6002]


async def test_records_reach_the_file_by_themselves(tmp_path):
    path = tmp_path / "audit.log"
    log = AuditLog(str(path))
    await log.open()
    log.record("sign")
    until = time.monotonic() + 30
    while not path.read_bytes() and time.monotonic() < until:  # noqa: ASYNC110  # a thread writes it
        await asyncio.sleep(0.01)
    assert [record["operation"] for record in lines(path)] == ["sign"]
    await log.close()


# ---- what else is recorded, and by which key it is sealed ------------------------------------------------------------


async def test_opening_login_and_verification_are_recorded(world, tmp_path):
    path = tmp_path / "audit.log"
    async with opened(world.config(auditLogFile=str(path))) as manager:
        signature = await manager.sign(b"x")
        assert await manager.verify(b"x", signature)
        assert not await manager.verify(b"y", signature)
    records = lines(path)
    assert [record["operation"] for record in records] == [
        *("configuration-load", "login", "open", "sign", "verify", "verify", "close"),
    ]
    assert [record["valid"] for record in records if record["operation"] == "verify"] == [True, False]
    assert records[0]["config_sha256"] == manager.config.sha256()


async def test_a_refused_login_is_recorded(fresh_token, tmp_path):
    path = tmp_path / "audit.log"
    config = fresh_token().config(settings={"pin": "no-such-pin"}, auditLogFile=str(path))
    with pytest.raises(hsmcore.LoginError):
        await hsmcore.create_key_manager(config).initialize()
    assert [(r["operation"], r.get("error")) for r in lines(path)][1:] == [
        ("login", "PIN_INCORRECT"),
        ("open", "PinIncorrect"),
    ]
    assert "no-such-pin" not in path.read_text()


async def test_checkpoints_are_signed_in_the_hsm(fresh_token, tmp_path):
    path = tmp_path / "audit.log"
    token = fresh_token()
    async with opened(token.config()) as manager:
        key_id = await manager.generate_key()
        public_key = {version.id: version.public_key for version in manager.keys()}[key_id]  # noqa: SIM118  # a list
    config = token.config(auditLogFile=str(path), audit={"signingKey": {"hsmKeyId": key_id}})
    for _ in range(2):
        async with opened(config) as manager:
            await manager.sign(b"x")
    layout = Layout(path)
    [key] = keys_of(layout)
    assert key.public_key == public_key
    assert not layout.default_key.exists()
    report = verify(layout, Trust(keys=[key]))
    assert report.ok, report.findings
    assert (report.records, report.unsealed) == (10, 0)


@pytest.mark.parametrize("durability", ["fsync", "write", "interval"])
async def test_whatever_durability_is_wanted_all_is_written(world, tmp_path, durability):
    path = tmp_path / "audit.log"
    config = world.config(auditLogFile=str(path), audit={"durability": durability, "flushIntervalMs": 20})
    async with opened(config) as manager:
        receipt = await manager.sign_with_receipt(b"x")
        if durability != "interval":
            assert lines(path)[-1]["seq"] == receipt.audit_seq, "handed out before it was recorded"
    assert [record["seq"] for record in lines(path)] == list(range(1, 6))


async def test_what_cannot_be_recorded_is_not_handed_out(world, tmp_path):
    path = tmp_path / "audit.log"
    async with opened(world.config(auditLogFile=str(path), maxCacheSize=0)) as manager:
        await manager.sign(b"x")
        with files_at_most(path.stat().st_size + 10), pytest.raises(hsmcore.AuditUnavailable):
            await manager.sign(b"y")
        async with asyncio.timeout(30):
            while True:
                try:
                    await manager.sign(b"z")
                    break
                except hsmcore.AuditUnavailable:
                    await asyncio.sleep(0.05)
    assert verify(Layout(path)).ok
