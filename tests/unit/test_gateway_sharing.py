"""Turns by weight, against a model, and what they promise to a flow that asks for less than its share."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hsmcore.gateway.sharing import Flow, Turns


def run(turns, flows, count):
    """Let every flow have work waiting all the time; return how much each has begun when `count` pieces have."""
    served, names = Counter(), iter(range(10**9))
    running = []

    def offer(name):
        work = (name, next(names))
        if turns.take(flows[name], work):
            running.append(work)

    for name in flows:
        for _ in range(turns.most + 2):
            offer(name)
    while sum(served.values()) < count:
        done = running.pop(0)
        served[done[0]] += 1
        running += turns.free()
        offer(done[0])
    return served


@pytest.mark.parametrize("weights", [(1, 1), (1, 2), (1, 10), (3, 5, 7)])
def test_flows_that_wait_share_by_weight(weights):
    flows = {name: Flow(weight) for name, weight in enumerate(weights)}
    served = run(Turns(8), flows, 2000)
    for name, weight in enumerate(weights):
        assert served[name] == pytest.approx(2000 * weight / sum(weights), rel=0.05)


def test_one_that_asks_for_little_goes_before_one_that_floods():
    turns, flood, quiet = Turns(4), Flow(), Flow()
    for number in range(1000):
        turns.take(flood, number)
    for number in range(500):
        turns.take(quiet, f"quiet {number}")
        begun = turns.free() + turns.free()
        assert f"quiet {number}" in begun


def test_a_flow_that_asked_for_nothing_has_saved_nothing():
    turns, busy, late = Turns(1), Flow(), Flow()
    turns.take(busy, "first")
    for number in range(100):
        turns.take(busy, number)
        turns.free()
    for number in range(100):
        turns.take(busy, ("busy", number))
        turns.take(late, ("late", number))
    begun = Counter(turns.free()[0][0] for _ in range(60))
    assert abs(begun["busy"] - begun["late"]) <= 2


def test_what_costs_more_than_there_is_begins_alone():
    turns, flow = Turns(4), Flow()
    assert turns.take(flow, "one")
    assert not turns.take(flow, "large", 10)
    assert not turns.take(flow, "behind it")
    assert turns.free() == ["large"]
    assert turns.free(10) == ["behind it"]


def test_one_that_is_alone_has_more_room_until_another_asks():
    turns, first, other = Turns(2, 10), Flow(), Flow()
    assert [turns.take(first, number) for number in range(12)] == [True] * 10 + [False] * 2
    assert not turns.take(other, "other")
    begun = [turns.free() for _ in range(9)]  # what is under way goes down to what two may have
    assert begun[:8] == [[]] * 8
    assert turns.under_way == 2
    turns = Turns(2, 10)
    turns.take(first, 0)
    turns.take(other, "other")
    for number in range(1, 60):  # for a while after the other one has asked
        turns.take(first, number)
        assert turns.under_way <= (2 if number <= 39 else 10)
        turns.free()
    assert turns.most == 10


def test_withdrawn_work_makes_room():
    turns, flow, other = Turns(4), Flow(), Flow()
    turns.take(flow, "one", 3)
    turns.take(flow, "large", 4)
    turns.take(other, "small", 1)
    assert turns.waiting == 2
    assert turns.withdraw(flow, "large") == ["small"]
    assert turns.waiting == 0


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
    turns = Turns(most)
    flows = [Flow(weight) for weight in (1, 3, 7)]
    costs, owner, waiting, running, begun_of = {}, {}, [], [], {flow: [] for flow in range(3)}

    def begin(works):
        for work in works:
            waiting.remove(work)
            running.append(work)
            begun_of[owner[work]].append(work)

    for number, (what, which, cost) in enumerate(steps):
        if what == "take":
            costs[number], owner[number] = cost, which
            waiting.append(number)
            if turns.take(flows[which], number, cost):
                begin([number])
        elif what == "free" and running:
            begin(turns.free(costs[running.pop(which % len(running))]))
        elif what == "withdraw" and waiting:
            work = waiting[which % len(waiting)]
            waiting.remove(work)
            begin(turns.withdraw(flows[owner[work]], work))
        under_way = sum(costs[work] for work in running)
        assert turns.under_way == under_way
        assert under_way <= most or len(running) == 1
        assert turns.waiting == len(waiting)
        assert not waiting or running, "something waits and nothing is under way"
        for works in begun_of.values():
            assert works == sorted(works)
