"""The file of positions: what is written is read again, an import only raises, and hostile files are refused."""

from __future__ import annotations

import asyncio
import copy
import hashlib
import json
from contextlib import suppress

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.loops import one_loop
from tests.support.size import share

from hsmcore.errors import BadArgument
from hsmcore.manager.policy.wants import PayloadPlace
from hsmcore.manager.policy.watermark import Watermark
from hsmcore.recovery import interchange
from hsmcore.recovery.interchange import Interchange, export, import_, parse, require_fleet, text_of
from hsmcore.state import Store, StoreError

A, B = (hashlib.sha256(text).hexdigest() for text in (b"a", b"b"))
GOOD = {
    "hsmcoreFleet": 1,
    "fleet": "sequencer",
    "domains": [
        {"domain": "chain/block", "floor": 3, "high": 9, "reason": "final",
         "bound": [{"position": 5, "digest": A}, {"position": 9, "digest": B}]},
        {"domain": "chain/state-root", "floor": -1, "high": -1},
    ],
}  # fmt: skip


class Bytes:
    """The secret of a seal."""

    def resolve(self):
        return bytearray(b"a secret of more than 32 bytes, for tests only")


async def filled(path, document, secret=None):
    store = await Store.open(path, secret)
    done = await import_(store, parse(orjson.dumps(document)))
    return store, done


@one_loop
@pytest.mark.parametrize("secret", [None, Bytes()], ids=["plain", "sealed"])
async def test_an_export_is_imported_into_another_store(tmp_path, secret):
    store, done = await filled(tmp_path / "one.db", GOOD, secret)
    assert (done.added, done.floors, done.conflicts) == (2, {"chain/block": 3}, [])
    text = text_of(await export(store, "sequencer"))
    await store.close()
    other = await Store.open(tmp_path / "other.db", secret)
    await import_(other, parse(text))
    assert text_of(await export(other, "sequencer")) == text
    mark = Watermark(other, "host:1")
    await mark.require(PayloadPlace("chain/block", 5, A))
    assert await refused(mark, 5, B) == "DoubleSign"
    assert await refused(mark, 3, A) == "PolicyRefused"
    assert await refused(mark, 6, A) == ""
    await mark.close()
    await other.close()


async def refused(mark, position, digest):
    [error] = await asyncio.gather(mark.require(PayloadPlace("chain/block", position, digest)), return_exceptions=True)
    return "" if error is None else type(error).__name__


@one_loop
async def test_an_import_only_raises(tmp_path):
    store, _ = await filled(tmp_path / "one.db", GOOD)
    other = copy.deepcopy(GOOD)
    other["domains"][0] |= {"floor": 1, "high": 12}
    other["domains"][0]["bound"] = [
        {"position": 2, "digest": B}, {"position": 5, "digest": B}, {"position": 12, "digest": A},
    ]  # fmt: skip
    done = await import_(store, parse(orjson.dumps(other)))
    assert (done.added, done.floors) == (1, {})
    [conflict] = done.conflicts
    assert (conflict["position"], conflict["digest"], conflict["bound"]) == (5, B, A)
    found = (await export(store, None)).domains[0]
    assert (found.floor, found.high, [(row.position, row.digest) for row in found.bound]) == (
        3,
        12,
        [(5, A), (9, B), (12, A)],
    )
    again = await import_(store, parse(orjson.dumps(GOOD)))
    assert (again.added, again.floors, again.conflicts) == (0, {}, [])
    await store.close()


@one_loop
async def test_what_a_file_has_no_room_for_is_below_its_floor(tmp_path, monkeypatch):
    monkeypatch.setattr(interchange, "MOST_ROWS", 4)
    store = await Store.open(tmp_path / "one.db")
    mark = Watermark(store, "host:1")
    for position in range(10):
        await mark.require(PayloadPlace("chain/block", position, A))
        if position == 3:
            [found] = (await export(store, "sequencer")).domains
            assert (found.floor, len(found.bound)) == (-1, 4)
    [found] = (await export(store, "sequencer")).domains
    assert (found.floor, [row.position for row in found.bound]) == (5, [6, 7, 8, 9])
    await mark.close()
    await store.close()


