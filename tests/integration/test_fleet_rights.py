"""A signer whose database role makes no table and removes no row that is bound; several fleets in one database."""

from __future__ import annotations

import asyncio
import json
import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from tests.integration.test_fleet_sealed import copied, put_back, signed
from tests.integration.test_state_postgres import database_of, managed
from tests.support.attending import attending
from tests.support.commands import commands
from tests.support.fleet_hosts import BLOCKS
from tests.support.loops import one_loop
from tests.support.managers import opened, until
from tests.support.policed import ordered
from tests.support.postgres import PASSWORD, USER, Cluster, fleet

from hsmcore.base.places import Folder
from hsmcore.config import Secret, load
from hsmcore.manager.policy.watermark import Watermark
from hsmcore.recovery.restore import back_up
from hsmcore.recovery.restore import restore as restored
from hsmcore.state import Store, StoreError, backup
from hsmcore.state.postgres.database import ServerDatabase
from hsmcore.state.postgres.rights import grants
from hsmcore.state.schema import METADATA, MIGRATIONS

pytestmark = pytest.mark.integration
SECRETS = {"sealed": Secret.plain("s" * 32), "unsealed": None}
TTL = 1000
SHAPES = (
    ("ALTER TABLE hsmcore_tests.bound ADD x BIGINT", "column x", "ALTER TABLE hsmcore_tests.bound DROP x"),
    (
        "DROP INDEX hsmcore_tests.approval_once",
        "the lack of index approval_once",
        "CREATE UNIQUE INDEX approval_once ON hsmcore_tests.approval (rotation_id, approver)",
    ),
)
"""What only a process that knows the migrations' tables finds: made, found, taken back."""


class Owned:
    """A database whose tables belong to USER, and the role of a signer, which owns nothing."""

    def __init__(self, server: Cluster) -> None:
        self.server, self.owner = server, server.database()
        self.role = f"signer_{secrets.token_hex(4)}"
        server.execute(f"CREATE ROLE {self.role} LOGIN PASSWORD '{PASSWORD}'")
        self.signer = self.owner.replace(f"//{USER}:", f"//{self.role}:")

    def migrate(self, *roles: str, name: str = "tests") -> list[str]:
        """As `hsmcore fleet migrate`."""
        return ServerDatabase(fleet(self.owner, name), writes=True, begins=True).migrate_for(roles or [self.role])

    def ask(self, statement: str) -> list[tuple[Any, ...]]:
        """Run a statement as the superuser."""
        return self.server.execute(statement, database_of(self.owner))

    @contextmanager
    def beside(self) -> Iterator[psycopg.Connection[Any]]:
        """A transaction of the superuser."""
        with self.server.connect(database_of(self.owner)) as on, on.transaction():
            on.execute("SET search_path TO hsmcore_tests")
            yield on

    def refused(self, statement: str) -> None:
        """Have the signer's role try a statement."""
        with self.server.connect(database_of(self.owner), user=self.role) as on:
            on.execute("SET search_path TO hsmcore_tests")
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                on.execute(statement.encode())


@pytest.fixture
def owned(postgres: Cluster) -> Owned:
    return Owned(postgres)


async def tried(place, secret=None) -> StoreError:
    """The refusal of a start."""
    with pytest.raises(StoreError) as caught:
        await (await Store.open(place, secret)).close()
    return caught.value


# ---- what the role may do --------------------------------------------------------------------------------------------


@one_loop
@pytest.mark.parametrize("secret", SECRETS.values(), ids=SECRETS)
async def test_hosts_bind_answer_an_incident_and_take_over(owned, tmp_path, secret):
    owned.migrate()
    here, beside = (
        fleet(owned.signer, host=name, ttlMs=TTL, claim=claim) for name, claim in (("a", "auto"), ("b", "manual"))
    )
    async with attending(here, tmp_path / "a", secret) as a:
        await until(lambda: a.member.state == "holder")
        async with attending(beside, tmp_path / "b", secret):
            await signed(a, 1)
            copy = copied(owned)
            await signed(a, 2)
        if secret is not None:
            await until(
                lambda: '"chain/block" : 2' in a.member._line.asking._highs
            )  # what a look has not seen, none misses
            put_back(owned, copy)
        else:
            owned.ask("DELETE FROM hsmcore_tests.bound WHERE position = 2; UPDATE hsmcore_tests.fleet SET incident = 1")
        await until(lambda: a.member.incident != 0)
        async with attending(beside, tmp_path / "b", secret) as b:
            await until(lambda: a.member.incident == 0 and a.member.state == "holder")
            assert await a.sign(2, "another") == "DoubleSign"
            await a.member.release()
            b.member.caught_up(BLOCKS, 2)
            await b.member.claim()
            await until(lambda: b.member.state == "holder")
            await signed(b, 3)
    assert owned.ask("SELECT position FROM hsmcore_tests.bound ORDER BY 1") == [(1,), (2,), (3,)]


