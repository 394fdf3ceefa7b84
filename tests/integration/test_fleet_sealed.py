"""A sealed store of a fleet that goes back: its hosts answer what they can put back, and nothing else is believed."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, LiteralString

import pytest
from psycopg.sql import SQL, Identifier
from tests.integration.test_fleet_losses import Shared
from tests.support.attending import Host, attending
from tests.support.fleet_hosts import BLOCKS
from tests.support.loops import one_loop
from tests.support.managers import until
from tests.support.postgres import Cluster, cluster, fleet

from hsmcore.config import Secret
from hsmcore.manager.policy.watermark import Watermark
from hsmcore.state import Desired, Store, StoreError, StoreNotGenuine
from hsmcore.state.postgres.link import take_turn
from hsmcore.state.sealed_rows import SEALED

pytestmark = [pytest.mark.integration, one_loop]
SECRET = Secret.plain("s" * 32)
TTL = 1000
TABLES = [*(table.name for tables in SEALED.values() for table in tables), "seal", "bound"]


@pytest.fixture
def shared(postgres: Cluster, tmp_path):
    return Shared(postgres, tmp_path)


def copied(shared: Shared) -> Mapping[str, Any]:
    """All sealed rows and their seal, as they are at one moment."""
    with shared.beside() as on:
        on.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        return {name: on.execute(SQL("SELECT * FROM {}").format(Identifier(name))).fetchall() for name in TABLES}


def put_back(shared: Shared, copy: Mapping[str, Any], forgery: LiteralString = "SELECT") -> None:
    """Put them in the place of those that there are, as who can write the database may; between two transactions of the
    hosts, which take turns."""
    with shared.beside() as on:
        on.execute(take_turn("hsmcore_tests").encode())
        for name, rows in copy.items():
            on.execute(SQL("DELETE FROM {}").format(Identifier(name)))
            for row in rows:
                marks = SQL(", ").join(SQL("%s") for _ in row)
                on.execute(SQL("INSERT INTO {} VALUES ({})").format(Identifier(name), marks), row)
        on.execute(forgery)


async def signed(host: Host, *positions: int) -> None:
    """Have a holder sign, also where the machine is so slow that it is in doubt for a moment."""
    for position in positions:
        while refused := await host.sign(position):
            assert refused in ("NotHolder", "StoreUnknown")
            await asyncio.sleep(0.01)


async def adopted(store: Store) -> None:
    """Adopt the rows as they are, between two renewals."""
    while (status := await store.seal_status()) is not None and status.problems:
        with suppress(StoreError):
            await store.adopt(status.digest)


@pytest.mark.slow("a standby is made and promoted")
async def test_a_standby_that_lagged_is_promoted(tmp_path):
    """As without a seal: messages go on, and positions once each host has put back what its log has."""
    with cluster() as server:
        standby = server.standby(synchronous=False)
        url = server.database()
        places = {name: fleet(url, host=name, ttlMs=TTL) for name in ("a", "b")}
        async with (
            attending(places["a"], tmp_path / "a", SECRET) as a,
            attending(places["b"], tmp_path / "b", SECRET) as b,
        ):
            await until(lambda: "holder" in (a.member.state, b.member.state))
            holder = a if a.member.state == "holder" else b
            await signed(holder, 1)
            kept = server.execute("SELECT pg_current_wal_lsn()")[0][0]
            standby.until(f"SELECT pg_last_wal_replay_lsn() >= '{kept}'", True)
            standby.stop()
            await signed(holder, *range(2, 9))
            server.stop(how="immediate")
            standby.port = server.port  # the address leads to the other server from now on
            standby.start()
            standby.promote()
            hosts = [a, b]
            for position in range(1, 9):
                while (refused := await hosts[0].sign(position, "another")) != "DoubleSign":
                    assert refused in ("FleetBehind", "NotHolder", "StoreError", "StoreUnknown", "StoreNotGenuine")
                    hosts.reverse()
                    await asyncio.sleep(0.01)
            await signed(hosts[0], 8, 9)
            await until(lambda: not hosts[0].member.lease.is_over)


async def test_messages_go_on_while_a_host_has_not_answered(shared):
    async with attending(shared.place("a"), shared._folder / "a", SECRET) as a:
        await until(lambda: a.member.state == "holder")
        async with attending(shared.place("b", claim="manual"), shared._folder / "b", SECRET):
            await signed(a, 1)
            copy = copied(shared)
            await signed(a, 2)
        renewals = shared.ask("SELECT renewals FROM fleet")
        await until(lambda: shared.ask("SELECT renewals FROM fleet") > renewals)
        put_back(shared, copy)
        await until(lambda: a.member.incident != 0)
        await until(lambda: a.member.state == "doubtful" and not a.member.lease.is_over)
        renewals = shared.ask("SELECT renewals FROM fleet")
        await until(lambda: shared.ask("SELECT renewals FROM fleet") > renewals)
        assert not a.member.lease.is_over
        assert await a.sign(2, "another") in ("FleetBehind", "NotHolder")
        async with attending(shared.place("b", claim="manual"), shared._folder / "b", SECRET):
            await until(lambda: a.member.incident == 0 and a.member.state == "holder")
        assert await a.sign(2, "another") == "DoubleSign"


async def test_positions_that_alone_go_back_are_missed_by_the_host_that_stands_by(shared):
    """Rows from before, of hsmcore's own making, put back by a writer of the database. That host has bound none."""
    async with attending(shared.place("a"), shared._folder / "a", SECRET) as a:
        await until(lambda: a.member.state == "holder")
        async with attending(shared.place("b", claim="manual"), shared._folder / "b", SECRET) as b:
            await signed(a, 1)
            copy = copied(shared)
            await signed(a, 2)
            await until(lambda: '"chain/block" : 2' in b.member._line.asking._highs)
            put_back(shared, {name: copy[name] for name in ("bound", "watermark")})
            await until(lambda: shared.ask("SELECT max(position) FROM bound") == [(2,)])
            assert shared.ask("SELECT incident FROM fleet") > [(0,)]
            await until(lambda: a.member.incident == 0 and a.member.state == "holder")
        assert await a.sign(2, "another") == "DoubleSign"


