"""Turns by weight, against a model, and what they promise to a flow that asks for less than its share."""

from collections import Counter, deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hsmcore._native import FairQueue, Flow


def run(turns, flows, count):
    """Let every flow have work waiting all the time; return how much each has begun when `count` pieces have."""
    served, names = Counter(), iter(range(10**9))
    running = []

    def offer(name):
        work = (name, next(names))
        running.extend(one for one, _ in turns.take(flows[name], work))

    for name in flows:
        for _ in range(turns.most + 2):
            offer(name)
    while sum(served.values()) < count:
        done = running.pop(0)
        served[done[0]] += 1
        running += [one for one, _ in turns.free()]
        offer(done[0])
    return served


def device(asked, count, most=32, alone=0):
    """A device signs one message after the other, in the order in which they begin. `asked`: by name, how many requests
    each has open all the time, of how many messages; a piece is answered with its last message. Returns how many
    messages of each are signed when `count` are, and the most that were at the device."""
    turns, flows, signed = FairQueue(most, alone), {name: Flow() for name in asked}, Counter()
    at_it, left, peak, done = deque(), {}, 0, 0

    def ask(name):
        work = (name, len(left))
        left[work] = asked[name][1]
        at_it.extend(turns.take(flows[name], work, asked[name][1]))

    for name, (requests, _) in asked.items():
        for _ in range(requests):
            ask(name)
    while done < count:
        peak = max(peak, turns.under_way)
        work, piece = at_it.popleft()
        done += piece
        signed[work[0]] += piece
        left[work] -= piece
        at_it.extend(turns.free(piece))
        if not left[work]:
            ask(work[0])
    return signed, peak


@pytest.mark.parametrize("batch", [64, 256, 1000])
@pytest.mark.parametrize("alone", [0, 1024])
def test_batches_take_no_more_than_single_messages_do(batch, alone):
    """A client that floods, with 512 messages or more: what another loses to its batches, beside its single ones."""
    for quiet in (1, 8, 32):
        single, peak = device({"flood": (512, 1), "quiet": (quiet, 1)}, 6000, alone=alone)
        assert alone or peak == 32
        batches, peak = device({"flood": (-(-512 // batch), batch), "quiet": (quiet, 1)}, 6000, alone=alone)
        assert alone or peak == 32  # what may be at the key managers, and not a message more
        assert batches["quiet"] >= 0.9 * single["quiet"]
        assert alone or quiet < 32 or batches["quiet"] >= 0.9 * 3000  # its fair share
    both, _ = device({"large": (4, batch), "small": (64, 8)}, 6000)
    assert both["small"] >= 0.9 * 3000


@pytest.mark.parametrize("weights", [(1, 1), (1, 2), (1, 10), (3, 5, 7)])
def test_flows_that_wait_share_by_weight(weights):
    flows = {name: Flow(weight) for name, weight in enumerate(weights)}
    served = run(FairQueue(8), flows, 2000)
    for name, weight in enumerate(weights):
        assert served[name] == pytest.approx(2000 * weight / sum(weights), rel=0.05)


def test_one_that_asks_for_little_goes_before_one_that_floods():
    turns, flood, quiet = FairQueue(4), Flow(), Flow()
    for number in range(1000):
        turns.take(flood, number)
    for number in range(500):
        turns.take(quiet, f"quiet {number}")
        begun = turns.free() + turns.free()
        assert (f"quiet {number}", 1) in begun


def test_a_flow_that_asked_for_nothing_has_saved_nothing():
    turns, busy, late = FairQueue(1), Flow(), Flow()
    turns.take(busy, "first")
    for number in range(100):
        turns.take(busy, number)
        turns.free()
    for number in range(100):
        turns.take(busy, ("busy", number))
        turns.take(late, ("late", number))
    begun = Counter(turns.free()[0][0][0] for _ in range(60))
    assert abs(begun["busy"] - begun["late"]) <= 2


def test_what_costs_much_begins_in_pieces():
    turns, flow, other = FairQueue(8), Flow(), Flow()
    assert turns.take(flow, "large", 11) == [("large", 2)] * 4
    assert turns.take(flow, "behind it") == turns.take(other, "other", 3) == []
    assert turns.waiting == 3
    assert turns.free() == []  # a piece of two does not fit
    assert turns.free() == [("other", 2)]
    assert turns.free(2) == [("large", 2)]
    assert turns.free(2) == [("other", 1), ("large", 1)]
    assert turns.free() == [("behind it", 1)]
    assert turns.waiting == 0


def test_one_that_is_alone_has_more_room_until_another_asks():
    turns, first, other = FairQueue(2, 10), Flow(), Flow()
    assert [len(turns.take(first, number)) for number in range(12)] == [1] * 10 + [0] * 2
    assert not turns.take(other, "other")
    begun = [turns.free() for _ in range(9)]  # what is under way goes down to what two may have
    assert begun[:8] == [[]] * 8
    assert turns.under_way == 2
    turns = FairQueue(2, 10)
    turns.take(first, 0)
    turns.take(other, "other")
    for number in range(1, 60):  # for a while after the other one has asked
        turns.take(first, number)
        assert turns.under_way <= (2 if number <= 39 else 10)
        turns.free()
    assert turns.most == 10


def test_withdrawn_work_makes_room():
    turns, flow = FairQueue(16), Flow()
    for number in range(13):
        turns.take(flow, number)
    assert turns.take(flow, "large", 4) == turns.take(flow, "small", 1) == []
    assert turns.withdraw(flow, "large") == [("small", 1)]
    assert turns.waiting == 0
    assert turns.take(flow, "begun", 8) == []
    assert turns.free(2) == [("begun", 4)]
    assert turns.withdraw(flow, "begun") == []  # what has begun goes on
    assert (turns.waiting, turns.under_way) == (0, 16)


@given(
    st.integers(1, 6),
    st.lists(
        st.one_of(
            st.tuples(st.just("take"), st.integers(0, 2), st.integers(1, 8)),
            st.tuples(st.just("free"), st.integers(0, 20), st.just(0)),
            st.tuples(st.just("withdraw"), st.integers(0, 20), st.just(0)),
        ),
        max_size=60,
    ),
)
def test_whatever_happens_each_piece_begins_once_and_in_order_and_none_is_stuck(most, steps):
    turns = FairQueue(most)
    flows = [Flow(weight) for weight in (1, 3, 7)]
    left, owner, waiting, running, begun_of = {}, {}, [], [], {flow: [] for flow in range(3)}

    def begin(pieces):
        for work, piece in pieces:
            left[work] -= piece
            assert piece >= 1
            assert left[work] >= 0
            if not left[work]:
                waiting.remove(work)
            running.append(piece)
            begun_of[owner[work]].append(work)

    for number, (what, which, cost) in enumerate(steps):
        if what == "take":
            left[number], owner[number] = cost, which
            waiting.append(number)
            begin(turns.take(flows[which], number, cost))
        elif what == "free" and running:
            begin(turns.free(running.pop(which % len(running))))
        elif what == "withdraw" and waiting:
            work = waiting[which % len(waiting)]
            waiting.remove(work)
            begin(turns.withdraw(flows[owner[work]], work))
        assert turns.under_way == sum(running) <= most
        assert turns.waiting == len(waiting)
        assert not waiting or running, "something waits and nothing is under way"
        for works in begun_of.values():
            assert works == sorted(works)
