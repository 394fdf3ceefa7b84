"""A store that is away for a moment, in each way in which PostgreSQL is: what has time left waits, and is bound
once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
from tests.support.attending import Host, attending
from tests.support.loops import one_loop
from tests.support.managers import until
from tests.support.postgres import USER, Bouncer, Cluster, cluster, fleet

pytestmark = [pytest.mark.integration, one_loop]
TTL = 8000
"""Milliseconds. The store's connection waits for half of that where a pooler keeps a client whose server is away."""
POOLED = pytest.mark.parametrize("pooled", [False, True], ids=["direct", "pooled"])
RAISES = """SET search_path TO hsmcore_tests; CREATE FUNCTION fails() RETURNS trigger LANGUAGE plpgsql AS
    $$BEGIN RAISE EXCEPTION USING ERRCODE = '{}'; END$$;
    CREATE TRIGGER fails BEFORE INSERT ON bound FOR EACH ROW EXECUTE FUNCTION fails()"""


class Site(NamedTuple):
    """A server, and the database of a fleet there."""

    server: Cluster
    pooler: Bouncer
    database: str

    def run(self, statement: str) -> list[tuple[object, ...]]:
        return self.server.execute(statement, self.database)

    def end_all(self) -> None:
        """End the connections of hosts, not those of the test."""
        self.run(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{USER}'")  # noqa: S608


@pytest.fixture
def own() -> Iterator[Cluster]:
    with cluster() as server:
        yield server


@pytest.fixture(scope="module")
def lasting() -> Iterator[tuple[Cluster, Bouncer]]:
    """A server that no test stops."""
    with cluster() as server:
        yield server, server.bouncer()


@contextmanager
def stopped(site: Site, how: str = "fast") -> Iterator[None]:
    site.server.stop(how=how)
    try:
        yield
    finally:
        site.server.start()


@contextmanager
def only_read(site: Site) -> Iterator[None]:
    """As a primary that has become a standby; it goes on as it was, as after a failover that was taken back."""
    signal = site.server.data / "standby.signal"
    with stopped(site):
        signal.touch()
    try:
        yield
    finally:
        site.server.stop()
        signal.unlink()
        site.server.start()


@contextmanager
def full(site: Site) -> Iterator[None]:
    """No connection is to be had."""
    site.run(f"ALTER ROLE {USER} CONNECTION LIMIT 0")
    site.end_all()
    try:
        yield
    finally:
        site.run(f"ALTER ROLE {USER} CONNECTION LIMIT -1")


def failing(code: str) -> Callable[[Site], AbstractContextManager[None]]:
    """Each bind fails in its transaction with this SQLSTATE."""

    @contextmanager
    def fails(site: Site) -> Iterator[None]:
        site.run(RAISES.format(code))
        try:
            yield
        finally:
            site.run("DROP TRIGGER fails ON hsmcore_tests.bound; DROP FUNCTION hsmcore_tests.fails")

    return fails


STOPS: dict[str, Callable[[Site], AbstractContextManager[None]]] = {
    "refused at dial": stopped,
    "crashed": lambda site: stopped(site, "immediate"),
    "a primary that only reads": only_read,
}
FAILS: dict[str, Callable[[Site], AbstractContextManager[None]]] = {
    "too many connections": full,
    "statement_timeout": failing("57014"),
    "lock_timeout": failing("55P03"),
    "serialization failure": failing("40001"),
    "deadlock": failing("40P01"),
    "disk full": failing("53100"),
    "out of memory": failing("53200"),
    "shutting down": failing("57P01"),
}


@asynccontextmanager
async def holding(own: Cluster, pooler: Bouncer, folder: Path, *, pooled: bool) -> AsyncIterator[tuple[Site, Host]]:
    direct = own.database()
    site = Site(own, pooler, direct.rpartition("/")[2])
    url = pooler.url_of(direct) if pooled else direct
    async with attending(fleet(url, host="a", ttlMs=TTL), folder / "a") as a:
        await until(lambda: a.member.state == "holder")
        assert [await a.sign(position) for position in (1, 2)] == ["", ""]
        yield site, a


def was_tried(a: Host) -> bool:
    """Whether a transaction has not taken what waits. Asks so again: the next one has to fail, too."""
    tried = any(one.trouble for one in a.mark._waiting)
    for one in a.mark._waiting:
        one.trouble = ""
    return tried


async def waits_and_is_bound_once(
    site: Site, a: Host, outage: Callable[[Site], AbstractContextManager[None]], tried: Callable[[], bool]
) -> None:
    with outage(site):
        asked = [asyncio.create_task(a.sign(3))]
        await until(tried)
        asked += [asyncio.create_task(a.sign(*each)) for each in ((3, "another"), (4,))]
        for _ in range(2):
            await until(tried)
        assert not any(one.done() for one in asked)
    assert await asyncio.gather(*asked) == ["", "DoubleSign", ""]
    bound = site.run("SELECT position, count(*) FROM hsmcore_tests.bound GROUP BY 1 ORDER BY 1")
    assert bound == [(position, 1) for position in range(1, 5)]


@pytest.mark.parametrize("outage", FAILS)
async def test_what_has_time_left_waits_where_each_transaction_fails(lasting, tmp_path, outage):
    async with holding(*lasting, tmp_path, pooled=False) as (site, a):
        await waits_and_is_bound_once(site, a, FAILS[outage], lambda: was_tried(a))


@POOLED
@pytest.mark.parametrize("outage", STOPS)
async def test_what_has_time_left_waits_where_the_server_stops(own, tmp_path, outage, pooled):
    async with holding(own, own.bouncer(), tmp_path, pooled=pooled) as (site, a):
        seen = [a.member.renewals_failed]

        def fails() -> bool:
            """Whether a renewal has failed once more: what a pooler keeps for a server fails late, or not at all."""
            seen.append(a.member.renewals_failed)
            return seen[-1] > seen[-2]

        await waits_and_is_bound_once(site, a, STOPS[outage], fails)


@POOLED
async def test_a_bind_whose_connection_is_ended_under_it_is_bound_once(lasting, tmp_path, pooled):
    """By an administrator, a pooler or a server that is shut down: in the middle of its message."""
    async with holding(*lasting, tmp_path, pooled=pooled) as (site, a):
        for position in range(3, 6):
            with site.server.connect(site.database) as on, on.transaction():
                on.execute("LOCK TABLE hsmcore_tests.bound")
                binding = asyncio.create_task(a.sign(position))
                waits = f"{on.info.backend_pid} = ANY(pg_blocking_pids(pid))"
                await until(lambda waits=waits: site.server.backends(site.database, waits) != [])
                site.end_all()
            assert await binding == ""
            assert await a.sign(position, "another") == "DoubleSign"
        assert site.run("SELECT count(*) FROM hsmcore_tests.bound") == [(5,)]


async def test_a_store_that_is_away_is_waited_for_until_another_host_holds(lasting, tmp_path):
    async with holding(*lasting, tmp_path, pooled=False) as (site, a):
        with full(site):
            binding = asyncio.create_task(a.sign(3))
            await until(lambda: any(one.trouble for one in a.mark._waiting))
            site.run("UPDATE hsmcore_tests.fleet SET epoch = 2, holder = 'b:1:x', host = 'b', renewals = 0")
        assert await binding == "NotHolder"
        assert site.run("SELECT max(position) FROM hsmcore_tests.bound") == [(2,)]
