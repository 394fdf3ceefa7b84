"""One digest for a position: against a model, over restarts, floors, and writers of the store's file."""

from __future__ import annotations

import asyncio
import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import literal, select
from tests.support.loops import one_loop
from tests.support.managers import becomes, until
from tests.support.raw_store import beside
from tests.support.size import share

from hsmcore.config import Policy
from hsmcore.errors import BadArgument, DoubleSign, InternalError, NotHolder, PolicyRefused, RequestCancelled
from hsmcore.manager.policy import watermark
from hsmcore.manager.policy.wants import PayloadPlace
from hsmcore.manager.policy.watermark import Watermark, marks_of
from hsmcore.state import Store, StoreError, StoreNotGenuine, positions
from hsmcore.state.exchange import Question
from hsmcore.state.mark import WINDOW, Mark

A, B = (hashlib.sha256(text).hexdigest() for text in (b"a", b"b"))
BLOCKS = "chain/block"


class Bytes:
    """The secret of a seal."""

    def resolve(self):
        return bytearray(b"a secret of more than 32 bytes, for tests only")


@pytest.fixture(params=[None, Bytes()], ids=["plain", "sealed"])
def secret(request):
    return request.param


class Life:
    """One process's life with the store."""

    def __init__(self, place, secret, holder="host:1"):
        self.place, self.secret, self.holder = place, secret, holder

    async def __aenter__(self):
        self.store = await Store.open(self.place, self.secret)
        self.mark = Watermark(self.store, self.holder)
        return self

    async def __aexit__(self, *_):
        await self.mark.close()
        await self.store.close()

    def has(self, count):
        """Whether there are so many positions."""

        async def looked():
            return await self.store.run(lambda on: on.exec_driver_sql("SELECT count(*) FROM bound").scalar()) == count

        return looked

    async def bind(self, position, digest=A, domain=BLOCKS):
        await self.mark.require(PayloadPlace(domain, position, digest))


async def test_the_first_digest_has_the_position_for_ever(place, secret):
    async with Life(place, secret) as life:
        await life.bind(5)
        await life.bind(5)  # the same again
        await life.bind(5, B, "chain/state-root")  # another chain
        with pytest.raises(DoubleSign) as caught:
            await life.bind(5, B)
        assert life.mark.bound == 2
    async with Life(place, secret, "host:2") as life:
        await life.bind(5)
        with pytest.raises(DoubleSign, match="host:1") as caught:
            await life.bind(5, B)
        error = caught.value
        assert (error.domain, error.position, error.digest.hex(), error.holder) == (BLOCKS, 5, A, "host:1")
        assert error.bound_ns > 0
        assert error.retryable is False
        assert life.mark.bound == 0


def kept(position, message=b"a", digest=A):
    return PayloadPlace(BLOCKS, position, digest, message=message)


async def test_the_newest_message_is_kept(place, secret):
    async with Life(place, secret) as life:
        assert await life.mark.newest(BLOCKS) is None
        await life.mark.require(kept(5))
        await life.mark.require(kept(6, b"b", B))
        await life.mark.require(kept(4))  # below the highest: that one's message stays
        await life.bind(6, B)
        assert await life.mark.newest(BLOCKS) == ("block", 6, bytes.fromhex(B), b"b")
    async with Life(place, secret) as life:
        assert await life.mark.newest(BLOCKS) == ("block", 6, bytes.fromhex(B), b"b")
        await asyncio.gather(*(life.mark.require(kept(at)) for at in (7, 9, 8)))
        assert await life.mark.newest(BLOCKS) == ("block", 9, bytes.fromhex(A), b"a")
        await life.bind(10, B)  # too long to be kept
        assert await life.mark.newest(BLOCKS) == ("block", 10, bytes.fromhex(B), None)
        await life.mark.require(kept(11))
        await life.store.run(
            lambda on: positions.put_back(on, life.store.vouch, [positions.BoundRow(BLOCKS, 12, B, "h", 1)])
        )
        assert await life.mark.newest(BLOCKS) == ("block", 12, bytes.fromhex(B), None)
        await life.mark.raise_floor(BLOCKS, 12, "final")
        assert await life.mark.newest(BLOCKS) is None