@one_loop
@pytest.mark.slow("a rotation with all its steps")
@pytest.mark.parametrize("sealed", [True, False])
async def test_a_key_manager_signs_rotates_and_is_backed_up(fresh_token, tmp_path, owned, sealed):
    owned.migrate()
    config = managed(fresh_token(), tmp_path, owned.signer)
    config["sequencer"]["keyManager"] |= {
        "policy": {"kinds": ["block", "raw"], "maxAhead": 1024, "keepPositions": 1024},
        "auditLogFile": str(tmp_path / "audit.log"),
    }
    if not sealed:
        del config["sequencer"]["stateSecret"]
    async with opened(config) as manager:
        await until(lambda: manager.fleet.state == "holder")
        public_key = manager.public_key
        assert await manager.verify(ordered(1), await manager.sign(ordered(1)))
        await manager.rotate_key()
        assert manager.public_key != public_key
        assert await manager.sign(ordered(2))
        assert not manager._background.store_problems
    async with back_up(load(config)) as (statement, _, _):
        assert statement.highest == {"default/block": 2}


@one_loop
@pytest.mark.parametrize("secret", SECRETS.values(), ids=SECRETS)
async def test_what_could_change_rows_is_found_by_a_role_that_makes_nothing(owned, secret):
    owned.migrate()
    store = await Store.open(fleet(owned.signer), secret)
    try:
        assert await store.foreign() == ""
        for made, found, gone in (
            (
                "CREATE FUNCTION hsmcore_tests.f() RETURNS int LANGUAGE sql AS 'SELECT 1'",
                "function f",
                "DROP FUNCTION hsmcore_tests.f()",
            ),
            (
                "CREATE TRIGGER t BEFORE UPDATE ON hsmcore_tests.fleet EXECUTE FUNCTION tsvector_update_trigger(a, b)",
                "trigger t",
                "DROP TRIGGER t ON hsmcore_tests.fleet",
            ),
            (
                "CREATE RULE r AS ON INSERT TO hsmcore_tests.bound DO INSTEAD NOTHING",
                "rule r",
                "DROP RULE r ON hsmcore_tests.bound",
            ),
            *(SHAPES if secret is not None else ()),
        ):
            owned.ask(made)
            assert await store.foreign() == found
            owned.ask(gone)
            assert await store.foreign() == ""
    finally:
        await store.close()


def test_the_role_makes_nothing_and_removes_no_promise(owned):
    owned.migrate()
    owned.ask("INSERT INTO hsmcore_tests.bound VALUES ('d', 1, 'a', 'h', 0, '')")
    for statement in (
        "CREATE TABLE t (x int)",
        "CREATE SCHEMA s",
        "DELETE FROM bound",
        "UPDATE bound SET digest = 'b'",
        "TRUNCATE bound",
        "DROP TABLE bound",
        "DELETE FROM watermark",
        "DELETE FROM key_domain",
        "DELETE FROM key_version",
        "DELETE FROM emergency_episode",
        "DELETE FROM seal",
        "INSERT INTO schema_version VALUES (99, 0)",
        "UPDATE schema_version SET version = 99",
        "CREATE TRIGGER t BEFORE INSERT ON bound EXECUTE FUNCTION suppress_redundant_updates_trigger()",
    ):
        owned.refused(statement)
    said = " ".join(grants("hsmcore_tests", owned.role))
    assert all(f'."{table.name}"' in said for table in METADATA.sorted_tables)


