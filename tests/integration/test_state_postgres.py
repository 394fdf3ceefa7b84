"""The store of a fleet on PostgreSQL: turns, roles, lost connections, servers that may forget, and what is shown."""
# ruff: noqa: S608

from __future__ import annotations

import asyncio
import random
import signal
import socket
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import select, update
from sqlalchemy.exc import DataError
from tests.integration.test_rotation import M, rules
from tests.support.authority import Authority
from tests.support.chaos import send_signal
from tests.support.child import in_fork
from tests.support.loops import one_loop
from tests.support.managers import becomes, opened, start
from tests.support.postgres import PASSWORD, cluster, fleet
from tests.support.size import share
from tests.support.store_hosts import Host, add_one

from hsmcore.config import load
from hsmcore.config.fleet import Fleet
from hsmcore.doctor.fleet_store import check_fleet_store
from hsmcore.failover.budget import BLOCK
from hsmcore.failover.events import Event
from hsmcore.failover.history import History
from hsmcore.state import Desired, Keys, RoleLost, Store, StoreAway, StoreBusy, StoreError, StoreUnknown
from hsmcore.state.postgres import link
from hsmcore.state.postgres import probe as server_probe
from hsmcore.state.postgres.url import parse
from hsmcore.state.schema import METADATA, MIGRATIONS, ROLE, SNAPSHOT
from hsmcore.state.store import now_ns

pytestmark = [pytest.mark.integration, one_loop]


@pytest.fixture
def url(postgres):
    return postgres.database()


def database_of(url):
    return url.rpartition("/")[2]


@asynccontextmanager
async def stores(*urls, **fields):
    """A Store for each URL. Equal ones would share a connection: each gets a parameter of its own."""
    opened = []
    try:
        for number, url in enumerate(urls):
            opened.append(await Store.open(fleet(f"{url}?application_name=host-{number}", **fields)))
        yield opened
    finally:
        for store in opened:
            await store.close()