@pytest.mark.parametrize(
    "text", ["62", "", "no number", "6", "61 ", "61" * 70_000, "é"], ids=lambda text: f"{text[:9]}-{len(text)}"
)
async def test_a_message_that_was_not_bound_is_not_given(place, text):
    async with Life(place, None) as life:
        await life.mark.require(kept(5))
        beside(place, f"UPDATE watermark SET message = '{text}'")  # noqa: S608  # the test's own
        found = await life.mark.newest(BLOCKS)
        assert found == ("block", 5, bytes.fromhex(A), b"a" if text == "61 " else None)
        beside(place, "UPDATE watermark SET message = NULL")
        assert (await life.mark.newest(BLOCKS)).message is None
        beside(place, "UPDATE bound SET digest = 'no number'")
        with pytest.raises(StoreError, match="not of hsmcore's making"):
            await life.mark.newest(BLOCKS)


async def test_the_digest_of_the_newest_message_is_vouched_for(place):
    async with Life(place, Bytes()) as life:
        await life.mark.require(kept(5))
        beside(place, f"UPDATE bound SET digest = '{B}'")  # noqa: S608  # the test's own
        with pytest.raises(StoreNotGenuine):
            await life.mark.newest(BLOCKS)


async def test_a_crowd_at_one_position_has_one_winner(place, secret):
    digests = [hashlib.sha256(bytes([n])).hexdigest() for n in range(60)]
    async with Life(place, secret) as one, Life(place, secret) as other:
        asked = [(life, digest) for digest in digests for life in (one, other)]
        done = await asyncio.gather(*(life.bind(7, digest) for life, digest in asked), return_exceptions=True)
        winners = {digest for (_, digest), result in zip(asked, done, strict=True) if result is None}
        assert len(winners) == 1
        assert all(result is None or isinstance(result, DoubleSign) for result in done)
        assert one.mark.bound + other.mark.bound == 1


async def test_a_new_position_lies_no_further_ahead_than_it_may(place, secret):
    async with Life(place, secret) as life:
        life.mark = Watermark(life.store, "host:1", most_ahead=100)
        await life.bind(1 << 40)  # the first one of a chain
        await life.bind((1 << 40) + 100)
        for position in ((1 << 40) + 201, (1 << 63) - 1):
            with pytest.raises(PolicyRefused, match="maxAhead"):
                await life.bind(position)
            assert isinstance((await life.mark.look(PayloadPlace(BLOCKS, position, A)))[1], PolicyRefused)
        await life.bind((1 << 40) + 101)
        await life.mark.raise_floor(BLOCKS, 1 << 41, "after an outage")
        await life.bind((1 << 41) + 100)
        await life.bind((1 << 41) + 100)
        await life.mark.require(
            PayloadPlace(BLOCKS, (1 << 41) + 500, A, (1 << 41) + 101, 0)
        )  # a range begins at the next one


async def test_what_was_given_up_before_it_was_taken_up_is_not_bound(place, secret):
    async with Life(place, secret) as life:
        given_up = [life.mark.require(PayloadPlace(BLOCKS, position, A)) for position in range(600)]
        for asked in given_up:
            asked.cancel()
        await life.bind(600)
        assert (life.mark.bound, any(asked.begun for asked in given_up)) == (1, False)
        for position in (0, 255, 256, 599):
            if position > 600 - WINDOW:
                await life.bind(position, B)