@one_loop
async def test_rows_behind_a_floor_are_the_owners_to_remove(owned, tmp_path, capfdbinary, world):
    owned.migrate()
    store = await Store.open(fleet(owned.signer))
    try:
        mark = Watermark(store, "a:1")
        owned.ask("INSERT INTO hsmcore_tests.bound SELECT 'd', i, 'a', 'h', 0, '' FROM generate_series(0, 4999) i")
        assert await mark.raise_floor("d", 3999, "final") == 0
        assert owned.ask("SELECT count(*) FROM hsmcore_tests.bound") == [(5000,)]
        await mark.close()
    finally:
        await store.close()


def test_the_owner_prunes(owned, tmp_path, capfdbinary, world, monkeypatch):
    owned.migrate()
    owned.ask("INSERT INTO hsmcore_tests.bound SELECT 'd', i, 'a', 'h', 0, '' FROM generate_series(0, 4999) i")
    owned.ask("INSERT INTO hsmcore_tests.watermark VALUES ('d', 3999, 4999, '1', 'final')")
    monkeypatch.setenv("PG_OWNER_URL", owned.owner)
    write(tmp_path, world, owned.signer)
    with commands(tmp_path, capfdbinary, "fleet") as command:
        code, found, _ = command("prune")
        assert (code, found) == (0, {"forgotten": 0})
        code, found, _ = command("prune", "--url-env", "PG_OWNER_URL")
        assert (code, found) == (0, {"forgotten": 4000})
    assert owned.ask("SELECT min(position), count(*) FROM hsmcore_tests.bound") == [(4000, 1000)]


# ---- what the owner does ---------------------------------------------------------------------------------------------


def write(folder, token, url, name="tests"):
    """A configuration of a fleet."""
    rules = token.config(fleet={"store": {"url": url}, "name": name, "singleNode": True, "host": "a"})
    (folder / "config.json").write_text(json.dumps(rules))


def test_migrate_makes_the_tables_and_prints_what_it_would_grant(owned, tmp_path, capfdbinary, world, monkeypatch):
    monkeypatch.setenv("PG_OWNER_URL", owned.owner)
    write(tmp_path, world, owned.signer)
    as_owner = ("--role", owned.role, "--url-env", "PG_OWNER_URL")
    with commands(tmp_path, capfdbinary, "fleet") as command:
        code, text, _ = command("migrate", "--sql", *as_owner, plain=True)
        assert code == 0
        assert text.splitlines() == [f"{one};" for one in grants("hsmcore_tests", owned.role)]
        assert owned.ask("SELECT to_regnamespace('hsmcore_tests')") == [(None,)]
        code, _, err = command("status")
        assert code == 1
        assert "it has no tables yet, and this role may not" in err
        assert "hsmcore fleet migrate --role" in err
        for _ in range(2):
            code, found, _ = command("migrate", *as_owner)
            assert (code, found["schema"], found["roles"]) == (0, "hsmcore_tests", [owned.role])
        assert command("status")[0] == 0
        code, _, err = command("migrate", "--role", 'x"; DROP', "--url-env", "PG_OWNER_URL")
        assert (code, "is no name of a role" in err) == (1, True)
        code, _, err = command("migrate", "--role", "nobody_here", "--url-env", "PG_OWNER_URL")
        assert (code, "CREATE ROLE" in err) == (1, True)
        code, _, err = command("migrate", "--role", USER, "--url-env", "PG_OWNER_URL")
        assert (code, "no right limits it" in err) == (1, True)
        assert PASSWORD not in err


@one_loop
@pytest.mark.parametrize("secret", SECRETS.values(), ids=SECRETS)
async def test_a_role_without_rights_says_which_command_gives_them(owned, secret):
    place = fleet(owned.signer)
    refusal = await tried(place, secret)
    assert "it has no tables yet, and this role may not" in str(refusal)
    assert "`hsmcore fleet migrate --role ROLE`" in refusal.hint
    await asyncio.to_thread(owned.migrate)
    newest = MIGRATIONS[-1]
    owned.ask(f"DELETE FROM hsmcore_tests.schema_version WHERE version = {newest.number}")  # noqa: S608  # a number of ours
    for statement in newest.statements:
        if added := re.fullmatch(r"ALTER TABLE (\w+) ADD COLUMN (\w+) .*", statement):
            owned.ask(f"ALTER TABLE hsmcore_tests.{added[1]} DROP COLUMN {added[2]}")
        elif made := re.match(r"CREATE TABLE (\w+) ", statement):
            owned.ask(f"DROP TABLE hsmcore_tests.{made[1]}")
    refusal = await tried(place, secret)
    assert "an older version of hsmcore has made its tables, and this role may not" in str(refusal)
    assert "`hsmcore fleet migrate --role ROLE`" in refusal.hint
    assert await asyncio.to_thread(owned.migrate, name="tests") == [owned.role]
    await (await Store.open(place, secret)).close()
    owned.ask(f"REVOKE USAGE ON SCHEMA hsmcore_tests FROM {owned.role}")
    refusal = await tried(place, secret)
    assert ("permission denied" in str(refusal), "fleet migrate" in refusal.hint) == (True, True)


