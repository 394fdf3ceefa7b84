"""The seal of the state store: each row that another writer has changed, added, removed or put back is found before it
is used, and no writer of ours leaves a sealed table without a new seal."""

from __future__ import annotations

import ast
import re
import sqlite3
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import delete, func, insert, select, update
from tests.support.forged import TABLES, UNSEALED, Forgery, Original, add_fleet, forgeries
from tests.support.loops import one_loop
from tests.support.paths import ROOT
from tests.support.postgres import fleet
from tests.support.raw_store import raw
from tests.support.size import FULL

from hsmcore.config import Fleet, Secret
from hsmcore.errors import SecretUnavailable
from hsmcore.failover.budget import Emergency, Limits
from hsmcore.manager.policy.wants import PayloadPlace
from hsmcore.manager.policy.watermark import Watermark, marks_of
from hsmcore.manager.rotation.machine import Run
from hsmcore.manager.rotation.store import Rotations
from hsmcore.state import Approval, Approvals, Desired, Keys, Store, StoreError, StoreNotGenuine
from hsmcore.state.domains import Binder, KeyDomain, everything
from hsmcore.state.schema import (
    APPROVAL,
    AUDIT_MARK,
    BACKUP,
    DESIRED_STATE,
    EMERGENCY_EPISODE,
    KEY_VERSION,
    METADATA,
    NOTICE,
    ROLE,
    ROTATION,
    ROTATION_STEP,
    SPENT,
)
from hsmcore.state.seal import Problems, Seal, derive
from hsmcore.state.seal_guard import scopes_of
from hsmcore.state.sealed_rows import SEALED, _trimmed

file_first = pytest.mark.parametrize(
    "place",
    ["file", *(pytest.param(kind, marks=pytest.mark.deep) for kind in ("postgres", "pooled"))],
    indirect=True,
)
"""For what the seal does itself: the same code runs on a server, where the tests that have none of this look at it."""

SECRET, OTHER = Secret.plain("s" * 32), Secret.plain("o" * 32)


NO_ACT = {"fleet.renewals", "fleet_host.instance", "fleet_host.seen_ns", "fleet_host.state", "watermark.message"}
"""Columns of a server's store that no digest has: who writes them can delay and deny, a message is compared with its
digest."""


async def filled(path: Path | Fleet, secret: Secret | None = SECRET) -> Store:
    """A store with rows in every sealed table."""
    store = await Store.open(path, secret)
    keys, rotations, budget = Keys(store), Rotations(store), Emergency(store, Limits(100, 3600))
    await keys.begin("aa" * 8, b"\1" * 32, "ed25519", "key", ["softhsm:primary"], "as configured")
    for label in ("key-00000001", "key-00000002"):
        current = await keys.current()
        rotation = await rotations.begin("manual", current.version, label, None)
        await keys.change(rotation.new, key_id="bb" * 8, public_key=rotation.new.to_bytes(32))
        await rotations.note(rotation.id, "generate", "done", {"keyId": "bb" * 8})
        for name in ("bob", "carol"):
            await Approvals(store).add(rotation.id, Approval(name, "ab"))
        await rotations.record(rotation.id, Run("done", "destroy"), "destroy", "done", {})
    values = {"key_id": "bb" * 8, "public_key": "01", "place": "p", "method": "wrapped", "sha256": "00", "made_ns": 1}
    await store.run(lambda on: on.execute(insert(BACKUP).values(name="n", **values)))
    for reason in ("first", "second"):
        await budget.spend()
        await budget.reset(reason)
    await budget.spend()
    for name in ("drain:softhsm:primary", "force", "readmit:softhsm:primary"):
        await Desired(store).set(name, "primary", "a reason")
    signing = Binder(KeyDomain("chain", ("block",)), lambda: [bytes([key]) * 32 for key in (8, 9)])
    mark = Watermark(store, "host:1", binder=signing)
    for number in (1, 2):
        await mark.require(PayloadPlace(f"chain-{number}/block", number, "ab"))
        await store.run(lambda on, n=number: on.execute(insert(SPENT).values(name=f"chain-{n}", minute=1, amount=10)))
    await store.run(add_fleet)
    return store


