"""The second witness: what the audit logs of the hosts say was bound, when the database has lost it."""

from __future__ import annotations

import asyncio
import random
from contextlib import AsyncExitStack

import pytest
from tests.support.audit_logs import SMALLEST_SEGMENT, settings
from tests.support.fleet_hosts import BLOCKS, FLEET, KEY, Host, beside, copy, digest, join, lose_from, put_back
from tests.support.loops import one_loop

from hsmcore.audit import AuditLog
from hsmcore.audit.backwards import newest_first
from hsmcore.audit.layout import Layout
from hsmcore.audit.segment import segments
from hsmcore.errors import AuditUnavailable, BadArgument, FleetBehind
from hsmcore.fleet import rows
from hsmcore.recovery import incident, witness
from hsmcore.state import StoreError, domains

pytestmark = [pytest.mark.integration, one_loop]
FIRST, SECOND = ("4711", "1"), ("4711", "2")


class Bytes:
    """The secret of a seal."""

    def resolve(self):
        return bytearray(b"a secret of more than 32 bytes, for tests only")


async def records(host, operation):
    return [record async for record in host.log.query(match={"operation": operation})]


def everything(host):
    """What a host's log has, by position."""
    found = {}
    for block in host.log.newest_ordered(1 << 40):
        for record in block:
            found.setdefault(record["position"], set()).add(record["message_sha256"])
    return found


async def test_a_database_that_has_everything_opens_no_incident(tmp_path):
    async with Host(tmp_path, "a") as host:
        assert (await host.witness.attend()).number == 0
        for position in range(50):
            await host.sign(position)
    async with Host(tmp_path, "a") as host:
        standing = await host.witness.attend()
        assert (standing.number, standing.open) == (0, False)
        await host.sign(50)
        assert await records(host, "fleet-incident") == []


@pytest.mark.parametrize("secret", [None, Bytes()], ids=["plain", "sealed"])
async def test_what_the_database_lost_is_put_back_from_the_log(tmp_path, secret):
    async with Host(tmp_path, "a", secret) as host:
        await host.witness.attend()
        await host.sign(1)
    copy(tmp_path, "older")
    async with Host(tmp_path, "a", secret) as host:
        await host.witness.attend()
        for position in (2, 3, 7):
            await host.sign(position)
        whole = await host.digests()
    put_back(tmp_path, "older")
    async with Host(tmp_path, "a", secret) as host:
        assert await host.refused(2, "another") == "FleetBehind"  # the log was not compared yet
        standing = await host.witness.attend()
        assert (standing.number, standing.open) == (1, False)
        assert await host.digests() == whole
        assert await host.store.run(domains.everything) == {KEY: domains.KeyDomain("chain", ())}
        for position in (1, 2, 3, 7):
            assert await host.refused(position, "another") == "DoubleSign"
            assert await host.refused(position) == ""
        assert await host.refused(8) == ""
        [found] = await records(host, "fleet-incident")
        assert (found["incident"], "position 7 of chain/block" in found["reason"]) == (1, True)
        [answer] = await records(host, "fleet-answer")
        assert (answer["count"], answer["state"]) == (3, "closed")
    async with Host(tmp_path, "a", secret) as host:
        assert (await host.witness.attend()).number == 1  # nothing is missing any more


async def test_what_is_bound_and_not_in_the_log_yet_is_remembered(tmp_path):
    async with Host(tmp_path, "a") as host:
        await host.witness.attend()
        await host.sign(1)
        await host.sign(2, recorded=False)
        lose_from(tmp_path, 2)
        host.witness.doubt()
        assert await host.refused(2, "another") == "FleetBehind"
        assert (await host.witness.attend()).number == 1
        assert await host.refused(2, "another") == "DoubleSign"