async def test_a_fault_of_ours_and_the_end_of_its_task_are_the_callers_errors(place, secret, monkeypatch):
    """They saw a CancelledError without having been cancelled, or waited for ever."""
    async with Life(place, secret) as life:
        take = life.mark._take
        monkeypatch.setattr(life.mark, "_take", lambda *_: 1 // 0)
        with pytest.raises(InternalError, match="ZeroDivisionError"):
            await life.bind(1)
        monkeypatch.setattr(life.mark, "_take", take)
        await life.bind(1, B)
        waiting = [life.mark.require(PayloadPlace(BLOCKS, position, A)) for position in range(2, 600)]
        await asyncio.sleep(0)
        await life.mark._writing.close()
        done = await asyncio.gather(*waiting, return_exceptions=True)
        assert {type(one) for one in done} == {RequestCancelled}
        await life.bind(600)


async def test_nothing_is_signed_at_or_below_a_floor_and_it_never_goes_down(place, secret):
    async with Life(place, secret) as life:
        for position in (1, 2, 3, 9):
            await life.bind(position)
        assert await life.mark.raise_floor(BLOCKS, 3, "final") == 3
        for position in (0, 1, 3):
            with pytest.raises(PolicyRefused, match=r"floor 3 \(final\)"):
                await life.bind(position)
        await life.bind(4)
        await life.bind(9)
        with pytest.raises(DoubleSign):
            await life.bind(9, B)
        for floor in (3, 2):
            with pytest.raises(BadArgument, match="only rises"):
                await life.mark.raise_floor(BLOCKS, floor, "mistake")
        marks = await marks_of(life.store)
        assert (marks[BLOCKS].floor, marks[BLOCKS].high) == (3, 9)


async def test_a_floor_of_another_process_holds_at_once(place, secret):
    async with Life(place, secret) as life, Life(place, secret) as operator:
        await life.bind(1)
        await operator.mark.raise_floor(BLOCKS, 10, "final")
        with pytest.raises(PolicyRefused):
            await life.bind(1)


async def test_what_a_writer_of_the_file_changed_is_not_signed(place):
    async with Life(place, Bytes()) as life:
        for position in range(4):
            await life.bind(position)
    beside(
        place,
        f"UPDATE bound SET digest = '{B}' WHERE position = 1",  # noqa: S608
        "DELETE FROM bound WHERE position = 2",
        "UPDATE bound SET (digest, mac) = (SELECT digest, mac FROM bound WHERE position = 0), holder = 'x' "
        "WHERE position = 3",
    )
    async with Life(place, Bytes()) as life:
        for position in (1, 2, 3):
            for digest in (A, B):
                assert isinstance((await life.mark.look(PayloadPlace(BLOCKS, position, digest)))[1], StoreNotGenuine)
                with pytest.raises(StoreNotGenuine):
                    await life.bind(position, digest)
        await life.bind(0)
        await life.bind(4)  # the others go on
        with pytest.raises(DoubleSign):
            await life.bind(0, B)


async def test_a_row_removed_far_behind_the_newest_is_not_signed_again(place):
    async with Life(place, Bytes()) as life:
        await life.bind(1)
        await life.bind(WINDOW + 1)
        await life.bind(1)
        await life.bind(2)  # within the window
        with pytest.raises(DoubleSign):
            await life.bind(1, B)
    beside(place, "DELETE FROM bound WHERE position = 1")
    async with Life(place, Bytes()) as life:
        with pytest.raises(PolicyRefused, match="behind the newest"):
            await life.bind(1, B)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE watermark SET bits = 'no number'",
        "UPDATE watermark SET high = 'x'",
        "UPDATE bound SET digest = 'x'",
        "UPDATE bound SET bound_ns = 9e999",
    ],
)
async def test_rows_of_any_sort_end_a_request_with_an_error_of_the_store(tmp_path, statement):
    path = tmp_path / "state.db"
    async with Life(path, None) as life:
        await life.bind(1)
    beside(path, statement)
    async with Life(path, None) as life:
        with pytest.raises(StoreError) as caught:
            await asyncio.gather(life.bind(1, B), life.bind(2, B))
        assert "are not of hsmcore's making" in str(caught.value)


@pytest.mark.parametrize("statement", ["DELETE FROM watermark", "UPDATE watermark SET high = 0, bits = '0'"])
async def test_a_watermark_that_was_changed_binds_nothing(place, statement):
    async with Life(place, Bytes()) as life:
        await life.bind(1)
    beside(place, statement)
    async with Life(place, Bytes()) as life:
        with pytest.raises(StoreNotGenuine):
            await life.bind(2)


async def test_a_store_that_is_adopted_vouches_for_its_positions(place):
    async with Life(place, None) as life:
        await life.bind(1)
        await life.bind(2)
    async with Life(place, Bytes()) as life:
        with pytest.raises(StoreNotGenuine):
            await life.bind(1)
        status = await life.store.seal_status()
        await life.store.adopt(status.digest)
        await life.bind(1)
        with pytest.raises(DoubleSign):
            await life.bind(2, B)


async def test_a_seal_from_before_there_were_positions_says_that_there_are_none(place):
    async with Life(place, Bytes()) as life:
        await life.bind(1)
        seal = life.store._database.seal

        def older(connection):
            _, digests = seal.read(connection)
            del digests["policy"]
            return seal.write(connection, digests)

        seal.seen(await life.store._run(lambda: life.store._database.transact_unchecked(older)))
        with pytest.raises(StoreNotGenuine):
            await life.bind(2)
    beside(place, "DELETE FROM watermark", "DELETE FROM bound")
    async with Life(place, Bytes()) as life:
        await life.bind(1)


async def test_the_store_s_trouble_is_each_request_s_own_error(place):
    async with Life(place, None) as life:
        futures = [life.mark.require(PayloadPlace(BLOCKS, n, A)) for n in range(3)]
        await life.store.close()
        done = await asyncio.gather(*futures, return_exceptions=True)
        assert len({id(error) for error in done}) == 3 or all(error is None for error in done)