async def adopted(path: Path) -> Store:
    """Return an open store that had rows before it had a seal."""
    await (await filled(path, None)).close()
    store = await Store.open(path, SECRET)
    await store.adopt((await store.seal_status()).digest)
    return store


async def reading(store: Store) -> list[str]:
    """Use every scope. Returns those that are not believed."""
    budget = Emergency(store, Limits(100, 3600))
    uses = {
        "ring": Keys(store).all,
        "steps": Rotations(store).steps,
        "backups": lambda: store.rows(select(BACKUP)),
        "budget": budget.status,
        "orders": Desired(store).all,
        "policy": lambda: marks_of(store),
        "domains": lambda: store.run(everything),
        "fleet": lambda: store.rows(select(ROLE)),
        "witness": lambda: store.rows(select(AUDIT_MARK)),
    }
    assert uses.keys() == SEALED.keys()
    found = []
    for scope, use in uses.items():
        try:
            await use()
        except StoreNotGenuine:
            found.append(scope)
    return found


@one_loop
async def test_what_we_write_is_believed(place):
    store = await filled(place)
    assert await reading(store) == []
    status = await store.seal_status()
    assert (status.sealed, status.problems) == (True, {})
    await store.close()
    again = await Store.open(place, SECRET)
    assert await reading(again) == []
    assert await Keys(again).current() is not None
    await again.close()


def test_there_are_enough_forged_states():
    assert len(list(forgeries())) >= 250


async def every_one_is_found(place: Path | Fleet, forged: Iterable[Forgery]) -> int:
    """Try forged states of a store with rows in every table. Returns how many the database takes."""
    store = await filled(place)
    original, tried = Original(place), 0
    for forgery in forged:
        if original.forge(forgery):
            tried += 1
            expected = [forgery.scope] if forgery.scope else list(SEALED)
            if not isinstance(place, Path) and forgery.name.partition("=")[0] in NO_ACT:
                expected = []
            assert await reading(store) == expected, forgery.name
            await store.look()
            assert list(store.problems) == expected, forgery.name
        original.put_back()
    assert await reading(store) == []
    await store.close()
    return tried


@one_loop
@pytest.mark.parametrize("table", [*(table.name for table in TABLES), ""])
async def test_every_forged_state_is_found_in_the_transaction_that_would_use_it(tmp_path, table):
    """Of each table each third one; `make check-deep` tries all."""
    chosen = [*forgeries(table)][:: 1 if FULL else 3]
    assert await every_one_is_found(tmp_path / "state.db", chosen) >= (8 if FULL else 2)


@one_loop
@pytest.mark.parametrize("part", [0, *(pytest.param(part, marks=pytest.mark.deep) for part in (1, 2, 3))])
async def test_forged_states_of_a_server_are_found(postgres, part):
    """All objects, and each sixth row: rows are compared by the same code as those of a file."""
    chosen = [*[*forgeries()][::6], *forgeries("")][part::4]
    assert await every_one_is_found(fleet(postgres.database()), chosen) >= 15


def as_sealed_before(place: Fleet) -> None:
    """Make of a store's watermarks what an older version has written."""
    with raw(place) as connection:
        connection.execute("UPDATE watermark SET mac = NULL, message = NULL")


