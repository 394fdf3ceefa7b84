"""The second witness on PostgreSQL: a standby that lagged is promoted, and no position gets a second payload."""

from __future__ import annotations

from contextlib import AsyncExitStack

import pytest
from tests.support.fleet_hosts import BLOCKS, FLEET, Host, digest
from tests.support.loops import one_loop
from tests.support.postgres import cluster, fleet

from hsmcore.recovery import incident
from hsmcore.recovery.interchange import export, import_
from hsmcore.state import Store, StoreError

pytestmark = [pytest.mark.integration, one_loop]
NAMES = ("a", "b", "c")


async def rows(store, statement):
    return [tuple(row) for row in await store.run(lambda on: on.exec_driver_sql(statement).all())]


async def members(host):
    await host.store.run(
        lambda on: [
            on.exec_driver_sql(
                "INSERT INTO fleet_host VALUES (%s, '', 0, '', 0, 0, '') ON CONFLICT DO NOTHING", (name,)
            )
            for name in NAMES
        ]
    )


@pytest.mark.slow("a standby is made and promoted")
async def test_a_standby_that_lagged_is_promoted(tmp_path):
    with cluster() as server:
        standby = server.standby(synchronous=False)
        place = fleet(server.database("fleet"), FLEET)
        async with AsyncExitStack() as stack:
            a, b, c = [await stack.enter_async_context(Host(tmp_path, name, place=place)) for name in NAMES]
            for host in (a, b, c):
                await host.witness.attend()
            await members(a)
            await a.sign(1)
            kept = server.execute("SELECT pg_current_wal_lsn()")[0][0]
            standby.until(f"SELECT pg_last_wal_replay_lsn() >= '{kept}'", True)
            standby.stop()
            for position in range(2, 9):
                await (a, b)[position % 2].sign(position)
            signed = await a.digests()
            server.stop(how="immediate")
            standby.port = server.port  # the address leads to the other server from now on
            standby.start()
            standby.promote()
            for host in (c, a, b):  # whoever comes first: nothing is bound before all have answered
                assert await c.refused(5, "another") in ("FleetBehind", "StoreError")
                standing = await host.witness.attend()
            assert (standing.open, standing.number >= 1) == (False, True)
            assert await c.digests() == signed
            assert [await c.refused(position, "another") for position in range(1, 9)] == ["DoubleSign"] * 8
            assert [await c.refused(9), await a.refused(3)] == ["", ""]
            [[system, timeline]] = await rows(a.store, "SELECT system, timeline FROM fleet")
            assert (system, timeline) == a.store.identity
            assert timeline != "1"


@pytest.mark.slow("a server that starts again")
async def test_a_server_that_was_only_started_again_stops_nobody(tmp_path):
    with cluster() as server:
        async with Host(tmp_path, "a", place=fleet(server.database(), FLEET)) as host:
            await host.witness.attend()
            await host.sign(1)
            server.restart()
            assert await host.refused(2) == "FleetBehind"  # until the log was compared
            assert (await host.witness.attend()).number == 0
            assert await host.refused(2) == ""


async def test_a_connection_that_is_lost_stops_nobody(tmp_path, server):
    url = server.database()
    async with Host(tmp_path, "a", place=fleet(url, FLEET)) as host:
        await host.witness.attend()
        await host.sign(1)
        for backend in server.backends(url.rpartition("/")[2]):
            server.execute(f"SELECT pg_terminate_backend({backend})")
        assert host.witness.settled
        assert await host.refused(2) in ("", "StoreError")  # it may have been under way
        assert await host.refused(2) == ""


async def test_reconciling_and_interchange_are_the_same_as_in_a_file(tmp_path):
    with cluster() as server:
        async with Host(tmp_path, "a", place=fleet(server.database(), FLEET)) as host:
            await host.witness.attend()
            await members(host)
            for position in range(1500):
                host.record(position, position)
            host.witness.doubt()
            assert (await host.witness.attend()).waiting == ("b", "c")
            assert len(await host.digests()) == 1500
            gone, floors = await host.store.run(lambda on: incident.reconcile(on, FLEET, "gone", [(BLOCKS, 1600)]))
            assert (gone, floors) == (["b", "c"], {BLOCKS: 1600})
            assert [await host.refused(1600), await host.refused(1601)] == ["PolicyRefused", ""]
            found = await export(host.store, FLEET)
            assert [(one.floor, one.high) for one in found.domains] == [(1600, 1601)]
        file = await Store.open(tmp_path / "state.db")
        await import_(file, found)
        assert await export(file, FLEET) == found
        await file.close()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE fleet SET incident = 9223372036854775807",
        "UPDATE fleet SET incident = -1",
        "INSERT INTO fleet_floor VALUES ('x', 'chain/block', 3, 'no digest')",
        "UPDATE watermark SET bits = 'no'",
        "UPDATE bound SET bound_ns = -1",
    ],
)
async def test_a_hostile_database_is_an_error_of_the_store(tmp_path, server, statement):
    async with Host(tmp_path, "a", place=fleet(server.database(), FLEET)) as host:
        await host.witness.attend()
        await host.sign(1)
        await host.store.run(lambda on: on.exec_driver_sql(statement))
        host.witness.doubt()
        with pytest.raises(StoreError):
            await host.witness.attend()
        assert await host.refused(2) in ("FleetBehind", "StoreError")


async def test_a_bind_and_the_opening_of_an_incident_wait_for_each_other(tmp_path, server):
    """The fence locks the fleet's row in share mode: an incident opens behind the binds that are under way."""
    async with Host(tmp_path, "a", place=fleet(server.database(), FLEET)) as host:
        await host.witness.attend()
        other = server.connect(host.place.store.url.resolve().decode().rpartition("/")[2])
        other.autocommit = False
        other.execute('SELECT epoch FROM "hsmcore_sequencer".fleet FOR SHARE')  # a bind that is under way
        with pytest.raises(StoreError):  # it waits, and gives up in time
            await host.store.run(_patiently)
        other.rollback()
        other.close()
        assert await host.store.run(_patiently) == 1
        assert digest("x")


def _patiently(connection):
    connection.exec_driver_sql("SET LOCAL lock_timeout = '200ms'")
    return incident.begin(connection, FLEET, "a", "a test", ("", ""))


@pytest.fixture(scope="module")
def server():
    with cluster() as made:
        yield made
