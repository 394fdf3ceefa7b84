"""The audit log is the witness, and the table of positions its index: the log says what the table says, after any
schedule of binds, sets of keys, rotations, floors and restarts. The start's comparison, a reconciliation and an export
all agree on it."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.fleet_hosts import BLOCKS, Host, beside, lose_from
from tests.support.loops import one_loop
from tests.support.size import share

from hsmcore.errors import BadArgument, FleetBehind
from hsmcore.recovery.interchange import export, import_, text_of
from hsmcore.recovery.witness import Witness
from hsmcore.state import Store, positions
from hsmcore.state.mark import Mark
from hsmcore.state.schema import BOUND

SETS = "chain/key-set"
ALL = 1 << 40
PLACES = st.integers(0, 40)
TEXTS = st.sampled_from(["one payload", "another"])


class Bytes:
    """The secret of a seal."""

    def resolve(self):
        return bytearray(b"a secret of more than 32 bytes, for tests only")


STEPS = st.one_of(
    st.tuples(st.just("bind"), st.sampled_from([BLOCKS, SETS]), PLACES, TEXTS),
    st.tuples(st.just("floor"), st.sampled_from([BLOCKS, SETS]), PLACES, st.just("")),
    st.tuples(st.sampled_from(["rotate", "restart"]), st.just(""), st.just(0), st.just("")),
)


@settings(max_examples=share(40), deadline=None)
@given(st.lists(STEPS, min_size=8, max_size=25), st.booleans())
def test_the_log_gives_the_table_again(tmp_path_factory, steps, sealed):
    asyncio.run(_rebuilt(tmp_path_factory.mktemp("host"), steps, Bytes() if sealed else None))


async def _rebuilt(folder, steps, secret):
    restarts = [at for at, step in enumerate(steps) if step[0] == "restart"]
    for begin, end in zip([0, *restarts], [*restarts, len(steps)], strict=True):
        async with Host(folder, "a", secret) as host:
            assert not (await host.witness.attend()).open, "a start finds no difference"
            for step in steps[begin:end]:
                await _done(host, *step)
    async with Host(folder, "a", secret) as host:
        fresh = await Store.open(folder / "fresh.db", secret)
        try:
            await _agree(host, fresh)
        finally:
            await fresh.close()


async def _done(host, what, domain, position, text):
    if what == "bind":
        await host.refused(position, text, domain)
    elif what == "rotate":
        host.log.note("key-rotated", result="ok", previous="aa", key_id="bb")
    elif what == "floor":
        with suppress(BadArgument):  # it does not rise
            await host.mark.raise_floor(domain, position, "a test")


async def _agree(host, fresh):
    table = host.store
    assert (await host.witness.compare()).lacking == []
    rebuild = Witness(fresh, "", host.name, "", host.log)
    floors = {domain: mark.floor for domain, mark in (await table.run(positions.marks)).items()}
    rows = await _rows(table, floors)
    lacking = (await rebuild.compare()).lacking
    assert {tuple(row[:3]) for row in lacking if row.position > floors[row.domain]} == rows
    older = partial(positions.put_back, vouch=fresh.vouch, rows=lacking[::2])  # with holes
    there, conflicts = await fresh.run(older)
    assert conflicts == []
    assert await rebuild.put_back(0, ALL) == (len({row[:2] for row in lacking}) - there, [], {})
    assert await rebuild.put_back(0, ALL) == (0, [], {})
    assert await _rows(fresh, floors) == rows
    found = await export(table, None)
    assert (await import_(fresh, found)).added == 0, "the log had all of them"
    assert text_of(await export(fresh, None)) == text_of(found)
    assert await fresh.run(positions.marks) == await table.run(positions.marks)


async def _rows(store, floors):
    """What is bound above the floors."""
    found = await store.rows(BOUND.select())
    return {(row["domain"], row["position"], row["digest"]) for row in found if row["position"] > floors[row["domain"]]}


@one_loop
async def test_a_row_that_was_taken_out_shows_no_older_store(tmp_path):
    """The watermark goes on saying that it was bound; that of an older store does not."""
    async with Host(tmp_path, "a") as host:
        await host.witness.attend()
        for position in (1, 2, 3):
            await host.sign(position)
    beside(tmp_path, "DELETE FROM bound WHERE position = 2")
    assert await _compared(tmp_path) == ({2}, {2})
    lose_from(tmp_path, 2)
    assert await _compared(tmp_path) == ({2, 3}, set())


@one_loop
async def test_what_this_process_has_bound_must_be_there_above_the_floor(tmp_path):
    async with Host(tmp_path, "a") as host:
        await host.witness.attend()
        for position in (1, 2):
            await host.sign(position)
        [_, row] = await host.store.rows(BOUND.select().order_by(BOUND.c.position))
        check = partial(host.witness.require_kept, BLOCKS, 2)
        check(Mark(high=2), row)
        host.witness.require_kept("other/block", 1, Mark(), None)  # it knows nothing of that one
        check(Mark(high=1, floor=2), None)  # an operator has raised the floor, and rows up to it may go
        for mark, found in (
            (Mark(high=1), row),
            (Mark(high=1, floor=1), None),
            (Mark(high=2, floor=1), None),
            (Mark(high=2), dict(row) | {"digest": "ab" * 32}),
        ):
            assert host.witness.settled
            with pytest.raises(FleetBehind, match="went back"):
                check(mark, found)
            assert not host.witness.settled, "the loss is answered"
            host.witness._settled_at = host.witness._doubts


async def _compared(folder):
    """The positions that the table lacks of the log, and those of which its watermark says that they were bound."""
    async with Host(folder, "a") as host:
        found = await host.witness.compare()
        return {row.position for row in found.lacking}, {row.position for row in found.guarded}