@one_loop
@pytest.mark.parametrize("forged", ["", "UPDATE watermark SET high = 7", "UPDATE fleet SET renewals = 9"])
async def test_a_server_s_store_that_an_older_version_sealed_is_taken_over(postgres, forged):
    """At its first start, without an adoption; one whose rows the seal does not vouch for waits for an operator."""
    place = fleet(postgres.database())
    store = await filled(place)
    as_sealed_before(place)
    seal = store._database.seal
    assert seal is not None
    seal._witnessed = False  # as that version made it: all columns are in the digests
    await store.adopt((await store.seal_status()).digest)
    await store.close()
    if forged:
        with raw(place) as connection:
            connection.execute(forged)
    for _ in range(2):
        again = await Store.open(place, SECRET)
        assert {"policy", "fleet"} >= set(await reading(again))
        assert bool(await reading(again)) == bool(forged)
        await again.close()
    with raw(place) as connection:
        assert all(connection.execute("SELECT mac FROM watermark")[0]) == (not forged)


@one_loop
async def test_the_tables_that_lead_to_acts_are_sealed():
    unsealed = METADATA.tables.keys() - {table.name for table in TABLES}
    assert unsealed == {"schema_version", "seal", *(table.name for table in UNSEALED)}


@one_loop
async def test_nothing_is_written_into_a_scope_that_is_not_genuine(place):
    """Else the next seal would vouch for the forged row."""
    store = await filled(place)
    budget = Emergency(store, Limits(100, 3600))
    await budget.reset("so that the ring has the clock's mark")
    original = Original(place)
    writes = {
        "ring": lambda: Keys(store).set_setting("configured", "other"),
        "steps": lambda: Rotations(store).note(1, "generate", "done", {}),
        "backups": lambda: store.run(lambda on: on.execute(update(BACKUP).values(drilled_ns=1))),
        "budget": lambda: budget.reset("again"),
        "orders": lambda: Desired(store).set("force", None, ""),
    }
    for scope, table in (("ring", "key_version"), ("steps", "approval"), ("backups", "backup"),
                         ("budget", "emergency_episode"), ("orders", "desired_state")):  # fmt: skip
        original._write(lambda on, table=table: on.execute(f"DELETE FROM {table}"))  # noqa: S608
        forged = Original(place)
        with pytest.raises(StoreNotGenuine, match=scope):
            await writes[scope]()
        assert not forged.differs()
        original.put_back()
        assert await reading(store) == []
    await store.close()


def found_behind(place: Path | Fleet) -> list[str]:
    """What is not believed where an order has gone back: in a fleet's database, the first transaction, which tells the
    hosts, and the orders."""
    return list(SEALED) if isinstance(place, Path) else ["ring", "orders"]


@one_loop
async def test_a_state_from_before_is_found_while_the_process_runs(place):
    store = await filled(place)
    before = Original(place)  # with its seal
    await Desired(store).set("force", None, "")
    before.put_back()
    assert await reading(store) == found_behind(place)
    assert any("earlier state" in problem for problem in store.problems.values()) == isinstance(place, Path)
    assert await reading(store) == (list(SEALED) if isinstance(place, Path) else ["orders"])
    await store.close()
    # The limit that docs/ROTATION.md names: a process that starts later has seen nothing else.
    again = await Store.open(place, SECRET)
    assert await reading(again) == []
    await again.close()


@one_loop
async def test_a_state_from_before_is_found_also_after_another_process_has_gone_on_from_it(place):
    running = await filled(place)
    before = Original(place)
    await Desired(running).set("force", None, "")
    assert await reading(running) == []
    before.put_back()
    running._database.seal, kept = None, running._database.seal  # as another process: a Store shares its database
    other = await Store.open(place, SECRET)
    await Desired(other).set("emergency", "enabled", "the counter is that of the removed state")
    running._database.seal = kept
    assert await reading(running) == found_behind(place)
    for store in (running, other):
        await store.close()


@one_loop
@pytest.mark.parametrize("is_adopted", [False, True])
async def test_rows_of_a_sealed_store_mean_nothing_in_another(tmp_path, is_adopted):
    mine, other = [
        await (adopted if is_adopted else filled)(path) for path in (tmp_path / "mine.db", tmp_path / "other.db")
    ]
    await Desired(other).set("force", "emergency", "for the other store")
    await Desired(other).set("force", "emergency", "again: its counter is greater")
    theirs = Original(tmp_path / "other.db")
    mine_file = Original(tmp_path / "mine.db")
    mine_file.rows = theirs.rows
    mine_file.put_back()
    assert await reading(mine) == list(SEALED)
    for store in (mine, other):
        await store.close()