async def test_no_host_binds_until_all_of_them_have_answered(tmp_path):
    async with AsyncExitStack() as stack:
        hosts = [await stack.enter_async_context(Host(tmp_path, name)) for name in "abc"]
        for host in hosts:
            await host.witness.attend()
        join(tmp_path, *"abc")
        for position in range(9):
            await hosts[position // 3].sign(position)
        lose_from(tmp_path, 2)
        for number, host in enumerate(hosts):
            host.witness.doubt()
            assert await host.refused(20) == "FleetBehind"
            assert (await host.witness.attend()).waiting == tuple("bc"[number:])
            if number < 2:
                assert [await one.refused(20) for one in hosts] == ["FleetBehind"] * 3
        assert [await one.refused(position, "another") for one in hosts for position in range(9)] == ["DoubleSign"] * 27
        assert await hosts[0].refused(20) == ""


async def test_another_database_is_an_incident_although_nothing_is_missing(tmp_path):
    async with Host(tmp_path, "a", at=FIRST) as one, Host(tmp_path, "b", at=FIRST) as other:
        for host in (one, other):
            await host.witness.attend()
        join(tmp_path, *"ab")
        await one.sign(1)
        await other.sign(2)
        one.store.at = SECOND  # before anybody compared anything
        assert await one.refused(3) == "FleetBehind"
        one.witness.doubt()
        assert (await one.witness.attend()).waiting == ("b",)
        assert await one.refused(3) == "FleetBehind"
        other.store.at = SECOND
        assert await other.refused(3) == "FleetBehind"
        assert not (await other.witness.attend()).open
        assert [await one.refused(3), await other.refused(4)] == ["", ""]


@pytest.mark.parametrize("server", ["another", "the same"])
async def test_an_incident_is_answered_by_what_was_compared_behind_it(tmp_path, server):
    """The database loses a row when the log has just been compared. Until the row is back, no other host binds."""
    async with Host(tmp_path, "a", at=FIRST) as one, Host(tmp_path, "b", at=FIRST) as other:
        for host in (one, other):
            await host.witness.attend()
        join(tmp_path, *"ab")
        for position in (1, 2, 3):
            await one.sign(position)
        signed, compare, answer = [], one.witness.compare, one.witness._answer

        async def compares(*args):
            found = await compare(*args)
            if not signed:
                signed.append("lost")
                lose_from(tmp_path, 2)
                if server == "another":
                    for host in (one, other):
                        host.store.at = SECOND
                        host.witness.doubt()
                else:
                    other.witness.lost("only the other one has seen it")
                    await other.witness.attend()
            return found

        async def answers(*args):
            await answer(*args)
            await other.witness.attend()
            signed.append(await other.refused(2, "another"))

        one.witness.compare, one.witness._answer = compares, answers
        one.witness.doubt()
        assert not (await one.witness.attend()).open
        assert signed[1:]
        assert set(signed[1:]) == {"DoubleSign"}
        assert [await host.refused(2, "another") for host in (one, other)] == ["DoubleSign"] * 2


async def test_a_host_that_never_comes_back_is_reconciled_away(tmp_path):
    async with Host(tmp_path, "gone", at=FIRST) as gone:
        await gone.witness.attend()
        join(tmp_path, "gone")
        for position in (1, 2, 5):
            await gone.sign(position)
        await gone.witness.write_floors()
    lose_from(tmp_path, 2)
    async with Host(tmp_path, "a", at=SECOND) as host:
        standing = await host.witness.attend()
        assert standing.waiting == ("gone",)
        assert await host.refused(9) == "FleetBehind"
        hosts, floors = await host.store.run(
            lambda on: incident.reconcile(on, FLEET, "the machine burned", [(BLOCKS, 6), ("chain/state-root", 3)])
        )
        assert (hosts, floors) == (["gone"], {BLOCKS: 6, "chain/state-root": 3})
        assert [await host.refused(position) for position in (2, 5, 6, 7)] == ["PolicyRefused"] * 3 + [""]
        with pytest.raises(BadArgument, match="no incident"):
            await host.store.run(lambda on: incident.reconcile(on, FLEET, "again"))
    async with Host(tmp_path, "gone", at=SECOND) as gone:  # it does come back
        standing = await gone.witness.attend()
        assert (standing.number, standing.open) == (2, True) or not standing.open
        rows = await gone.store.run(lambda on: on.exec_driver_sql("SELECT name, retired FROM fleet_host").all())
        assert dict(rows)["gone"] == 0


async def test_a_host_that_was_retired_belongs_to_the_fleet_again_when_it_has_answered(tmp_path):
    async with Host(tmp_path, "gone", at=FIRST) as gone:
        await gone.witness.attend()
        join(tmp_path, "gone")
        await gone.sign(1)
        await gone.sign(8)
    lose_from(tmp_path, 2)
    async with Host(tmp_path, "a", at=SECOND) as host:
        await host.witness.attend()
        await host.store.run(lambda on: incident.reconcile(on, FLEET, "gone for good", [(BLOCKS, 6)]))
        async with Host(tmp_path, "gone", at=SECOND) as gone:
            standing = await gone.witness.attend()  # it signed more than anybody knew
            assert (standing.number, standing.waiting) == (2, ("a",))
            assert await host.refused(8, "another") == "FleetBehind"
            await host.witness.attend()
            assert await host.refused(8, "another") == "DoubleSign"
            assert await host.refused(7, "another") == ""


async def test_two_payloads_at_one_position_are_reported_and_neither_is_signed_again(tmp_path):
    async with Host(tmp_path, "a") as host:
        await host.witness.attend()
        for position in (1, 2, 3):
            await host.sign(position)
    other = digest("x")
    beside(tmp_path, f"UPDATE bound SET digest = '{other}', holder = 'b:9' WHERE position = 2")  # noqa: S608
    async with Host(tmp_path, "a") as host:
        assert (await host.witness.attend()).number == 1
        assert [await host.refused(2, text) for text in ("", "x", "y")] == ["PolicyRefused"] * 3
        assert [await host.refused(3), await host.refused(3, "x")] == ["", "DoubleSign"]
        [conflict] = await records(host, "fleet-conflict")
        assert (conflict["position"], conflict["holder"], conflict["sha256"]) == (2, "b:9", digest("x"))


async def test_rows_at_or_below_a_floor_are_not_missed(tmp_path):
    async with Host(tmp_path, "a") as host:
        await host.witness.attend()
        for position in range(6):
            await host.sign(position)
        await host.mark.raise_floor(BLOCKS, 3, "final")
        host.witness.doubt()
        assert (await host.witness.attend()).number == 0
        assert sorted(await host.digests()) == [4, 5]


async def test_what_a_host_noted_in_the_database_is_missed_by_the_others(tmp_path):
    async with Host(tmp_path, "a") as one, Host(tmp_path, "b") as other:
        await one.witness.attend()
        await other.witness.attend()
        await one.sign(4)
        await one.witness.write_floors()
        beside(tmp_path, "DELETE FROM bound", "DELETE FROM watermark")
        other.witness.doubt()
        assert (await other.witness.attend()).number == 1
        assert await other.refused(4, "another") == "DoubleSign"


async def test_a_watermark_that_went_back_is_missed(tmp_path):
    async with Host(tmp_path, "a") as host:
        await host.witness.attend()
        await host.sign(4)
        beside(tmp_path, "UPDATE watermark SET high = 2, bits = '1'")
        host.witness.doubt()
        assert (await host.witness.attend()).number == 1
        [row] = await host.store.run(lambda on: on.exec_driver_sql("SELECT high FROM watermark").all())
        assert row[0] == 4


async def test_a_crash_while_rows_are_put_back_loses_none(tmp_path, monkeypatch):
    monkeypatch.setattr(witness, "_GROUP", 1024)
    monkeypatch.setattr(witness, "LEAST", 1)
    monkeypatch.setattr(witness, "_SLACK_NS", -(1 << 62))  # the first block that agrees ends the reading
    async with Host(tmp_path, "a") as host:
        for position in range(3000):
            host.record(position, position)
    for _ in range(2):
        async with Host(tmp_path, "a") as host:
            put, calls = host.witness._put_back, []

            def dies(connection, *, number, rows, put=put, calls=calls):
                calls.append(rows)
                if len(calls) > 1:
                    raise StoreError("killed here")
                return put(connection, number=number, rows=rows)

            host.witness._put_back = dies
            with pytest.raises(StoreError, match="killed"):
                await host.witness.attend()
            assert await host.refused(2999, "another") == "FleetBehind"
    async with Host(tmp_path, "a") as host:
        assert not (await host.witness.attend()).open
        assert sorted(await host.digests()) == list(range(3000))


async def test_what_lies_further_back_than_is_read_is_refused(tmp_path, monkeypatch):
    async with Host(tmp_path, "a") as host:
        await host.witness.attend()
        for position in range(2000):
            host.record(position, position)
            if position % 200 == 0:
                await host.log.flush()
    monkeypatch.setattr(witness, "MOST_BYTES", SMALLEST_SEGMENT)
    async with Host(tmp_path, "a") as host:
        await host.witness.attend()
        [row] = await host.store.run(lambda on: on.exec_driver_sql("SELECT floor, reason FROM watermark").all())
        assert (row[0], "was not read so far back" in row[1]) == (1999, True)
        assert [await host.refused(position, "another") for position in (0, 1500, 1999, 2000)] == [
            *["PolicyRefused"] * 3,
            "",
        ]


async def test_what_the_log_no_longer_has_is_refused(tmp_path):
    """The database lost more than the log keeps: nobody can tell what was bound before."""
    async with Host(tmp_path, "a") as host:
        await host.witness.attend()
        for position in range(2000):
            host.record(position, position)
            if position % 200 == 0:
                await host.log.flush()
        await host.log.flush()
        await host.log.checkpoint()
    layout = Layout(tmp_path / "a" / "audit.log")
    oldest, *_, newest = segments(layout)
    assert oldest.first == 1 < newest.first
    oldest.path.unlink()
    async with Host(tmp_path, "a") as host:
        await host.witness.attend()
        assert [await host.refused(position, "another") for position in (0, 1999, 2000)] == ["PolicyRefused"] * 2 + [""]


async def test_a_healthy_log_is_read_from_its_end_only(tmp_path, monkeypatch):
    async with Host(tmp_path, "a") as host:
        await host.witness.attend()
        for position in range(3000):
            host.log.record("sign", message=b"%d" % position, result="ok", domain=BLOCKS, position=position)
            if position % 200 == 0:
                await host.log.flush()
        await host.log.flush()
        host.witness.doubt()
        await host.witness.attend()
    seen = []
    real = AuditLog.newest_ordered

    def watched(log, most):
        for block in real(log, most):
            seen.extend(block)
            yield block

    monkeypatch.setattr(AuditLog, "newest_ordered", watched)
    monkeypatch.setattr(witness, "_SLACK_NS", -(1 << 62))
    async with Host(tmp_path, "a") as host:
        await host.witness.attend()
    assert witness.LEAST <= len(seen) < 3000


async def test_a_clock_that_was_set_back_ends_no_reading_early(tmp_path):
    """A row of before, which is of a later time than what was bound since, proves nothing when it is signed again."""
    async with Host(tmp_path, "a") as host:
        await host.witness.attend()
        for position in (1, 2, 3):
            await host.sign(position)
        for number in range(3000):
            host.record(1, f"{BLOCKS} 1")
            if number % 200 == 0:
                await host.log.flush()
    lose_from(tmp_path, 2)
    beside(tmp_path, "UPDATE bound SET bound_ns = bound_ns + 600000000000")
    async with Host(tmp_path, "a") as host:
        assert (await host.witness.attend()).number == 1
        assert await host.refused(2, "another") == "DoubleSign"


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE fleet SET incident = 'many'",
        "UPDATE fleet SET incident = -1",
        "UPDATE fleet SET incident = 9223372036854775807",
        "UPDATE fleet SET epoch = 1.5",
        "UPDATE fleet SET timeline = x'00ff'",
        "INSERT INTO fleet_host VALUES ('x', '', 0, '', 'no', 0, '', NULL, NULL, NULL, NULL)",
        "INSERT INTO fleet_host VALUES ('x', '', 0, '', 0, 'no', '', NULL, NULL, NULL, NULL)",
        "INSERT INTO fleet_host VALUES (x'00ff', '', 0, '', 0, 0, '', NULL, NULL, NULL, NULL)",
        "INSERT INTO fleet_floor VALUES ('x', 'chain/block', 3, 'no digest')",
        "INSERT INTO fleet_floor VALUES ('x', 'chain/block', 'no', '" + "0" * 64 + "')",
        "INSERT INTO fleet_floor VALUES ('x', x'00ff', 1, '" + "0" * 64 + "')",
        "UPDATE watermark SET high = 'no'",
        "UPDATE watermark SET bits = 'no'",
        "UPDATE bound SET bound_ns = 'no'",
        "UPDATE bound SET bound_ns = -1",
        "UPDATE bound SET holder = x'00ff'",
    ],
)
async def test_a_hostile_database_is_an_error_of_the_store(tmp_path, statement):
    async with Host(tmp_path, "a") as host:
        await host.witness.attend()
        await host.sign(1)
        beside(tmp_path, statement)
        host.witness.doubt()
        with pytest.raises(StoreError):
            await host.witness.attend()
        assert await host.refused(2) in ("FleetBehind", "StoreError")