async def test_a_connection_that_was_given_up_is_closed(tmp_path):
    """Also while its error is kept: a server that is slow to answer has only so many places."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"postgresql://hsmcore@127.0.0.1:{listener.getsockname()[1]}/fleet?connect_timeout=2"
        with pytest.raises(StoreError, match="timeout") as kept:
            await Store.open(fleet(url))
        with listener.accept()[0] as given_up:
            given_up.settimeout(10)
            while given_up.recv(4096):
                pass
        assert kept.value.__context__ is not None


async def noted(store):
    return [row["reason"] for row in await History(store).query()]


async def note(store, reason):
    await History(store).note(Event("outage", reason=reason))


# ---- what is there ---------------------------------------------------------------------------------------------------


async def test_the_migrations_make_the_tables_that_the_code_knows(postgres, url):
    async with stores(url):
        pass
    columns = postgres.execute(
        "SELECT table_name, column_name, data_type, collation_name, is_nullable FROM information_schema.columns "
        "WHERE table_schema = 'hsmcore_tests' ORDER BY table_name, ordinal_position",
        database_of(url),
    )
    found = {}
    for table, name, kind, collation, nullable in columns:
        assert (kind, collation) in (("text", "C"), ("bigint", None), ("integer", None)), (table, name)
        found.setdefault(table, []).append((name, nullable == "YES"))
    assert found == {
        table.name: [(column.name, bool(column.nullable)) for column in table.columns]
        for table in METADATA.tables.values()
    }
    versions = postgres.execute("SELECT version FROM hsmcore_tests.schema_version ORDER BY 1", database_of(url))
    assert versions == [(migration.number,) for migration in MIGRATIONS]


@pytest.mark.slow("each schema of before")
async def test_a_newer_store_is_refused_and_an_older_one_migrated(postgres, url):
    database = database_of(url)
    async with stores(url):
        pass
    postgres.execute("DELETE FROM hsmcore_tests.schema_version WHERE version >= 7", database)
    postgres.execute("DROP TABLE hsmcore_tests.audit_mark", database)
    postgres.execute("DROP TABLE hsmcore_tests.fleet, hsmcore_tests.fleet_host, hsmcore_tests.fleet_floor", database)
    postgres.execute("DROP TABLE hsmcore_tests.role", database)
    postgres.execute("ALTER TABLE hsmcore_tests.watermark DROP COLUMN message, DROP COLUMN mac", database)
    postgres.execute("DROP TABLE hsmcore_tests.published", database)
    postgres.execute("DROP TABLE hsmcore_tests.key_set, hsmcore_tests.key_evidence, hsmcore_tests.key_domain", database)
    with pytest.raises(StoreError, match=r"older version .* lacks schema 7") as caught:
        await Store.open_to_read(fleet(url))
    assert caught.value.hint == (
        "Start one of the fleet's hosts, or `hsmcore fleet migrate` as the owner, with this version, which brings it "
        "up to date."
    )
    with ExitStack() as stack:  # hosts that start together
        for host in [stack.enter_context(Host(url)) for _ in range(4)]:
            host.await_open()
    async with stores(url) as [store]:
        assert await store.rows(select(ROLE)) == []
    postgres.execute("INSERT INTO hsmcore_tests.schema_version VALUES (999, 0)", database)
    for opener in (Store.open, Store.open_to_read):
        with pytest.raises(StoreError, match=r"newer version.*schema 999") as caught:
            await opener(fleet(url))
        assert caught.value.hint == "Use that version on this host, too."


async def test_hosts_that_start_together_on_an_empty_database_share_it(url):
    with ExitStack() as stack:
        hosts = [stack.enter_context(Host(url)) for _ in range(4)]
        for host in hosts:
            host.await_open()
        for number, host in enumerate(hosts):
            assert host.ask("note", f"{number}") is None
    async with stores(url) as [store]:
        assert await noted(store) == [*"0123"]


async def test_the_database_of_another_fleet_is_refused(url):
    async with stores(url):
        pass
    for name in ("test", "testss", "tests-2"):
        for opener in (Store.open, Store.open_to_read):
            with pytest.raises(StoreError, match="another fleet, tests") as caught:
                await opener(fleet(url, name=name))
            assert caught.value.hint.startswith("Correct fleet.name. Only if several fleets")
    with pytest.raises(StoreError, match="hsmcore_tests__rollup would begin beside it") as caught:
        await Store.open(fleet(url).among("rollup"))
    assert "ALTER SCHEMA" in caught.value.hint


async def test_key_managers_of_a_fleet_have_schemas_of_their_own(url):
    one, two = fleet(url).among("one"), fleet(url).among("two")
    first, second = await Store.open(one), await Store.open(two)
    await note(first, "of the first")
    assert (await noted(first), await noted(second)) == (["of the first"], [])
    for store in (first, second):
        await store.close()
    with pytest.raises(StoreError, match="would begin beside it"):
        await Store.open(fleet(url))


async def test_a_reader_makes_nothing_and_sees_what_is_written(postgres, url):
    with pytest.raises(StoreError, match="there is none yet") as caught:
        await Store.open_to_read(fleet(url))
    assert caught.value.hint == "The first start of a key manager makes it."
    assert postgres.execute("SELECT nspname FROM pg_namespace WHERE nspname LIKE 'hsmcore%'", database_of(url)) == []
    async with stores(url) as [store]:
        reader = await Store.open_to_read(fleet(url))
        await note(store, "seen")
        assert await noted(reader) == ["seen"]
        with pytest.raises(StoreError, match="read-only"):
            await note(reader, "written")
        await reader.close()


async def test_stores_of_one_fleet_share_a_connection(postgres, url):
    first, second = await Store.open(fleet(url)), await Store.open(fleet(url))
    assert len(postgres.backends(database_of(url))) == 1
    await first.close()
    await note(second, "still here")
    await second.close()
    postgres.until(f"SELECT count(*) FROM pg_stat_activity WHERE datname = '{database_of(url)}'", 0)


async def test_the_clock_is_the_databases(postgres, url):
    async with stores(url) as [store]:
        [(before,)] = postgres.execute("SELECT (extract(epoch FROM clock_timestamp()) * 1000000000)::bigint")
        now = await store.run(now_ns)
        [(after,)] = postgres.execute("SELECT (extract(epoch FROM clock_timestamp()) * 1000000000)::bigint")
        assert before <= now <= after
        assert store.identity[0].isdigit()
        assert store.identity[1] == "00000001"


# ---- turns -----------------------------------------------------------------------------------------------------------


async def test_processes_take_turns_and_no_update_is_lost(url):
    with ExitStack() as stack:
        hosts = [stack.enter_context(Host(url)).await_open() for _ in range(3)]
        for host in hosts:
            host.tell("add", 60)
        assert max(host.answer() for host in hosts) == 180


async def test_a_host_that_stops_in_its_turn_loses_it(postgres, url, monkeypatch):
    """Else one stopped process would stop the fleet. It has written nothing."""
    begun, gate = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    async with stores(url, url) as [stops, other]:

        def stopped(connection):
            add_one(connection)
            loop.call_soon_threadsafe(begun.set)
            asyncio.run_coroutine_threadsafe(gate.wait(), loop).result(30)
            return add_one(connection)

        halted = start(stops.run(stopped))
        await begun.wait()
        assert await other.run(add_one) == 1  # not before the server has ended the first one's turn
        gate.set()
        with pytest.raises(StoreError) as caught:
            await halted
        assert type(caught.value) is StoreAway
        assert await stops.run(add_one) == 2


async def test_a_statement_that_failed_is_not_committed_in_silence(url):
    """PostgreSQL answers COMMIT with success, and rolls back, after a failure that the caller passed over."""

    def passes_over(connection):
        add_one(connection)
        with suppress(DataError):
            connection.exec_driver_sql("SELECT 1 / 0")

    async with stores(url) as [store]:
        with pytest.raises(StoreError, match="a statement of the transaction failed"):
            await store.run(passes_over)
        assert await store.run(add_one) == 1


async def test_a_forked_child_leaves_the_connection_alone(url):
    async with stores(url) as [store]:
        assert in_fork(lambda: asyncio.run(noted(store)), 10) == "StoreError"
        place = fleet(f"{url}?application_name=host-0")
        assert in_fork(lambda: asyncio.run(Store.open(place)), 10) == "StoreError"
        assert in_fork(lambda: asyncio.run(store.close()), 10) is None
        await note(store, "the parent goes on")
        assert await noted(store) == ["the parent goes on"]


# ---- lost connections ------------------------------------------------------------------------------------------------


async def test_a_connection_that_was_closed_while_idle_is_made_again(postgres, url):
    async with stores(url) as [store]:
        connected = []
        end = store.on_connect(lambda: connected.append(store.identity))
        for number in range(3):
            [backend] = postgres.backends(database_of(url))
            postgres.execute(f"SELECT pg_terminate_backend({backend}, 10000)")
            await note(store, f"{number}")
        assert await noted(store) == [*"012"]
        assert connected == [store.identity] * 3
        end()
        [backend] = postgres.backends(database_of(url))
        postgres.execute(f"SELECT pg_terminate_backend({backend}, 10000)")
        await note(store, "3")
        assert len(connected) == 3


async def test_a_connection_that_is_lost_before_commit_has_written_nothing(postgres, url):
    async with stores(url) as [store]:

        def cut(connection):
            add_one(connection)
            [backend] = postgres.backends(database_of(url))
            postgres.execute(f"SELECT pg_terminate_backend({backend}, 10000)")
            add_one(connection)

        with pytest.raises(StoreError) as caught:
            await store.run(cut)
        assert type(caught.value) is StoreAway
        assert await store.run(add_one) == 1


@pytest.mark.slow("a server that starts again")
async def test_a_restart_of_the_server_costs_at_most_what_was_under_way():
    with cluster() as own:
        async with stores(own.database()) as [store]:
            await note(store, "before")
            own.restart(how="immediate")
            await note(store, "after")
            assert await noted(store) == ["before", "after"]
            own.stop()
            with pytest.raises(StoreError, match="connection") as caught:
                await note(store, "without a server")
            assert type(caught.value) is StoreAway
            own.start()
            assert await noted(store) == ["before", "after"]


@pytest.mark.parametrize("ends", ["pg_cancel_backend", "pg_terminate_backend"])
async def test_a_commit_whose_wait_for_the_standby_ends_early_is_unknown(postgres, url, ends):
    """It is visible, and may be lost with the server."""
    database = database_of(url)
    async with stores(url) as [store]:
        await note(store, "before")
        with postgres.changed(synchronous_standby_names="a_standby_that_does_not_answer"):
            writing = start(note(store, "unknown"))
            await becomes(lambda: waits(postgres, database))
            postgres.execute(f"SELECT {ends}(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'")
            with pytest.raises(StoreUnknown, match="COMMIT"):
                await writing
        assert await noted(store) == ["before", "unknown"]


async def waits(postgres, database):
    return len(postgres.waiting_for_standby(database)) == 1


async def test_a_server_that_does_not_answer_in_commit_is_given_up(postgres, url, monkeypatch):
    monkeypatch.setattr(link.Patient.be_patient, "__defaults__", (2.0,))  # instead of ANSWER_SECONDS
    async with stores(url) as [store]:
        never = postgres.changed(synchronous_standby_names="a_standby_that_does_not_answer")
        with never, pytest.raises(StoreUnknown, match="does not answer"):
            await note(store, "unknown")
        monkeypatch.undo()
        assert await noted(store) == ["unknown"]


@pytest.mark.slow("a standby is made and promoted")
async def test_an_acknowledged_write_is_on_the_promoted_standby_under_another_timeline():
    with cluster() as own:
        standby = own.standby()
        url = own.database()
        here = "127.0.0.1"
        both = url.replace(f"{here}:{own.port}", f"{here}:{standby.port},{here}:{own.port},{here}")
        store = await Store.open(fleet(both, singleNode=False))
        kept = own.execute("SELECT pg_current_wal_lsn()")[0][0]
        standby.until(f"SELECT pg_last_wal_replay_lsn() >= '{kept}'", True)  # before, it does not know the database
        for opener in (Store.open, Store.open_to_read):
            with pytest.raises(StoreError, match="the server is a standby") as refused:
                await opener(fleet(standby.url(database_of(url))))
            assert refused.value.hint == "Name the primary, or all servers, in the URL."
        await note(store, "acknowledged")
        before = store.identity
        reader = await Store.open_to_read(fleet(both))
        assert (await noted(reader), reader.identity) == (["acknowledged"], before)
        await reader.close()
        own.stop(how="immediate")
        standby.promote()
        standby.change(synchronous_standby_names="another")
        reader = await Store.open_to_read(fleet(standby.url(database_of(url))))
        assert await noted(reader) == ["acknowledged"]
        await reader.close()
        seen = await store.run(lambda connection: store.identity, turn=False)  # writes nothing: waits for no standby
        assert seen == store.identity == (before[0], "00000002")
        assert before[1] == "00000001"
        await store.close()


# ---- servers that may forget -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "says"),
    [({"fsync": "off"}, "fsync is off"), ({"full_page_writes": "off"}, "full_page_writes is off")],
    ids=["fsync", "full_page_writes"],
)
async def test_a_server_that_may_lose_what_it_confirmed_is_refused(postgres, url, settings, says):
    async with stores(url) as [store]:
        with postgres.changed(**settings):
            with pytest.raises(StoreError, match=says):
                await Store.open(fleet(url))
            with pytest.raises(StoreError, match=says):  # also while it is open
                await note(store, "lost")
        assert await noted(store) == []


async def test_without_a_synchronous_standby_only_a_single_node_is_used(postgres, url):
    with pytest.raises(StoreError, match="no synchronous standby") as caught:
        await Store.open(fleet(url, singleNode=False))
    assert "singleNode" in caught.value.hint
    async with stores(url):
        pass


async def test_a_transaction_waits_for_the_disk_whatever_the_session_says(postgres, url):
    asked = "current_setting('synchronous_commit')"
    for given, used in (("off", "on"), ("local", "on"), ("remote_write", "on"), ("remote_apply", "remote_apply")):
        postgres.execute(f"ALTER DATABASE {database_of(url)} SET synchronous_commit = '{given}'")
        async with stores(url) as [store]:
            assert await store.run(lambda on: on.exec_driver_sql(f"SELECT {asked}").scalar()) == used


async def test_each_transaction_waits_for_the_standby_also_one_that_only_reads(postgres, url):
    """An isolated old primary still answers reads: what `run` read there is not to be believed."""
    database = database_of(url)
    async with stores(url) as [store]:
        with postgres.changed(synchronous_standby_names="a_standby_that_does_not_answer"):
            reading = start(noted(store))
            await becomes(lambda: waits(postgres, database))
            assert not reading.done()
        assert await reading == []


# ---- URLs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sslmode", ["", "?sslmode=prefer", "?sslmode=disable", "?hostaddr=127.0.0.1", "?service=x"])
async def test_a_server_elsewhere_is_not_asked_without_tls(sslmode):
    with pytest.raises(StoreError, match=r"TLS|cannot be understood") as caught:
        await Store.open(fleet(f"postgresql://u:secret-word@db.example.test/fleet{sslmode}"))
    says = "Write postgresql://user:password@host" if "service" in sslmode else "?sslmode=verify-full&sslrootcert="
    assert says in caught.value.hint
    with pytest.raises(StoreError, match="TLS"):
        await Store.open(fleet("postgresql://u:secret-word@localhost/fleet?hostaddr=192.0.2.1"))


@pytest.mark.parametrize(
    ("hosts", "shown"),
    [
        ("a,b", "a:5432,b:5432"),
        ("a,b:6000", "a:5432,b:6000"),
        ("a:6000,b", "a:6000,b:5432"),
        ("[2001:db8::1],b", "2001:db8::1:5432,b:5432"),
        ("/x?port=6000&host=a,b&", "a:6000,b:6000"),
        ("/x?host=a,b&", "a:5432,b:5432"),
        ("/x?port=1,2&host=a,b,c&", ""),
        ("a,", ""),
        ("a:x,b", ""),
    ],
)
async def test_a_url_may_name_several_servers_each_with_its_port_or_without(hosts, shown):
    url = f"postgresql://u:p@{hosts}{'' if '?' in hosts else '/x?'}sslmode=verify-full".encode()
    if not shown:
        with pytest.raises(StoreError, match="cannot be understood"):
            parse(url, "the store")
        return
    found = parse(url, "the store")
    assert found.where == f"{shown}/x"
    assert found.options()["target_session_attrs"] == "read-write"


async def test_a_server_shows_a_certificate_of_an_authority_that_is_trusted(postgres, url, tmp_path):
    authority, other = Authority(tmp_path), Authority(tmp_path, "other")
    over_tls = f"{url}?sslmode=verify-full&sslrootcert="
    with postgres.certified(authority.issue("server", ips=["127.0.0.1"])):
        store = await Store.open(fleet(over_tls + authority.file))
        await note(store, "over TLS")
        assert await noted(store) == ["over TLS"]
        mine = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
        assert await store.run(lambda on: on.exec_driver_sql(mine).scalar()) is True
        await store.close()
        with pytest.raises(StoreError, match="certificate verify failed"):
            await Store.open(fleet(over_tls + other.file))
    old, own = authority.issue("old", ips=["127.0.0.1"], days=-1), authority.issue("own", days=-1)
    Path(own.key).chmod(0o600)  # noqa: ASYNC240
    with postgres.certified(old):
        for files in (authority.file, f"{authority.file}&sslcert={own.certificate}&sslkey={own.key}"):
            with pytest.raises(
                StoreError, match=r"certificate of 127\.0\.0\.1:\d+ expired on 2.*ssl_cert_file"
            ) as caught:
                await Store.open(fleet(over_tls + files))
            assert (f"certificate {own.certificate} expired on" in str(caught.value)) == ("&" in files)
    elsewhere = authority.issue("server", ips=["192.0.2.1"])
    with postgres.certified(elsewhere), pytest.raises(StoreError, match="does not match host name"):
        await Store.open(fleet(over_tls + authority.file))


@pytest.mark.parametrize("variable", ["PGHOSTADDR", "PGSERVICE"])
async def test_the_environment_names_no_other_server(url, monkeypatch, variable):
    monkeypatch.setenv(variable, "192.0.2.1")
    with pytest.raises(StoreError, match=f"{variable} is set"):
        await Store.open(fleet(url))


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://user:{}@127.0.0.1:1/fleet",
        "postgresql://user:{}@127.0.0.1:{}/fleet",
        "postgresql://user:{}/{}@127.0.0.1/fleet",
        "postgresql://user:12/{}@127.0.0.1/fleet",
        "postgresql://user:{}@%zz/fleet",
        "postgresql://user:12?{}@127.0.0.1/fleet",
        "postgresql://{}",
        "host=127.0.0.1 password={}",
        "{}",
    ],
)
async def test_the_password_is_in_no_error(url, caplog):
    secret = "word-that-nobody-may-see"
    place = fleet(url.replace("{}", secret))
    with pytest.raises(StoreError) as caught:
        await Store.open(place)
    error = caught.value
    shown = [
        repr(place),
        str(error),
        repr(error),
        error.hint,
        caplog.text,
        repr(error.__context__),
        repr(error.__cause__),
    ]
    assert not [text for text in shown if secret in text]


async def test_a_wrong_password_and_an_open_store_show_none(postgres, url, caplog):
    with pytest.raises(StoreError, match="password authentication failed") as caught:
        await Store.open(fleet(url.replace("corner", "wrong-one")))
    async with stores(url) as [store]:
        with pytest.raises(StoreError) as failed:
            await store.run(lambda on: on.exec_driver_sql("SELECT nonsense"))
        database = store._database
        shown = [str(caught.value), str(failed.value), repr(store), repr(database._engine), repr(database._link)]
        shown += [repr(database._engine.url), store.name, caplog.text, repr(vars(database))]
    assert not [text for text in shown if "wrong-one" in text or PASSWORD in text or "corner" in text]


# ---- roles -----------------------------------------------------------------------------------------------------------


async def test_a_role_is_taken_over_from_a_process_that_was_stopped_and_its_next_write_refused(url):
    with Host(url) as first, Host(url) as second:
        first.await_open()
        second.await_open()
        assert first.ask("take", "rotation") is None
        assert first.ask("note", "as the holder") is None
        assert second.ask("take", "rotation") == "StoreBusy"
        first.stop()
        while second.ask("take", "rotation") is not None:  # its time passes
            pass
        first.resume()
        assert first.ask("note", "too late") == "RoleLost"
        assert second.ask("note", "as the next holder") is None
        assert first.ask("give") is None
        assert first.ask("take", "rotation") == "StoreBusy", "the end of the first one's role took the second one's"
    async with stores(url) as [store]:
        assert await noted(store) == ["as the holder", "as the next holder"]
        [row] = await store.rows(select(ROLE))
        assert (row["name"], row["epoch"]) == ("rotation", 2)


async def test_a_role_that_another_process_has_under_the_same_epoch_is_lost(url):
    """The database lost that it was taken, and counted to that epoch again."""
    async with stores(url, url) as [first, second]:
        async with first.exclusively("rotation"):
            await second.run(lambda on: on.execute(update(ROLE).values(holder="another")))
            with pytest.raises(RoleLost):
                await note(first, "too late")
        with pytest.raises(StoreBusy, match="another"):
            async with second.exclusively("rotation"):
                pass


async def test_a_role_is_renewed_while_it_is_held_and_free_once_it_is_given_back(url):
    async with stores(url, url, ttlMs=200) as [first, second]:
        async with first.exclusively("rotation"):
            [row] = await second.rows(select(ROLE))

            async def renewed():
                [now] = await second.rows(select(ROLE))
                return now["until_ns"] > row["until_ns"] + 2_000_000_000

            await becomes(renewed)
            with pytest.raises(StoreBusy):
                async with second.exclusively("rotation"):
                    pass
        async with second.exclusively("rotation"):
            await note(first, "without a role, no matter whose it is")


async def test_rotation_races_of_three_hosts_make_one_key_each(url):
    races = share(50)
    async with stores(url) as [store]:
        await Keys(store).begin("aa", b"\1" * 32, "ed25519", "key", ["softhsm:primary"], "as configured")
        with ExitStack() as stack:
            hosts = [stack.enter_context(Host(url)).await_open() for _ in range(3)]
            for race in range(races):
                before = {key.version for key in await Keys(store).all()}
                current = (await Keys(store).current()).version
                for host in hosts:
                    host.tell("rotate", f"key-{race:08x}", current)
                answers = [host.answer() for host in hosts]
                [made] = [answer for answer in answers if isinstance(answer, int)]
                assert {key.version for key in await Keys(store).all()} - before == {made}
                assert (await Keys(store).current()).version == made
        assert len(await Keys(store).all()) == races + 1


@pytest.mark.deep
@pytest.mark.timeout(900)  # 28 interpreters start, on a machine that may be busy
async def test_eight_processes_of_three_hosts_and_twenty_kills_never_spend_more_than_there_is(url):
    """What a kill wastes is the rest of a block; what a process has written, it has spent."""
    most, kills, chance = 1000, 20, random.Random(7)
    spent, refused = 0, 0
    with ExitStack() as stack:
        names = [f"host-{number % 3}" for number in range(8)]
        hosts = [stack.enter_context(Host(url, host=name)).await_open() for name in names]
        for _ in range(kills):
            for host in hosts:
                host.tell("spend", most, 4)
            victim = chance.choice(hosts)
            assert send_signal(victim.process.pid, signal.SIGKILL)
            for host in hosts:
                units, answer = host.spent()
                spent, refused = spent + units, refused + (answer == "EmergencyRefused")
                assert answer is not None or host is victim
            place = hosts.index(victim)
            hosts[place] = stack.enter_context(Host(url, host=names[place])).await_open()
        for host in hosts:
            host.tell("spend", most, most)
        for host in hosts:
            units, answer = host.spent()
            spent += units
            assert answer == "EmergencyRefused"
    assert most - kills * BLOCK <= spent <= most
    assert refused < 8 * kills, "nothing was under way when a process was killed"


# ---- doctor ----------------------------------------------------------------------------------------------------------


def steps(url, **fields):
    block = {"store": {"url": url}, "name": "tests"} | fields
    document = {"keyManager": {"type": "ephemeral", "config": {"allowEphemeralPrimary": True}, "fleet": block}}
    return {step.name: step for step in check_fleet_store(load(document))}


async def test_doctor_says_whether_the_database_keeps_what_it_confirms(postgres, url):
    found = steps(url, singleNode=True)
    assert [(step.name, step.outcome) for step in found.values()] == [
        ("fleet-store", "ok"),
        ("fleet-durability", "warn"),
    ]
    assert found["fleet-store"].data["exists"] is False
    async with stores(url):
        pass
    assert steps(url, singleNode=True)["fleet-store"].data["exists"] is True
    assert (steps(url)["fleet-durability"].outcome) == "fail"
    seen = url.replace("//hsmcore:", "//postgres:")
    with postgres.changed(synchronous_standby_names="a_standby_that_does_not_answer"):
        step = steps(seen)["fleet-durability"]
        assert (step.outcome, step.found) == ("fail", "no synchronous standby is connected")
        assert steps(url)["fleet-durability"].outcome == "ok", "this user may not see standbys"


async def test_doctor_names_the_day_on_which_a_certificate_ends(postgres, url, tmp_path):
    authority = Authority(tmp_path)
    over_tls, more = f"{url}?sslmode=verify-full&sslrootcert={authority.file}", {"singleNode": True}
    for days, outcome in ((60, "ok"), (3, "warn")):
        with postgres.certified(authority.issue("server", ips=["127.0.0.1"], days=days)):
            step = steps(over_tls, **more)["fleet-certificate"]
            day = datetime.fromtimestamp(step.data["expires"], UTC)
            assert (step.outcome, f"expires on {day:%Y-%m-%d}" in step.found) == (outcome, True)
            store = await Store.open(fleet(over_tls))
            assert list(store.certificates().values()) == [step.data["expires"]]
            await store.close()
    with postgres.certified(authority.issue("server", ips=["127.0.0.1"], days=-1)):
        assert "expired on" in steps(over_tls, **more)["fleet-store"].found
        assert steps(f"{url}?sslmode=require", **more)["fleet-certificate"].outcome == "fail"


async def test_doctor_knows_a_pooler(postgres, pooler, url):
    assert "fleet-pooler" not in steps(url)
    assert "server_login_retry" in steps(pooler.url_of(url))["fleet-pooler"].found


async def test_doctor_names_what_is_wrong_with_the_way_to_the_database(monkeypatch, url):
    [step] = steps(url.replace("corner", "wrong-one")).values()
    assert (step.name, step.outcome) == ("fleet-store", "fail")
    assert "wrong-one" not in step.model_dump_json()
    [step] = steps("postgresql://u@db.example.test/fleet").values()
    assert "does not ask for TLS" in step.found
    look = replace(server_probe.look_at(fleet(url)), checks_server=False)
    monkeypatch.setattr(server_probe, "look_at", lambda _server: look)
    assert steps(url)["fleet-store"].outcome == "warn"


# ---- in use ----------------------------------------------------------------------------------------------------------


def managed(token, tmp_path, url, **fields):
    config = token.config(**rules(tmp_path, overlapDays=1) | fields)
    block = config["sequencer"]["keyManager"]
    del block["stateFile"], block["requestTimeoutMs"]  # a bind on a busy machine takes longer than that
    config["sequencer"]["stateSecret"] = "s" * 32
    config["sequencer"]["keyManager"] = block | {"fleet": {"store": {"url": url}, "name": "tests", "singleNode": True}}
    return config


@pytest.mark.slow("rotations with all their steps")
async def test_a_key_manager_keeps_ring_rotations_and_wishes_in_the_database(fresh_token, tmp_path, postgres, url):
    config = managed(fresh_token(), tmp_path, url)
    async with opened(config) as manager:
        first = await manager.get_current_key_id()
        second = await manager.rotate_key()
        assert second != first
        assert await manager.verify(M, await manager.sign(M))
        assert manager._background.store_problems == {}
        for backend in postgres.backends(database_of(url)):  # the store's, and the lease's
            postgres.execute(f"SELECT pg_terminate_backend({backend}, 10000)")
        with suppress(StoreError):  # what was under way when the connection ended
            await Desired(manager._background._store).all()
        third = await manager.rotate_key()
    async with opened(config) as manager:
        assert await manager.get_current_key_id() == third
        assert manager._background.store_problems == {}
    assert not list(tmp_path.rglob("*.db"))
    reader = await Store.open_to_read(fleet(url))
    assert [key.state for key in await Keys(reader).all()] == ["overlap", "overlap", "active"]
    await reader.close()


async def test_a_key_manager_that_lost_the_role_rotates_again_once_it_is_free(fresh_token, tmp_path, postgres, url):
    config = managed(fresh_token(), tmp_path, url)
    del config["sequencer"]["stateSecret"]  # the row is written beside it
    async with opened(config) as manager:
        await manager.rotate_key()
        taken = "UPDATE hsmcore_tests.role SET epoch = epoch + 1, holder = 'other:1', until_ns = 1 RETURNING epoch"
        [(epoch,)] = postgres.execute(taken, database_of(url))

        async def rotates():
            with suppress(StoreBusy):
                return await manager.rotate_key() is not None

        await becomes(rotates)
        assert postgres.execute("SELECT epoch FROM hsmcore_tests.role", database_of(url)) == [(epoch + 1,)]


async def test_wishes_and_reports_pass_between_hosts(url):
    async with stores(url, url) as [first, second]:
        await Desired(first).set("force", "secondary", "game day")
        assert (await Desired(second).all())["force"].value == "secondary"
        assert await second.rows(select(SNAPSHOT)) == []


async def test_a_fleets_name_makes_one_schema():
    for name in ("a--b", "a-", "-a", "A", "a_b", "1a", "a.b", 'a"b', "a" * 33):
        with pytest.raises(ValueError, match="name"):
            Fleet.model_validate({"store": {"url": "postgresql://localhost/x"}, "name": name})


async def test_what_is_no_database_of_ours_is_refused(postgres, url):
    with pytest.raises(StoreError, match="does not exist"):
        await Store.open(fleet(postgres.url("nowhere")))
    postgres.execute("CREATE DATABASE latin ENCODING 'SQL_ASCII' LOCALE 'C' TEMPLATE template0")
    with pytest.raises(StoreError, match="encoding is SQL_ASCII"):
        await Store.open(fleet(postgres.url("latin")))