@one_loop
async def test_a_store_with_foreign_rows_is_not_exported(tmp_path):
    store, _ = await filled(tmp_path / "one.db", GOOD)
    for statement in (
        "UPDATE bound SET digest = 'no digest' WHERE position = 9",
        "DELETE FROM bound WHERE position = 9",  # the watermark knows of it
        "UPDATE watermark SET bits = 'no bits'",
    ):
        await store.run(lambda on, statement=statement: on.exec_driver_sql(statement))
        with pytest.raises(StoreError):
            await export(store, "sequencer")
    with pytest.raises(StoreError):
        await import_(store, parse(orjson.dumps(GOOD)))
    await store.close()


def changed(*steps, to):
    document = copy.deepcopy(GOOD)
    place = document
    for step in steps[:-1]:
        place = place[step]
    place[steps[-1]] = to
    return orjson.dumps(document)


ROWS = ("domains", 0, "bound")
HOSTILE = [
    (b"", "no JSON"),
    (b"\xff\xfe", "no JSON"),
    (b"[" * 5000, "no JSON"),
    (b"[]", "$ "),
    (b"{}", "$.hsmcoreFleet is required"),
    (changed("hsmcoreFleet", to=2), "$.hsmcoreFleet"),
    (changed("hsmcoreFleet", to=True), "$.hsmcoreFleet"),
    (changed("more", to=1), "$.more unknown key"),
    (changed("fleet", to="a\x1b[2J"), "$.fleet"),
    (changed("domains", to={}), "$.domains"),
    (changed("domains", 0, "domain", to=""), "$.domains[0].domain"),
    (changed("domains", 1, "domain", to="chain/block"), "$.domains "),
    (changed("domains", 0, "floor", to=-2), "$.domains[0].floor"),
    (changed("domains", 0, "floor", to=3.0), "$.domains[0].floor"),
    (changed("domains", 0, "floor", to=True), "$.domains[0].floor"),
    (changed("domains", 0, "floor", to=1 << 63), "$.domains[0].floor"),
    (changed("domains", 0, "floor", to=5), "$.domains[0] bound[0]"),
    (changed("domains", 0, "high", to=10), "$.domains[0] high"),
    (changed("domains", 0, "reason", to="x" * 513), "$.domains[0].reason"),
    (changed(*ROWS, to=[{"position": 9, "digest": A}, {"position": 9, "digest": A}]), "$.domains[0] bound[1]"),
    (changed(*ROWS, 0, "position", to="5"), "$.domains[0].bound[0].position"),
    (changed(*ROWS, 0, "digest", to=A.upper()), "$.domains[0].bound[0].digest"),
    (changed(*ROWS, 0, "digest", to=None), "$.domains[0].bound[0].digest"),
    (json.dumps(GOOD).replace('"high": 9', '"high": 1e999').encode(), "no JSON"),
    (json.dumps(GOOD).replace('"high": 9', '"high": 99999999999999999999999').encode(), "$.domains[0].high"),
]


@pytest.mark.parametrize(("text", "says"), HOSTILE, ids=[says for _, says in HOSTILE])
def test_a_hostile_file_is_refused_by_its_json_path(text, says):
    with pytest.raises(BadArgument) as caught:
        parse(text)
    assert says in str(caught.value)
    assert str(caught.value).isprintable()


def test_a_file_is_bounded(monkeypatch):
    monkeypatch.setattr(interchange, "MOST_ROWS", 1)
    with pytest.raises(BadArgument, match="1 positions at most"):
        parse(orjson.dumps(GOOD))
    monkeypatch.setattr(interchange, "MOST_BYTES", 100)
    with pytest.raises(BadArgument, match="more than 100 bytes"):
        parse(orjson.dumps(GOOD))


def test_a_file_of_just_so_much_is_read(monkeypatch):
    text = orjson.dumps(GOOD)
    monkeypatch.setattr(interchange, "MOST_BYTES", len(text))
    monkeypatch.setattr(interchange, "MOST_ROWS", len(GOOD["domains"][0]["bound"]))
    monkeypatch.setattr(interchange, "MOST_DOMAINS", len(GOOD["domains"]))
    assert parse(text).fleet == GOOD["fleet"]
    assert parse(changed("domains", 0, "high", to=3)).domains[0].high == 3
    monkeypatch.setattr(interchange, "MOST_DOMAINS", len(GOOD["domains"]) - 1)
    with pytest.raises(BadArgument, match=f"at most {len(GOOD['domains']) - 1}"):
        parse(text)


