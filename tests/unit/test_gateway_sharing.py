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
        running += [one for one, _ in turns.free(flows[done[0]])]
        offer(done[0])
    return served


def device(asked, count, most=32, alone=0, busy=-1):
    """A device signs one message after the other, in the order in which they begin. `asked`: by name, how many requests
    each has open all the time, of how many messages; a piece is answered with its last message. Returns how many
    messages of each are signed when `count` are, and the most that were at the device."""
    turns, flows, signed = FairQueue(most, alone, busy), {name: Flow() for name in asked}, Counter()
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
        at_it.extend(turns.free(flows[work[0]], piece))
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


@pytest.mark.parametrize("flood", [(512, 1), (4, 250)])
@pytest.mark.parametrize("alone", [0, 1024])
@pytest.mark.parametrize("quiet", [1, 2, 4, 8, 16, 24])
def test_one_that_has_little_open_waits_behind_as_much_of_others(quiet, alone, flood):
    """A request that comes waits behind what is under way. So of two that always ask, each has half of the signatures,
    however little one has open, but for what keeps the keys busy."""
    busy, count = 4, 20_000
    signed, _ = device({"flood": flood, "quiet": (quiet, 1)}, count, alone=alone, busy=busy)
    assert signed["quiet"] >= 0.94 * count * quiet / max(busy + 1, 2 * quiet + 1)
    both, _ = device({"flood": flood, "another": flood, "quiet": (quiet, 1)}, count, busy=busy)
    assert both["quiet"] >= 0.94 * count * quiet / max(busy + 3, 3 * quiet + 4)
    assert both["flood"] == pytest.approx(both["another"], rel=0.05)


@given(
    st.lists(st.tuples(st.integers(1, 5), st.integers(1, 40), st.integers(1, 40)), min_size=2, max_size=6),
    st.integers(0, 16),
)
def test_nobody_has_more_than_an_average_of_the_others_by_its_weight(asked, busy):
    """`asked`: weight, requests that it has open, messages of each. None has more under way than the others have had,
    but for `busy` and for one piece; and while something waits the keys are busy."""
    turns, flows = FairQueue(32, busy=busy), [Flow(weight) for weight, _, _ in asked]
    running, numbers = deque(), iter(range(10**9))
    most, lately = [0] * len(asked), [0] * len(asked)

    def begin(pieces):
        running.extend((work[0], piece) for work, piece in pieces)
        lately[:] = map(max, lately, (flow.under_way for flow in flows))
        most[:] = map(max, most, lately)

    for step in range(600):
        for at, (_, requests, messages) in enumerate(asked):
            if len(flows[at].waiting) < requests > flows[at].under_way // messages:
                begin(turns.take(flows[at], (at, next(numbers)), messages))
        wanted = sum(one.under_way + sum(one.waiting.values()) for one in flows)
        assert turns.under_way > min(busy, wanted) - 32 // 4
        if step == 300:
            lately[:] = [flow.under_way for flow in flows]
        at, piece = running.popleft()
        begin(turns.free(flows[at], piece))
    weights = sum(one.weight for one in flows)
    for flow, own, ever in zip(flows, lately, most, strict=True):
        others = (sum(most) - ever) * flow.weight // (weights - flow.weight)
        assert own <= max(busy, others + 1)


@pytest.mark.parametrize("weights", [(1, 1), (1, 2), (1, 10), (3, 5, 7)])
def test_flows_that_wait_share_by_weight(weights):
    flows = {name: Flow(weight) for name, weight in enumerate(weights)}
    served = run(FairQueue(8), flows, 2000)
    for name, weight in enumerate(weights):
        assert served[name] == pytest.approx(2000 * weight / sum(weights), rel=0.05)


def test_what_costs_much_begins_in_pieces():
    turns, flow, other = FairQueue(8), Flow(), Flow()
    assert turns.take(flow, "large", 11) == [("large", 2)] * 4
    assert turns.take(flow, "behind it") == turns.take(other, "other", 3) == []
    assert turns.waiting == 3
    assert turns.free(flow) == []  # a piece of two does not fit
    assert turns.free(flow) == [("other", 2)]
    assert turns.free(flow, 2) == [("large", 2)]
    assert turns.free(flow, 2) == [("other", 1), ("large", 1)]
    assert turns.free(flow) == [("behind it", 1)]
    assert turns.waiting == 0


def test_one_that_is_alone_has_more_room_until_another_asks():
    turns, first, other = FairQueue(2, 10), Flow(), Flow()
    assert [len(turns.take(first, number)) for number in range(12)] == [1] * 10 + [0] * 2
    assert not turns.take(other, "other")
    begun = [turns.free(first) for _ in range(9)]  # what is under way goes down to what two may have
    assert begun[:8] == [[]] * 8
    assert turns.under_way == 2
    turns, first, other = FairQueue(2, 10), Flow(), Flow()
    turns.take(first, 0)
    turns.take(other, "other")
    turns.free(other)
    for number in range(1, 90):  # for a while after the other one has asked
        assert number > 39 or turns.most == 2
        turns.take(first, number)
        assert turns.under_way <= turns.most
        turns.free(first)
    assert turns.most == 10


def test_withdrawn_work_makes_room():
    turns, flow = FairQueue(16), Flow()
    for number in range(13):
        turns.take(flow, number)
    assert turns.take(flow, "large", 4) == turns.take(flow, "small", 1) == []
    assert turns.withdraw(flow, "large") == [("small", 1)]
    assert turns.waiting == 0
    assert turns.take(flow, "begun", 8) == []
    assert turns.free(flow, 2) == [("begun", 4)]
    assert turns.withdraw(flow, "begun") == []  # what has begun goes on
    assert (turns.waiting, turns.under_way) == (0, 16)


@given(
    st.integers(1, 6),
    st.integers(0, 6),
    st.lists(
        st.one_of(
            st.tuples(st.just("take"), st.integers(0, 2), st.integers(1, 8)),
            st.tuples(st.just("free"), st.integers(0, 20), st.just(0)),
            st.tuples(st.just("withdraw"), st.integers(0, 20), st.just(0)),
        ),
        max_size=60,
    ),
)
def test_whatever_happens_each_piece_begins_once_and_in_order_and_none_is_stuck(most, busy, steps):
    turns = FairQueue(most, busy=busy)
    flows = [Flow(weight) for weight in (1, 3, 7)]
    left, owner, waiting, running, begun_of = {}, {}, [], [], {flow: [] for flow in range(3)}

    def begin(pieces):
        for work, piece in pieces:
            left[work] -= piece
            assert piece >= 1
            assert left[work] >= 0
            if not left[work]:
                waiting.remove(work)
            running.append((flows[owner[work]], piece))
            begun_of[owner[work]].append(work)

    for number, (what, which, cost) in enumerate(steps):
        if what == "take":
            left[number], owner[number] = cost, which
            waiting.append(number)
            begin(turns.take(flows[which], number, cost))
        elif what == "free" and running:
            begin(turns.free(*running.pop(which % len(running))))
        elif what == "withdraw" and waiting:
            work = waiting[which % len(waiting)]
            waiting.remove(work)
            begin(turns.withdraw(flows[owner[work]], work))
        assert turns.under_way == sum(piece for _, piece in running) == sum(one.under_way for one in flows) <= most
        assert turns.waiting == len(waiting)
        assert not waiting or running, "something waits and nothing is under way"
        for works in begun_of.values():
            assert works == sorted(works)