@one_loop
async def test_a_forged_index_shows_no_other_row(tmp_path):
    """Bytes of the file, not SQL: the partial index that finds the active version names another row."""
    path = tmp_path / "state.db"
    store = await filled(path)
    await store.close()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA writable_schema = ON")
        where = "UPDATE sqlite_master SET sql = replace(sql, '''active''', '''destroyed''') WHERE name = ?"
        connection.execute(where, ("key_version_active",))
        connection.commit()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("REINDEX key_version_active")
        connection.execute("PRAGMA writable_schema = ON")
        back = "UPDATE sqlite_master SET sql = replace(sql, '''destroyed''', '''active''') WHERE name = ?"
        connection.execute(back, ("key_version_active",))
        connection.commit()
    with closing(sqlite3.connect(path)) as connection:
        [(found,)] = connection.execute("SELECT count(*) FROM key_version WHERE state = 'active'")
        [(there,)] = connection.execute("SELECT count(*) FROM key_version NOT INDEXED WHERE state || '' = 'active'")
    assert (found, there) == (0, 1), "SQLite is misled"
    again = await Store.open(path, SECRET)
    assert await reading(again) == ["ring"]
    await again.close()


@one_loop
async def test_a_default_of_the_schema_adds_nothing(tmp_path):
    """A column that our INSERT leaves out would take the forged default, and be sealed with it."""
    store = await filled(tmp_path / "state.db")
    with closing(sqlite3.connect(tmp_path / "state.db")) as connection:
        connection.execute("PRAGMA writable_schema = ON")
        sql = "replace(sql, 'activated_ns BIGINT', 'activated_ns BIGINT DEFAULT 1')"
        connection.execute(f"UPDATE sqlite_master SET sql = {sql} WHERE name = 'key_version'")  # noqa: S608
        connection.commit()
    assert await reading(store) == list(SEALED)
    await store.close()


@one_loop
async def test_tables_of_other_tools_do_no_harm(tmp_path):
    store = await filled(tmp_path / "state.db")
    with closing(sqlite3.connect(tmp_path / "state.db")) as connection:
        connection.execute("CREATE TABLE _litestream_seq (id INTEGER PRIMARY KEY, seq INTEGER)")
        connection.execute("ANALYZE")
        connection.commit()
    assert await reading(store) == []
    await store.close()


@one_loop
@file_first
async def test_a_store_with_rows_is_sealed_only_by_adoption(place):
    await (await filled(place, None)).close()
    store = await Store.open(place, SECRET)
    assert await reading(store) == list(SEALED)
    status = await store.seal_status()
    assert (status.sealed, set(status.problems.values())) == (False, {"it was never sealed"})
    with pytest.raises(StoreError, match="does not have that digest"):
        await store.adopt("00" * 32)
    assert await reading(store) == list(SEALED)
    await store.adopt(status.digest)
    assert (await store.seal_status()).problems == {}
    assert await reading(store) == []
    await store.close()


@one_loop
async def test_a_row_that_comes_between_the_look_and_the_adoption_is_not_adopted(tmp_path):
    store = await filled(tmp_path / "state.db", None)
    await store.close()
    store = await Store.open(tmp_path / "state.db", SECRET)
    shown = (await store.seal_status()).digest
    Original(tmp_path / "state.db")._write(lambda on: on.execute("UPDATE key_version SET state = 'pending'"))
    with pytest.raises(StoreError, match="does not have that digest"):
        await store.adopt(shown)
    Original(tmp_path / "state.db")._write(
        lambda on: on.execute("CREATE TRIGGER later AFTER INSERT ON notice BEGIN DELETE FROM rotation; END")
    )
    with pytest.raises(StoreError, match="trigger later"):
        await store.adopt((await store.seal_status()).digest)
    await store.close()