@one_loop
async def test_a_store_of_just_so_many_domains_is_exported(tmp_path, monkeypatch):
    store, _ = await filled(tmp_path / "one.db", GOOD)
    count = len((await export(store, None)).domains)
    monkeypatch.setattr(interchange, "MOST_DOMAINS", count)
    assert len((await export(store, None)).domains) == count
    monkeypatch.setattr(interchange, "MOST_DOMAINS", count - 1)
    with pytest.raises(StoreError, match=f"more than {count - 1} domains"):
        await export(store, None)
    await store.close()


@one_loop
async def test_how_far_a_domain_was_is_imported_without_its_rows(tmp_path):
    """Also up to its floor; a lower one changes nothing. Rows at the floor are not exported."""
    store, _ = await filled(tmp_path / "one.db", GOOD)
    for high, floor, kept in ((7, 9, 9), (11, 12, 11), (12, 12, 12), (8, 12, 12)):
        domain = {"domain": "chain/block", "floor": floor, "high": high}
        await import_(store, parse(orjson.dumps({"hsmcoreFleet": 1, "domains": [domain]})))
        [found] = (await export(store, None)).domains
        assert (found.floor, found.high, found.bound) == (floor, kept, ())
    await store.close()


def test_a_file_with_many_faults_shows_some_of_them():
    rows = [{"position": 5, "digest": "no"}] * 50
    with pytest.raises(BadArgument) as few:
        parse(changed(*ROWS, to=rows[:5]))
    assert "bound[4]" in str(few.value)
    assert "more" not in str(few.value)
    with pytest.raises(BadArgument, match=r"what `hsmcore state export` writes: .* and 45 more"):
        parse(changed(*ROWS, to=rows))


def test_a_file_of_another_fleet_is_refused():
    found = parse(orjson.dumps(GOOD))
    require_fleet(found, "sequencer")
    with pytest.raises(BadArgument, match="'sequencer', not of 'other'"):
        require_fleet(found, "other")
    require_fleet(parse(orjson.dumps({"hsmcoreFleet": 1, "domains": []})), "other")


POSITIONS = st.integers(0, 40) | st.integers(0, (1 << 63) - 1)
CHAINS = st.dictionaries(
    st.sampled_from(["chain/block", "chain/state-root", "ä/block"]),
    st.tuples(st.integers(-1, 20), st.dictionaries(POSITIONS, st.sampled_from([A, B]), max_size=12)),
)


def document(chains):
    domains = []
    for name, (floor, rows) in chains.items():
        above = sorted(position for position in rows if position > floor)
        bound = [{"position": position, "digest": rows[position]} for position in above]
        domains.append({"domain": name, "floor": floor, "high": above[-1] if above else floor, "bound": bound})
    return {"hsmcoreFleet": 1, "fleet": "sequencer", "domains": domains}


@settings(max_examples=share(30))
@given(CHAINS)
def test_what_was_imported_is_exported(tmp_path_factory, chains):
    asyncio.run(_round_trip(tmp_path_factory.mktemp("stores"), document(chains)))


async def _round_trip(folder, given_):
    store, _ = await filled(folder / "one.db", given_)
    found = await export(store, "sequencer")
    await store.close()
    text = text_of(found)
    assert parse(text) == found
    kept = {one["domain"]: one for one in given_["domains"] if one["floor"] >= 0 or one["bound"]}
    assert {one.domain: (one.floor, one.high, [row.model_dump() for row in one.bound]) for one in found.domains} == {
        name: (one["floor"], one["high"], one["bound"]) for name, one in kept.items()
    }


@settings(max_examples=share(15))
@given(CHAINS, CHAINS)
def test_the_order_of_two_imports_changes_no_refusal(tmp_path_factory, one, other):
    asyncio.run(_both_orders(tmp_path_factory.mktemp("stores"), document(one), document(other)))


async def _both_orders(folder, one, other):
    ends = []
    for name, order in (("a", (one, other)), ("b", (other, one))):
        store = await Store.open(folder / f"{name}.db")
        for part in order:
            await import_(store, Interchange.model_validate(part))
        ends.append(await export(store, None))
        await store.close()
    shapes = [
        {each.domain: (each.floor, each.high, [row.position for row in each.bound]) for each in end.domains}
        for end in ends
    ]
    assert shapes[0] == shapes[1]


@given(st.binary(max_size=200))
def test_any_bytes_are_a_file_or_refused(text):
    with suppress(BadArgument):
        parse(text)
