"""Hosts of a fleet without HSMs, against a database that goes back, forgets a host, or holds what none can read."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.sql import SQL, Identifier
from tests.support.attending import Host, attending
from tests.support.fleet_hosts import BLOCKS
from tests.support.loops import one_loop
from tests.support.managers import becomes, until
from tests.support.postgres import Cluster, cluster, fleet

from hsmcore.config import Policy
from hsmcore.config.fleet import Fleet
from hsmcore.fleet import machine
from hsmcore.fleet.membership import Membership
from hsmcore.fleet.orders import order
from hsmcore.manager.policy import watermark
from hsmcore.state import Store, StoreError

pytestmark = [pytest.mark.integration, one_loop]
TTL = 1000


class Shared:
    """The fleet's database."""

    def __init__(self, server: Cluster, folder: Path) -> None:
        self._server, self._folder = server, folder
        self._url = server.database()
        self._database = self._url.rsplit("/", 1)[1]

    def place(self, host: str, **more: Any) -> Fleet:
        return fleet(self._url, **{"host": host, "ttlMs": TTL, **more})

    @contextmanager
    def beside(self) -> Iterator[psycopg.Connection[Any]]:
        """A transaction that is none of a host's."""
        with self._server.connect(self._database) as on, on.transaction():
            on.execute(SQL("SET search_path TO {}").format(Identifier("hsmcore_tests")))
            yield on

    def ask(self, statement: str) -> list[tuple[Any, ...]]:
        with self.beside() as on:
            done = on.execute(statement.encode())
            return done.fetchall() if done.description else []

    def host(self, name: str, **more: Any) -> AbstractAsyncContextManager[Host]:
        return attending(self.place(name, **more), self._folder / name)


@pytest.fixture
def shared(postgres: Cluster, tmp_path: Path) -> Shared:
    return Shared(postgres, tmp_path)


async def test_a_database_that_goes_back_under_its_connections_is_an_incident(shared):
    """The copy is of before the last bind, the host that bound it is gone, and no connection was lost."""
    async with shared.host("b", claim="manual") as b:
        async with shared.host("a") as a:
            await until(lambda: a.member.state == "holder")
            assert [await a.sign(position) for position in (1, 2)] == ["", ""]
            [before] = shared.ask("SELECT epoch, holder, host, renewals FROM fleet")
            [mark] = shared.ask("SELECT high, bits FROM watermark")
            assert await a.sign(3) == ""
            await until(lambda: b.member.holder == before[1])
        await until(lambda: b.member.holder == "")  # it has released the epoch
        with shared.beside() as on:
            on.execute("UPDATE fleet SET released = 0, epoch = %s, holder = %s, host = %s, renewals = %s", before)
            on.execute("UPDATE watermark SET high = %s, bits = %s", mark)
            on.execute("DELETE FROM bound WHERE position = 3")
            on.execute("DELETE FROM fleet_floor")
        await until(lambda: b.member.incident != 0)
        await b.member.claim()
        assert await b.sign(3, "another") == "FleetBehind"
        assert shared.ask("SELECT position FROM bound ORDER BY 1") == [(1,), (2,)]
        async with shared.host("a", claim="manual"):
            await until(lambda: b.member.incident == 0 and b.member.state == "holder")
            b.member.caught_up(BLOCKS, 3)
            assert await b.sign(3, "another") == "DoubleSign"
            assert await b.sign(4) == ""


async def test_a_host_that_is_spoken_for_by_another_process_renews_no_more(shared):
    async with shared.host("a") as a, shared.host("b") as b:
        await until(lambda: "holder" in (a.member.state, b.member.state))
        first, second = (a, b) if a.member.state == "holder" else (b, a)
        shared.ask(f"UPDATE fleet_host SET instance = 'another' WHERE name = '{first.member.host}'")  # noqa: S608
        await until(lambda: second.member.state == "holder")
        assert (first.member.state, first.member.lease.is_over) == ("follower", True)


async def test_a_host_that_the_database_forgot_is_none_that_another_process_speaks_for(shared):
    async with shared.host("a") as a:
        await until(lambda: a.member.state == "holder")
        shared.ask("DELETE FROM fleet_host")
        await until(lambda: shared.ask("SELECT name, instance FROM fleet_host WHERE state = 'holder'") != [])
        assert await a.sign(1) == ""
        await until(lambda: a.member.state == "holder")  # a renewal may be late
        assert a.member.claims == 1