@one_loop
async def test_an_adoption_is_believed_by_a_process_that_has_seen_later_states(place):
    running = await filled(place)
    before = Original(place)
    for reason in ("a state", "that is", "much later"):
        await Desired(running).set("force", None, reason)
    before.put_back()
    assert await reading(running) == found_behind(place)
    running._database.seal, kept = None, running._database.seal  # as another process: a Store shares its database
    other = await Store.open(place, SECRET)
    await other.adopt((await other.seal_status()).digest)
    running._database.seal = kept
    assert await reading(running) == []
    for store in (running, other):
        await store.close()


@one_loop
@file_first
async def test_without_the_secret_a_sealed_store_is_not_written(place):
    await (await filled(place)).close()
    original = Original(place)
    store = await Store.open(place)
    assert len(await Keys(store).all()) == 3
    for write in (Desired(store).set("force", None, ""), Keys(store).set_setting("configured", "x")):
        with pytest.raises(StoreError, match="is sealed"):
            await write
    await Desired(store).report("process", {"it": "runs"})  # not a sealed table
    assert not original.differs()
    await store.close()


@one_loop
@file_first
async def test_another_secret_is_no_secret(place):
    await (await filled(place)).close()
    store = await Store.open(place, OTHER)
    assert await reading(store) == list(SEALED)
    with pytest.raises(StoreError, match="another stateSecret"):
        await Store.open(place, SECRET)
    await store.close()


@one_loop
async def test_the_secret_is_long_and_stays_hidden(tmp_path):
    with pytest.raises(StoreError, match="31 bytes") as short:
        await Store.open(tmp_path / "state.db", Secret.plain("k" * 31))
    assert "kkk" not in str(short.value)
    with pytest.raises(SecretUnavailable):
        await Store.open(tmp_path / "state.db", Secret.env("HSMCORE_NO_SUCH_VARIABLE"))
    assert not (tmp_path / "state.db").exists()
    seal = Seal(derive(SECRET), lambda _: "", Problems(), witnessed=False)
    assert repr(seal) == "Seal(hidden)"
    seal.wipe()
    assert seal._key == bytes(32)


@one_loop
@file_first
async def test_a_store_that_only_shows_reads_what_is_there_and_writes_nothing(place):
    store = await filled(place)
    Original(place)._write(lambda on: on.execute("UPDATE key_version SET note = 'forged'"))
    shown = await Store.open(place, SECRET, shows=True)
    assert {key.note for key in await Keys(shown).all()} == {"forged"}
    assert list(shown.problems) == ["ring"]
    with pytest.raises(StoreNotGenuine):
        await Keys(shown).set_setting("configured", "x")
    for each in (store, shown):
        await each.close()


@one_loop
@file_first
async def test_a_change_is_told_once_each_way(place):
    store = await filled(place)
    told = []
    end = store.watch(lambda scope, problem: told.append((scope, bool(problem))))
    original = Original(place)
    original._write(lambda on: on.execute("DELETE FROM desired_state"))
    for _ in range(3):
        await store.look()
        await reading(store)
    original.put_back()
    for _ in range(3):
        await store.look()
    assert told == [("orders", True), ("orders", False)]
    end()
    await store.close()


@one_loop
async def test_a_transaction_that_fails_leaves_the_seal_as_it_was(place):
    store = await filled(place)
    original = Original(place)

    def fails(connection):
        connection.execute(update(KEY_VERSION).values(note="half"))
        raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        await store.run(fails)
    assert not original.differs()
    assert await reading(store) == []
    await Keys(store).set_setting("configured", "x")
    assert await reading(store) == []
    await store.close()