async def test_a_log_that_cannot_be_read_leaves_the_fence_shut(tmp_path):
    async with Host(tmp_path, "a") as host:
        await host.witness.attend()
        await host.sign(1)
        host.witness.doubt()
        await host.log.flush()
        (tmp_path / "a" / "audit.log.d" / "segments" / "00000000000000000000.jsonl.zst").write_bytes(b"no frames")
        with pytest.raises(AuditUnavailable, match="cannot be read"):
            await host.witness.attend()
        assert await host.refused(7) == "FleetBehind"


async def test_a_fence_without_a_fleet_is_shut(tmp_path):
    async with Host(tmp_path, "a") as host:
        await host.witness.attend()
        await host.sign(1)
        beside(tmp_path, "DELETE FROM fleet")
        row = rows.shared(await host.store.exchange([rows.sharing(FLEET)], lambda answers: (answers[0], [])))
        assert row.is_free
        assert not row.is_held_by("a:1:abcd", row.epoch)
        incident.require_same(FIRST, FIRST)
        with pytest.raises(FleetBehind):
            incident.require_same(FIRST, SECOND)


async def test_records_of_others_in_the_log_are_not_taken_for_binds(tmp_path):
    async with Host(tmp_path, "a") as host:
        log = host.log
        for fields in (
            {"position": -1},
            {"position": 1 << 63},
            {"position": True},
            {"position": 1.5},
            {"operation": "command"},
            {"message": None},
        ):
            whole = {"operation": "sign", "message": b"x", "domain": BLOCKS, "position": 3} | fields
            log.record(whole.pop("operation"), **whole)
        assert (await host.witness.attend()).number == 0
        log.record("sign", message=b"x", domain=BLOCKS, position=3)
        host.witness.doubt()
        assert (await host.witness.attend()).number == 1


