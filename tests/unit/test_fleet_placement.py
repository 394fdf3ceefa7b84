"""On which host an epoch begins, with times that are passed in."""

from __future__ import annotations

from typing import Any

import pytest

from hsmcore.config.fleet import Fleet
from hsmcore.fleet.machine import EpochRow, Machine
from hsmcore.fleet.placement import MOST_STEPS, Placement

TTL = 2_000_000_000
STEP = TTL // 2
MARGIN = TTL // 10
NOBODY = EpochRow()


class Host:
    """One host's machine and placement. `sees` is a look at the row."""

    def __init__(self, host: str, manager: str | None = None, **rules: Any) -> None:
        given = {"store": {"url": "x"}, "name": "f", "host": host, "ttlMs": 2000, **rules}
        fleet = Fleet.model_validate(given)
        self.machine = Machine(f"{host}:1:a", TTL)
        self.placement = Placement(fleet if manager is None else fleet.among(manager))

    def sees(self, row: EpochRow, at: int) -> int | None:
        self.machine.saw(row, at)
        return self.placement.turn(self.machine, at)


def held(host: str, renewals: int = 0) -> EpochRow:
    return EpochRow(1, f"{host}:1:a", host, renewals, False)


@pytest.mark.parametrize(("host", "steps"), [("a", 0), ("b", 1), ("c", 2), ("unlisted", 2)])
def test_hosts_that_begin_together_claim_in_the_order_of_prefer(host, steps):
    prefer = ["a", "b"] if host == "unlisted" else ["a", "b", "c"]
    assert Host(host, prefer=prefer).sees(NOBODY, 5) == 5 + steps * STEP


def test_the_longest_delay_has_a_bound():
    prefer = [f"host-{number}" for number in range(40)]
    assert Host("host-39", prefer=prefer, ttlMs=600_000).sees(NOBODY, 5) == 5 + MOST_STEPS * STEP


def test_the_host_that_is_gone_is_not_waited_for():
    second, third = (Host(name, prefer=["a", "b", "c"]) for name in "bc")
    for host, steps in ((second, 0), (third, 1)):
        host.sees(NOBODY, 0)
        host.sees(held("a"), 10)
        assert host.sees(held("a", 1), 20) == 20 + TTL + MARGIN + steps * STEP
        assert host.sees(held("a", 1)._replace(released=True), 30) == 30 + steps * STEP


def test_a_holder_that_was_not_seen_at_work_may_be_about_to_begin_too():
    """All hosts lost their power: the first of the order is as good as before."""
    released = held("a")._replace(released=True)
    assert Host("b", prefer=["a", "b"]).sees(released, 5) == 5 + STEP
    assert Host("a", prefer=["a", "b"]).sees(released, 5) == 5


def test_a_host_that_is_left_alone_waits_once():
    host = Host("b", prefer=["a", "b"])
    turn = host.sees(NOBODY, 5)
    assert [host.sees(NOBODY, at) for at in (6, 7, STEP)] == [turn] * 3


def test_without_an_order_the_hosts_of_each_key_manager_are_drawn():
    managers = ("blocks", "roots", "fees", "oracle")
    turns = {manager: {host: Host(host, manager).sees(NOBODY, 0) for host in ("a", "b")} for manager in managers}
    firsts = [min(drawn, key=lambda host: drawn[host] or 0) for drawn in turns.values()]
    assert firsts == ["b", "a", "a", "a"]
    assert all(0 <= (turn or 0) < TTL for drawn in turns.values() for turn in drawn.values())
    # As soon as a holder was seen, a takeover waits for its lease and nothing else.
    follower = Host("a", "blocks")
    follower.sees(NOBODY, 0)
    assert follower.sees(held("b"), 10) == 10 + TTL + MARGIN


def test_one_key_manager_alone_waits_for_nothing():
    assert Host("a").sees(NOBODY, 5) == 5
