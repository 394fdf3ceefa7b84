"""The request ring on a weakly ordered processor: every execution of one client and two workers, with the memory orders
that the C source names.

A location is a list of messages (value, view) in modification order. A view names the oldest message of each location
that its thread may still read. A store appends: each location has one writer at a time, and `head` changes only by a
compare-and-swap that reads the last message and adds one. Therefore no place is claimed twice. A publication and an
attempt to claim are one step each: a load may read at the step's end what it could read earlier. The model has no load
buffering and treats seq_cst as acq_rel.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

SOURCES = Path(__file__).parents[2] / "native" / "src"
SLOTS = 2  # and as many places
REQUESTS = 3  # the last one reuses a place and a slot
HEAD, TAIL, PLACE, SLOT = 0, 1, 2, 2 + SLOTS
FREE = -1  # the content of a slot without a request, or with an answer
RELOAD = -1  # instead of a head: the worker enters hsm_area_claim
ACQUIRE, RELEASE = {"acquire", "acq_rel", "seq_cst"}, {"release", "acq_rel", "seq_cst"}

View = tuple[int, ...]
Memory = tuple[tuple[tuple[int, View], ...], ...]
Worker = tuple[int, View]  # `head` after a failed compare-and-swap, and the view
START: View = (0,) * (SLOT + SLOTS)

# For text without comments and white space. @name stands for a memory order.
PUBLISH = r"voidhsm_client_publish\(.*?&area->shared->request_tail,client->tail,@tail_store\);"
CLAIM = r"""boolhsm_area_claim\([^;]*=atomic_load_explicit\(&area->shared->request_head,@head_load\);
    for\(;;\)\{if\((?P<empty>[^{]*)\)\{returnfalse;\}[^;]*=atomic_load_explicit\(&area->requests\[[^;]*;
    if\(atomic_compare_exchange_weak_explicit\(&area->shared->request_head,&head,head\+1U,@cas_success,@cas_failure\)\)"""
TAIL_LOAD = r"atomic_load_explicit\(&area->shared->request_tail,@tail_load\)"
EQUAL = rf"hsm_area_claim\([^;]*;for\(;;\)\{{if\(head=={TAIL_LOAD}\)"
SIGNED = rf"hsm_area_queued_from\([^;]*int64_tcount=\(int64_t\)\({TAIL_LOAD}-head\);returncount>0\?\(uint64_t\)count:0;"


@dataclass(frozen=True)
class Orders:
    """Memory orders, by default as they should be. `signed`: a ring is empty also if its head is beyond its tail."""

    tail_store: str = "release"
    head_load: str = "acquire"
    tail_load: str = "acquire"
    cas_success: str = "acq_rel"
    cas_failure: str = "acquire"
    signed: bool = True


def find(file: str, pattern: str) -> dict[str, str]:
    text = re.sub(r"/\*.*?\*/|//[^\n]*|\s", "", (SOURCES / file).read_text(), flags=re.DOTALL)
    pattern = re.sub(r"@(\w+)", r"memory_order_(?P<\1>relaxed|acquire|release|acq_rel|seq_cst)", pattern)
    found = re.search(pattern, text, re.VERBOSE | re.DOTALL)
    assert found, f"{file} does not match {pattern}"
    return found.groupdict()


def orders_of_the_source() -> Orders:
    claiming = find("area.h", CLAIM)
    signed = claiming.pop("empty") == "hsm_area_queued_from(area,head)==0"
    return Orders(**find("client.c", PUBLISH), **claiming, **find("area.h", SIGNED if signed else EQUAL), signed=signed)


def moved(view: View, where: int, index: int) -> View:
    return (*view[:where], index, *view[where + 1 :])


def load(memory: Memory, view: View, where: int, order: str) -> Iterator[tuple[int, View]]:
    """Yield each value that a load may read, with the view of its thread afterwards."""
    for index in range(view[where], len(memory[where])):
        value, carried = memory[where][index]
        seen = moved(view, where, index)
        yield value, tuple(map(max, seen, carried)) if order in ACQUIRE else seen


def store(memory: Memory, view: View, where: int, value: int, order: str, swapped: View = START) -> tuple[Memory, View]:
    """Append a message. The view of the message that a compare-and-swap replaces goes on: a release sequence."""
    seen = moved(view, where, len(memory[where]))
    carried = seen if order in RELEASE else moved(START, where, seen[where])
    message = (value, tuple(map(max, carried, swapped)))
    return (*memory[:where], (*memory[where], message), *memory[where + 1 :]), seen


def publish(orders: Orders, memory: Memory, view: View) -> Iterator[tuple[Memory, View]]:
    """Fill a free slot, store its index in the next place, and move the tail."""
    number = len(memory[TAIL]) - 1
    for slot in range(SLOTS if number < REQUESTS else 0):
        for content, taken in load(memory, view, SLOT + slot, "acquire"):  # as from the completion ring
            if content == FREE:
                filled = store(memory, taken, SLOT + slot, number, "relaxed")
                placed = store(*filled, PLACE + number % SLOTS, slot, "relaxed")
                yield store(*placed, TAIL, number + 1, orders.tail_store)


def claim(orders: Orders, memory: Memory, worker: Worker) -> Iterator[tuple[Memory, Worker]]:
    """Run the loop in hsm_area_claim once. A claimed request is answered in the same step."""
    for head, at_head in load(memory, worker[1], HEAD, orders.head_load) if worker[0] == RELOAD else [worker]:
        for tail, at_tail in load(memory, at_head, TAIL, orders.tail_load):
            if tail == head or (orders.signed and tail < head):
                yield memory, (RELOAD, at_tail)
                continue
            for slot, at_place in load(memory, at_tail, PLACE + head % SLOTS, "relaxed"):
                yield from ((memory, failed) for failed in load(memory, at_place, HEAD, orders.cas_failure))
                *_, (last, at_last) = load(memory, at_place, HEAD, orders.cas_success)
                if last == head:
                    swapped = store(memory, at_last, HEAD, head + 1, orders.cas_success, memory[HEAD][-1][1])
                    check(memory, swapped[1], head, slot)
                    answered, view = store(*swapped, SLOT + slot, FREE, "release")
                    yield answered, (RELOAD, view)


def check(memory: Memory, view: View, head: int, slot: int) -> None:
    published = len(memory[TAIL]) - 1
    assert head < published, f"place {head} is claimed, but only {published} published"
    assert slot == memory[PLACE + head % SLOTS][1 + head // SLOTS][0], f"place {head} is claimed with an older content"
    contents = {content for content, _ in load(memory, view, SLOT + slot, "relaxed")}
    assert contents == {head}, f"place {head} is claimed, but an older content of its slot may be read"


def search(orders: Orders) -> int:
    """Visit every state. Return the most places that were claimed."""
    memory: Memory = tuple(((FREE if where >= PLACE else 0, START),) for where in range(len(START)))
    states = [(memory, START, ((RELOAD, START), (RELOAD, START)))]
    visited = set(states)
    for memory, client, workers in states:  # the list grows
        following = [(changed, view, workers) for changed, view in publish(orders, memory, client)]
        for worker, other in (workers, workers[::-1]):
            for changed, after in claim(orders, memory, worker):  # sorted: the workers are alike
                following.append((changed, client, tuple(sorted((after, other)))))
        states += (new := dict.fromkeys(state for state in following if state not in visited))
        visited.update(new)
    return max(len(memory[HEAD]) - 1 for memory, _, _ in states)


# Two measures protect the ring, and each suffices alone: the acquire loads of the head, and the signed comparison.
@pytest.mark.parametrize(
    "without",
    [{}, {"signed": False}, {"head_load": "relaxed", "cas_failure": "relaxed"}],
    ids=["both", "acquire", "signed"],
)
def test_the_source_claims_what_is_published(without):
    assert search(replace(orders_of_the_source(), **without)) == REQUESTS


@pytest.mark.parametrize(
    ("change", "violation"),
    [
        ({"head_load": "relaxed", "cas_failure": "relaxed", "signed": False}, "place 1 is claimed, but only 1"),
        ({"head_load": "relaxed", "signed": False}, "place 1 is claimed, but only 1"),
        ({"cas_failure": "relaxed", "signed": False}, "place 2 is claimed, but only 2"),
        ({"cas_success": "acquire", "signed": False}, "place 1 is claimed, but only 1"),
        ({"tail_load": "relaxed"}, "older content"),
        ({"tail_store": "relaxed"}, "older content"),
    ],
)
def test_weaker_orders_break_the_ring(change, violation):
    with pytest.raises(AssertionError, match=violation):
        search(Orders(**change))