async def test_a_log_is_read_backwards_over_segments_old_and_new(tmp_path):
    log = AuditLog(str(tmp_path / "audit.log"), settings(compress=True))
    await log.open()
    for position in range(3000):
        log.record("sign", message=b"%d" % position, domain=BLOCKS, position=position, result="ok")
        log.record("sign", message=b"plain", result="ok")
        if position % 100 == 0:
            await log.flush()
    await log.flush()
    whole = [record["position"] for block in log.newest_ordered(1 << 40) for record in block]
    assert whole == list(range(3000))[::-1]
    first = next(newest_first(Layout(tmp_path / "audit.log"), b'"position":', 1 << 40))
    assert first[0]["position"] == 2999
    cut = list(log.newest_ordered(1))
    assert cut[-1] == []
    assert len(cut) == 2
    await log.close()
    assert [record["position"] for block in log.newest_ordered(1 << 40) for record in block] == whole


async def test_a_log_that_grows_while_it_is_read_is_read_whole(tmp_path):
    log = AuditLog(str(tmp_path / "audit.log"), settings())
    await log.open()
    for position in range(2000):
        log.record("sign", message=b"%d" % position, domain=BLOCKS, position=position, result="ok")
    await log.flush()
    found, more = [], 2000
    for block in log.newest_ordered(1 << 40):
        found += [record["position"] for record in block]
        for position in range(more, more + 500):  # enough for a new segment
            log.record("sign", message=b"%d" % position, domain=BLOCKS, position=position, result="ok")
        more += 500
        await log.checkpoint()
    assert found == sorted(found, reverse=True)
    assert set(range(found[0])) <= set(found)
    await log.close()