@pytest.mark.parametrize(
    ("statement", "scopes"),
    [
        (select(KEY_VERSION), {"ring"}),
        (select(func.max(APPROVAL.c.time_ns)), {"steps"}),
        (select(NOTICE.c.id).where(NOTICE.c.id.in_(select(BACKUP.c.id))), {"backups"}),
        (select(NOTICE.c.id).where(select(DESIRED_STATE.c.name).exists()), {"orders"}),
        (select(NOTICE.c.id).join(ROTATION, ROTATION.c.id == NOTICE.c.id), {"ring"}),
        (select(select(EMERGENCY_EPISODE.c.id).subquery()), {"budget"}),
        (select(ROTATION.alias().c.id), {"ring"}),
        (select(KEY_VERSION.c.id).union(select(BACKUP.c.id)), {"ring", "backups"}),
        (insert(DESIRED_STATE), {"orders"}),
        (insert(NOTICE).from_select(["id"], select(APPROVAL.c.id)), {"steps"}),
        (update(KEY_VERSION).values(note=select(DESIRED_STATE.c.value).scalar_subquery()), {"ring", "orders"}),
        (delete(ROTATION_STEP), {"steps"}),
        (select(NOTICE), set()),
    ],
    ids=range(1, 14),
)
def test_every_form_of_statement_shows_the_tables_that_it_uses(statement, scopes):
    assert scopes_of(statement) == scopes


def test_every_writer_of_a_sealed_table_goes_through_the_guard():
    """The guard sees statements of SQLAlchemy Core. SQL as text stands only where tables are made and sealed."""
    allowed = {"database.py", "copies.py", "sqlite.py", "seal.py", "sealed_rows.py"}
    allowed |= {"postgres/database.py", "postgres/link.py", "postgres/rights.py", "postgres/schema.py"}
    allowed |= {"postgres/binding.py", "postgres/place.py"}  # which only read
    state = ROOT / "core/hsmcore/state"
    for file in sorted((ROOT / "core/hsmcore").rglob("*.py")):
        if not re.search("exec_driver_sql|driver_connection|sqlalchemy", text := file.read_text()):
            continue
        nodes = list(ast.walk(ast.parse(text)))
        names = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
        imported = {
            alias.name
            for node in nodes
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sqlalchemy")
            for alias in node.names
        }
        raw = {"exec_driver_sql", "driver_connection"} & names | {"text", "DDL", "literal_column"} & imported
        assert not raw or file in {state / name for name in allowed}, (file, raw)


def test_every_open_store_of_the_library_gets_the_secret():
    """`Store.open` without the secret would read rows that nothing vouches for."""
    for file in sorted((ROOT / "core/hsmcore").rglob("*.py")):
        text = file.read_text()
        for node in ast.walk(ast.parse(text)) if "Store" in text else ():
            opens = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "open"
            if opens and isinstance(node.func.value, ast.Name) and node.func.value.id == "Store":
                given = ast.unparse(node.args[1]) if len(node.args) > 1 else ""
                shows_unchecked = file == ROOT / "core/hsmcore/cli/opened.py" and not given
                assert given.endswith("state_secret") or shows_unchecked, (file, ast.unparse(node))


@given(st.lists(st.sampled_from([None, 0, "", "x"])))
def test_a_null_at_the_end_of_a_row_counts_for_nothing_and_any_other_does(row):
    """Also a row of nothing else, as SQLite takes it from another writer."""
    trimmed = _trimmed(row)
    assert [*trimmed, *[None] * (len(row) - len(trimmed))] == row
    assert trimmed == () or trimmed[-1] is not None


@one_loop
async def test_an_empty_store_in_which_another_writer_has_left_something_is_not_sealed(tmp_path):
    path = tmp_path / "state.db"
    await (await Store.open(path)).close()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TRIGGER t AFTER INSERT ON key_version BEGIN DELETE FROM rotation; END")
    store = await Store.open(path, SECRET)
    status = await store.seal_status()
    assert (status.sealed, {*status.problems} == {*SEALED}) == (False, True)
    await store.close()