async def test_a_caller_who_left_keeps_nobody_else_waiting(place, secret):
    async with Life(place, secret) as life:
        gone = life.mark.require(PayloadPlace(BLOCKS, 1, A))
        other = life.mark.require(PayloadPlace(BLOCKS, 2, A))
        gone.cancel()
        await other
        row, _ = await life.mark.look(PayloadPlace(BLOCKS, 1, A))
        assert row is None, "no transaction had taken it up"


@given(st.lists(st.integers(0, 3 * WINDOW), max_size=60))
def test_the_bits_say_what_is_bound_within_the_window(positions):
    mark, known = Mark(), set()
    for position in positions:
        mark.add(position)
        known.add(position)
        for asked in {*known, *(p + 1 for p in known), *(max(p - 1, 0) for p in known)}:
            if mark.knows(asked):
                assert mark.has(asked) == (asked in known)
    assert mark.bits < 1 << WINDOW


@settings(max_examples=share(12), deadline=None)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("bind"), st.integers(0, 12), st.sampled_from([A, B])),
            st.tuples(st.just("floor"), st.integers(0, 12), st.just("")),
            st.tuples(st.just("restart"), st.just(0), st.just("")),
        ),
        max_size=30,
    ),
    st.booleans(),
)
def test_it_does_as_the_model_says(tmp_path_factory, steps, sealed):
    asyncio.run(_as_the_model_says(tmp_path_factory.mktemp("store") / "state.db", steps, Bytes() if sealed else None))


async def _as_the_model_says(path, steps, secret):
    bound, floor = {}, -1
    life = await Life(path, secret).__aenter__()
    try:
        for step, position, digest in steps:
            if step == "restart":
                await life.__aexit__()
                life = await Life(path, secret).__aenter__()
            elif step == "floor":
                try:
                    await life.mark.raise_floor(BLOCKS, position, "model")
                    assert position > floor
                    floor = position
                except BadArgument:
                    assert position <= floor
            else:
                try:
                    await life.bind(position, digest)
                except PolicyRefused:
                    assert position <= floor
                    continue
                except DoubleSign as error:
                    first = error.digest.hex()
                else:
                    first = digest
                assert position > floor
                assert bound.setdefault(position, digest) == first
    finally:
        await life.__aexit__()


MANY = share(300_000)


def many(start, count):
    """A query that makes rows of `bound`, in both dialects."""
    numbers = f"WITH RECURSIVE n (i) AS (SELECT {start} UNION ALL SELECT i + 1 FROM n WHERE i < {start + count - 1})"  # noqa: S608
    return f"INSERT INTO bound {numbers} SELECT '{BLOCKS}', i, '{A}', 'host:1', 1, '' FROM n"  # noqa: S608


@one_loop
async def test_a_floor_stops_no_bind_while_it_removes_what_is_behind_it(place, monkeypatch):
    """Rows behind a floor mean nothing: they go in portions, and binds come in between."""
    portions = []
    removed = positions.Removal.__call__

    def counted(removal, connection):
        portions.append(removed(removal, connection))
        return portions[-1]

    monkeypatch.setattr(positions.Removal, "__call__", counted)
    async with Life(place, None) as life, Life(place, None, "operator") as operator:
        await life.bind(MANY + 1)
        await life.store.run(lambda connection: connection.exec_driver_sql(many(0, MANY)))
        raising = asyncio.ensure_future(operator.mark.raise_floor(BLOCKS, MANY - 1, "final"))
        bound = 0
        while not raising.done():
            bound += 1
            await life.bind(MANY + 1 + bound)
        assert await raising == MANY == sum(portions)
        assert bound * 6 >= len(portions) >= 10
        assert max(portions) <= 6000
        with pytest.raises(PolicyRefused, match="floor"):
            await life.bind(7)


@one_loop
async def test_what_was_left_behind_a_floor_is_removed_by_the_next_life(place):
    async with Life(place, None) as life:
        await life.store.run(lambda connection: connection.exec_driver_sql(many(0, 20_000)))
        await life.store.run(lambda connection: positions.raise_floor(connection, BLOCKS, 9_999, "final"))
        with pytest.raises(PolicyRefused, match="floor"):
            await life.bind(7)
    async with Life(place, None) as life:
        life.mark.begin(KEEPS_ALL, Recorded())
        await becomes(life.has(10_000))
        await life.bind(20_001)
        assert await life.has(10_001)()


KEEPS_ALL = Policy.model_validate({"kinds": ["block"], "domain": "chain"})
KEEPS = Policy.model_validate(
    {"kinds": ["block", "state-root"], "domain": "chain", "maxAhead": 1, "keepPositions": 1600}
)


class Recorded:
    """An audit log."""

    def __init__(self):
        self.floors = []

    def note(self, operation, *, command, result, domain, position, reason):
        assert (operation, command, result) == ("command", "policy floor set", "ok")
        self.floors.append((domain, position, reason))