async def test_whatever_is_lost_no_position_gets_two_digests(tmp_path):
    """Seeded: three hosts sign in turn, the database goes back to a moment before, the hosts come back in any order."""
    for seed in range(6):
        await _schedule(tmp_path / str(seed), random.Random(seed))


async def _schedule(folder, chance):
    folder.mkdir()
    timeline = 1
    signed = {}
    async with AsyncExitStack() as stack:
        hosts = [await stack.enter_async_context(Host(folder, name, at=("4711", str(timeline)))) for name in "abc"]
        for host in hosts:
            await host.witness.attend()
        join(folder, *"abc")

        async def sign(host, position):
            text = f"{host.name} {position} {chance.random()}"
            if await host.refused(position, text) == "":
                signed.setdefault(position, set()).add(digest(text))

        for _ in range(8):
            for _ in range(chance.randrange(12)):
                await sign(chance.choice(hosts), chance.randrange(30))
            if chance.random() < 0.7:
                some = chance.randrange(7)
                lost = f"DELETE FROM bound WHERE position % 7 = {some}"  # noqa: S608  # a number of the test's own
                beside(folder, lost, "DELETE FROM watermark")
                timeline += 1
                for host in chance.sample(hosts, 3):
                    host.store.at = ("4711", str(timeline))
                    host.witness.doubt()
                for host in chance.sample(hosts, 3):
                    for _ in range(chance.randrange(4)):
                        await sign(chance.choice(hosts), chance.randrange(30))
                    await host.witness.attend()
        await asyncio.gather(*(host.witness.attend() for host in hosts))
        bound = await hosts[0].digests()
    assert signed
    assert [position for position, digests in signed.items() if len(digests) > 1] == []
    assert {position: {text} for position, text in bound.items()} == signed