async def test_a_row_that_is_not_understood_stops_a_host_only_as_long(shared):
    async with shared.host("a") as a, shared.host("b", claim="manual") as b:
        await until(lambda: a.member.state == "holder")
        failed = a.member.renewals_failed
        [(epoch,)] = shared.ask("SELECT epoch FROM fleet")
        shared.ask("UPDATE fleet SET epoch = -1")
        await until(lambda: a.member.renewals_failed > failed)
        await until(lambda: a.member.state == "doubtful")
        await until(lambda: "not of hsmcore's making" in b.member.describe()["reason"])
        shared.ask(f"UPDATE fleet SET epoch = {epoch}")  # noqa: S608
        await until(lambda: a.member.state == "holder")
        await until(lambda: b.member.describe()["reason"] == "")


async def test_a_host_alone_signs_again_some_time_after_its_release(shared):
    async with shared.host("a", ttlMs=400) as a:
        await until(lambda: a.member.state == "holder")
        await a.member.release("a test")
        assert a.member.state == "follower"
        await until(lambda: a.member.state == "holder")
        assert (a.member.epoch, await a.sign(1)) == (2, "")


async def test_a_host_alone_signs_again_at_the_end_of_its_drain(shared, monkeypatch):
    """Also before the time has passed that it leaves the epoch to others after a release."""
    monkeypatch.setattr(machine, "RESTS", 10**6)
    async with shared.host("a") as a:
        await until(lambda: a.member.state == "holder")
        store = await Store.open(shared.place("a"))
        await store.run(lambda on: order(on, "a", "drain", "kernel update"))
        await until(lambda: a.member.state == "follower" and a.member.drained)
        await store.run(lambda on: order(on, "a", "drain", None))
        await store.close()
        await until(lambda: a.member.state == "holder")
        assert (a.member.epoch, await a.sign(1)) == (2, "")


@pytest.mark.parametrize("claim", ["auto", "manual"])
async def test_a_claim_that_is_under_way_when_a_host_closes_is_given_back(shared, claim):
    async with shared.host("c", claim="manual"):  # makes the tables
        member = await Membership.open(shared.place("a", claim=claim))
        with shared.beside() as on:
            on.execute("SELECT * FROM fleet FOR UPDATE")
            member.begin(lambda *_, **__: None)
            asked = asyncio.create_task(member.claim()) if claim == "manual" else None
            await until(lambda: member.state == "claiming")
            closing = asyncio.create_task(member.close())
            await asyncio.sleep(0)
        await closing
        if asked is not None:
            await asyncio.wait({asked})
            asked.exception()
        assert shared.ask("SELECT released FROM fleet") == [(1,)]


async def test_a_server_that_does_not_say_which_one_it_is_stays_unused(tmp_path):
    """It was started again, so what it has is to be compared: also when the first question after it failed."""
    connected = []
    with cluster() as server:
        url = server.database()
        store = await Store.open(fleet(url))
        store.on_connect(lambda: connected.append(store.identity))
        database = url.rsplit("/", 1)[1]
        system = store.identity
        server.execute("REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC", database)
        server.restart()
        for _ in range(2):
            with pytest.raises(StoreError, match="pg_control_system"):
                await store.run(lambda on: None)
        assert connected == []
        server.execute("GRANT EXECUTE ON FUNCTION pg_control_system() TO PUBLIC", database)
        await store.run(lambda on: None)
        assert connected == [system]
        await store.close()


async def test_a_holder_binds_nothing_in_a_database_that_went_back_under_it(shared):
    """Also before its next renewal. The first bind finds it, and the log puts the row back."""
    async with shared.host("a", ttlMs=4 * TTL) as a:
        await until(lambda: a.member.state == "holder")
        assert await a.sign(1) == ""
        await a.member._renew()
        with shared.beside() as on:
            on.execute("UPDATE fleet SET renewals = 0")
            on.execute("UPDATE watermark SET high = -1, bits = '0'")
            on.execute("DELETE FROM bound")
            on.execute("DELETE FROM fleet_floor")
        # It waits for the comparison; an incident that is open refuses it.
        assert await a.sign(1, "another") in ("FleetBehind", "DoubleSign")
        await until(lambda: a.member.state == "holder")
        assert await a.sign(1, "another") == "DoubleSign"
        assert await a.sign(1) == ""