class AnotherHolds:
    """The fence of a host that does not hold the epoch; `early`: it knows that."""

    asks = Question(select(literal(1)))

    def __init__(self, *, early):
        self.early, self.asked = early, 0

    def require(self):
        self.asked += 1
        if self.early:
            raise NotHolder("held elsewhere")

    def fence(self, rows):
        raise NotHolder("held elsewhere")


@one_loop
async def test_positions_far_behind_get_a_floor_by_themselves(place, secret, monkeypatch):
    monkeypatch.setattr(watermark, "_LOOK_SECONDS", 0.01)
    log, looks, let_go = Recorded(), [], positions.let_go

    def counted(connection, domain, kept, reason):
        looks.append(domain)
        return let_go(connection, domain, kept, reason)

    monkeypatch.setattr(positions, "let_go", counted)
    async with Life(place, secret) as life:
        await life.store.run(lambda connection: connection.exec_driver_sql(many(1, 5000)))
        await life.bind(5001)
        life.mark.begin(KEEPS, log)
        await becomes(life.has(1601 - 1))  # 3402 to 5001
        assert log.floors == [(BLOCKS, 3401, "keepPositions 1600")]
        with pytest.raises(PolicyRefused, match=r"floor 3401 \(keepPositions 1600\)"):
            await life.bind(3401)
        await life.bind(5100)  # not worth a step yet
        seen = len(looks)
        await until(lambda: len(looks) > seen + 4)
        assert len(log.floors) == 1
        await life.bind(5101)
        await becomes(life.has(1600 - 99 + 1))
        assert log.floors[1:] == [(BLOCKS, 3501, "keepPositions 1600")]
        await life.mark.raise_floor(BLOCKS, 4500, "final")  # an operator's is obeyed
        await life.bind(5102)
        await becomes(life.has(501 + 3))
        assert (await marks_of(life.store))[BLOCKS].floor == 4500


@one_loop
async def test_a_position_far_ahead_by_mistake_gives_up_none_that_is_to_come(place, secret):
    """A floor rises to a position that was bound, or the chain could not go on."""
    log = Recorded()
    async with Life(place, secret) as life:
        await life.store.run(lambda connection: connection.exec_driver_sql(many(1, 200)))
        for position in (201, 1 << 40):
            await life.bind(position)
        life.mark.begin(KEEPS, log)
        await becomes(life.has(1))
        assert log.floors == [(BLOCKS, 201, "keepPositions 1600")]
        if secret is None:
            await life.bind(202)
        else:
            with pytest.raises(PolicyRefused, match="behind the newest"):  # as without keepPositions
                await life.bind(202)


@one_loop
@pytest.mark.parametrize("early", [True, False])
async def test_only_the_holder_of_the_epoch_gives_up_positions(place, early, monkeypatch):
    monkeypatch.setattr(watermark, "_LOOK_SECONDS", 0.01)
    log, fence = Recorded(), AnotherHolds(early=early)
    async with Life(place, None) as life:
        await life.store.run(lambda connection: connection.exec_driver_sql(many(1, 5000)))
        await life.bind(5001)
        follower = Watermark(life.store, "host:2", fence)
        follower.begin(KEEPS, log)
        await until(lambda: fence.asked > 4)
        await follower.close()
        assert (log.floors, (await marks_of(life.store))[BLOCKS].floor) == ([], -1)
        assert await life.has(5001)()


async def test_rows_that_are_put_back_change_none_that_is_there(place, secret):
    def rows(*of):
        return [positions.BoundRow(BLOCKS, position, digest, "host:2", 7) for position, digest in of]

    async with Life(place, secret) as life:
        for position in (5, 7):
            await life.bind(position)
        await life.mark.raise_floor(BLOCKS, 2, "a test")
        given = rows((1, A), (2, A), (9, A), (6, A), (5, A), (7, B), (9, B))
        added, conflicts = await life.store.run(lambda on: positions.put_back(on, life.store.vouch, given))
        assert added == 2
        found = [(one.row.position, one.row.digest, one.bound, one.holder) for one in conflicts]
        assert found == [(9, B, A, "host:2"), (7, B, A, "host:1")]
        assert (await marks_of(life.store))[BLOCKS].high == 9
        assert await life.has(4)()
        for position in (5, 6, 7, 9):
            await life.bind(position)
            with pytest.raises(DoubleSign):
                await life.bind(position, B)
        assert await life.store.run(lambda on: positions.put_back(on, life.store.vouch, rows((9, A)))) == (0, [])
        await life.bind(8)