def test_what_the_databases_owner_must_grant_is_said(owned):
    database = database_of(owned.owner)
    owned.server.execute(f"REVOKE ALL ON DATABASE {database} FROM PUBLIC")
    assert owned.migrate() == [owned.role]  # the database is the owner's too
    owned.server.execute(f"REVOKE ALL ON DATABASE {database} FROM {owned.role}")
    owned.server.execute(f"ALTER DATABASE {database} OWNER TO postgres")
    owned.server.execute(f"GRANT CONNECT, CREATE ON DATABASE {database} TO {USER}")
    with pytest.raises(StoreError, match="cannot use the database") as caught:
        owned.migrate()
    assert caught.value.hint.endswith(f"GRANT CONNECT ON DATABASE {database} TO {owned.role}")


# ---- several fleets --------------------------------------------------------------------------------------------------


@one_loop
async def test_two_fleets_sign_in_one_database(owned, tmp_path):
    owned.migrate()
    first = fleet(owned.signer, host="a", ttlMs=TTL)
    refusal = await tried(fleet(owned.owner, "others"))
    assert "it is the database of another fleet, tests" in str(refusal)
    assert refusal.hint == (
        "Correct fleet.name. Only if several fleets are to share the database: hsmcore fleet migrate"
    )
    await asyncio.to_thread(owned.migrate, name="others")
    second = fleet(owned.signer, "others", host="a", ttlMs=TTL)
    for name in ("other", "otherss", "test"):
        assert "it is the database of another fleet" in str(await tried(fleet(owned.owner, name)))
    async with attending(first, tmp_path / "a") as one, attending(second, tmp_path / "b") as two:
        await until(lambda: (one.member.state, two.member.state) == ("holder", "holder"))
        for host, text in ((one, "one"), (two, "two")):
            while refused := await host.sign(1, text):
                assert refused in ("NotHolder", "StoreUnknown")
                await asyncio.sleep(0.01)
    [mine], [theirs] = (owned.ask(f"TABLE hsmcore_{each}.bound") for each in ("tests", "others"))
    assert mine[2] != theirs[2]


@one_loop
async def test_a_restored_fleet_leaves_the_other_alone_and_its_signers_their_rights(owned, tmp_path, world):
    owned.migrate()
    await asyncio.to_thread(owned.migrate, name="others")
    places = {name: fleet(owned.signer, name, host="a") for name in ("tests", "others")}
    bind: Callable[[str, int], str] = lambda name, at: (  # noqa: E731
        f"INSERT INTO hsmcore_{name}.bound VALUES ('d', {at}, '{name}', 'h', 0, '')"  # noqa: S608
    )
    for name in places:
        owned.ask(bind(name, 1))
    made = world.config(
        auditLogFile=str(tmp_path / "audit.log"),
        fleet={"store": {"url": owned.owner}, "name": "tests", "host": "a", "singleNode": True},
    )
    async with back_up(load(made)) as (_, head, body):
        await Folder(str(tmp_path), tmp_path).create("made", head, body)
    for name in places:
        owned.ask(bind(name, 2))
    with pytest.raises(StoreError, match="there are rows"):
        async with backup.mapping(tmp_path / "made") as data:
            await restored(load(made), data, replace=False)
    async with backup.mapping(tmp_path / "made") as data:
        _, aside = await restored(load(made), data, replace=True)
    count = "SELECT count(*) FROM {}.bound"
    assert [owned.ask(count.format(each)) for each in ("hsmcore_tests", aside, "hsmcore_others")] == [
        [(1,)], [(2,)], [(2,)],
    ]  # fmt: skip
    for place in places.values():
        store = await Store.open(place)
        assert await store.foreign() == ""
        await store.close()
    owned.refused("DELETE FROM bound")