@pytest.mark.parametrize(
    "losses",
    [
        ("DELETE FROM bound WHERE position > 10", "UPDATE watermark SET high = 10, bits = '1'"),
        ("DELETE FROM bound WHERE position = 20",),
        ("UPDATE bound SET digest = repeat('0', 64) WHERE position = 20",),
        ("DELETE FROM watermark", "DELETE FROM bound"),
    ],
    ids=["both tables are older", "a row is gone", "a row has another digest", "both tables are empty"],
)
async def test_rows_that_go_back_alone_are_missed_by_the_process_that_bound_them(shared, losses):
    """The fleet's row stays as it is, and so does each connection. The log puts the rows back."""
    async with shared.host("a") as a:
        await until(lambda: a.member.state == "holder")
        for position in range(31):
            assert await a.sign(position) == ""
        with shared.beside() as on:
            for loss in losses:
                on.execute(loss)
        # It may wait until the loss is answered.
        assert await a.sign(20, "another") in ("FleetBehind", "DoubleSign", "PolicyRefused")
        await until(lambda: shared.ask("SELECT incident FROM fleet") == [(1,)])
        refused = ["FleetBehind"]

        async def answered() -> bool:
            refused.append(await a.sign(20, "another"))
            return refused[-1] != "FleetBehind"

        await becomes(answered)
        assert refused[-1] in ("DoubleSign", "PolicyRefused")
        assert await a.sign(31) == ""
        assert [await a.sign(position) for position in (21, 30)] == ["", ""]
        assert await a.sign(30, "another") == "DoubleSign"


async def test_a_bind_whose_answer_was_lost_is_not_undone_by_the_next_one(shared):
    """The server still commits it, waiting for its standby, when the host binds a lower position on another
    connection."""
    async with shared.host("a", ttlMs=8 * TTL) as a:
        await until(lambda: a.member.state == "holder")
        assert await a.sign(5) == ""
        with shared.beside() as on:
            on.execute("INSERT INTO bound SELECT domain, 9, digest, holder, bound_ns, '' FROM bound")
            on.execute("UPDATE watermark SET high = 9, bits = '11'")
            lower = asyncio.create_task(a.sign(7))
            waits = f"SELECT count(*) FROM pg_stat_activity WHERE {on.info.backend_pid} = ANY(pg_blocking_pids(pid))"  # noqa: S608
            await until(lambda: shared.ask(waits) == [(1,)])
        assert await lower == ""  # it has read again
        assert shared.ask("SELECT high, bits FROM watermark") == [(9, "15")]


async def test_rows_that_go_back_between_the_reading_and_the_writing_of_a_bind_are_missed(shared):
    async with shared.host("a", ttlMs=8 * TTL) as a:
        await until(lambda: a.member.state == "holder")
        assert [await a.sign(position) for position in (5, 6)] == ["", ""]
        take = a.mark._take

        def late(*given: Any) -> Any:
            a.mark._take = take
            shared.ask("DELETE FROM bound WHERE position = 6")
            shared.ask("UPDATE watermark SET high = 5, bits = '1'")
            return take(*given)

        a.mark._take = late
        assert await a.sign(7) in ("", "FleetBehind")
        await until(lambda: shared.ask("SELECT incident FROM fleet") == [(1,)])
        await until(lambda: a.member.incident == 0 and a.member.state == "holder")
        assert [await a.sign(position) for position in (6, 7)] == ["", ""]
        assert await a.sign(6, "another") == "DoubleSign"
        assert shared.ask("SELECT high, bits FROM watermark") == [(7, "7")]


async def test_the_holder_gives_up_positions_and_no_other_host(shared, monkeypatch):
    monkeypatch.setattr(watermark, "_LOOK_SECONDS", 0.05)
    domain = BLOCKS.partition("/")[0]
    policy = Policy.model_validate({"kinds": ["block"], "domain": domain, "maxAhead": 1024, "keepPositions": 1024})
    looks = []
    async with shared.host("a", ttlMs=60_000) as a, shared.host("b", ttlMs=60_000, claim="manual") as b:
        await until(lambda: a.member.state == "holder")
        for position in (100, 1100, 2100, 3100):
            assert await a.sign(position) == ""
        require = b.member.require
        monkeypatch.setattr(b.member, "require", lambda: looks.append(1) or require())
        b.mark.begin(policy, b.log)
        await until(lambda: len(looks) > 2)
        assert shared.ask("SELECT floor FROM watermark") == [(-1,)]
        a.mark.begin(policy, a.log)
        await until(lambda: shared.ask("SELECT min(position), count(*) FROM bound") == [(2100, 2)])
        assert shared.ask("SELECT floor, reason FROM watermark") == [(1100, "keepPositions 1024")]
        assert [await a.sign(position) for position in (1100, 3100, 3101)] == ["PolicyRefused", "", ""]
        await a.mark.close()
        await b.mark.close()