@pytest.mark.parametrize(
    "forgery",
    [
        "UPDATE fleet SET incident = 5",
        "DELETE FROM fleet_host WHERE name = 'b'",
        "UPDATE watermark SET floor = -1, high = -1, bits = '0'",
        "UPDATE seal SET counter = 1",
    ],
)
async def test_a_row_that_is_forged_on_top_is_not_believed(shared, forgery):
    async with (
        attending(shared.place("a"), shared._folder / "a", SECRET) as a,
        attending(shared.place("b", claim="manual"), shared._folder / "b", SECRET) as b,
    ):
        await until(lambda: a.member.state == "holder")
        await signed(a, 1)
        copy = copied(shared)
        await signed(a, 2)
        renewals = shared.ask("SELECT renewals FROM fleet")
        await until(lambda: shared.ask("SELECT renewals FROM fleet") > renewals)
        put_back(shared, copy, forgery)
        if "watermark" not in forgery:  # that is no reason to refuse what has no position
            await until(lambda: a.member.lease.is_over)
        await until(lambda: "not genuine" in b.member.describe()["reason"])
        assert await a.sign(2, "another") in ("NotHolder", "StoreNotGenuine")
        assert a.member.state == "doubtful" or "watermark" in forgery


async def test_what_no_host_can_put_back_is_not_given_up(shared):
    """Without an order, the orders stay refused, and nothing else; without a floor, everything does."""
    place = shared.place("a")
    async with attending(place, shared._folder / "a", SECRET) as a:
        await until(lambda: a.member.state == "holder")
        store = await Store.open(place, SECRET)
        await signed(a, 5)
        first = copied(shared)
        await Desired(store).set("readmit:x", "yes", "a reason")
        await signed(a, 6)
        put_back(shared, first)
        await until(lambda: a.member.incident == 0 and a.member.state == "holder" and a.member.epoch > 0)
        await until(lambda: shared.ask("SELECT max(position) FROM bound") == [(6,)])
        for _ in range(3):
            with pytest.raises(StoreNotGenuine, match="orders"):
                await Desired(store).all()
            await a.member._renew()
        await until(lambda: a.member.state == "holder")
        assert await a.sign(6, "another") == "DoubleSign"
        await adopted(store)
        assert await Desired(store).all() == {}

        before = copied(shared)
        await Watermark(store, "").raise_floor(BLOCKS, 5, "final")
        put_back(shared, before)
        await until(lambda: a.member.lease.is_over)
        assert "the floor 5" in a.member.reason
        await store.close()


async def test_a_host_that_an_earlier_state_lacks_is_waited_for(shared):
    async with attending(shared.place("a"), shared._folder / "a", SECRET) as a:
        await until(lambda: a.member.state == "holder")
        alone = copied(shared)
        async with attending(shared.place("b", claim="manual"), shared._folder / "b", SECRET):
            seen = shared.ask("SELECT renewals FROM fleet")
            await until(lambda: shared.ask("SELECT renewals FROM fleet") > seen)
            put_back(shared, alone)
            await until(lambda: a.member.lease.is_over)
            assert "host b" in a.member.reason
