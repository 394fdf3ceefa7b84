"""How a batch is shared out over members with any load."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hsmcore.errors import QueueFull
from hsmcore.failover.batch import share_out
from hsmcore.failover.bindings import KeyBindings
from hsmcore.failover.endpoint import Endpoint
from hsmcore.failover.levels import EMERGENCY, Level, Levels
from hsmcore.failover.member_state import FULL, MemberState
from hsmcore.failover.request import Request
from hsmcore.failover.router import Router


@dataclass
class Engine:
    in_flight: int
    waiting: int = 0


def member(load, weight=FULL):
    made = MemberState(f"{load}", 0, 1)
    made.engine, made.weight = Engine(load), weight
    return made


members = st.lists(st.builds(member, st.integers(0, 500), st.integers(FULL // 16, FULL)), min_size=1, max_size=8)


@given(count=st.integers(0, 5000), team=members)
def test_all_requests_are_shared_out_evenly(count, team):
    shares = share_out(count, team)
    assert sum(share for _, share in shares) == count
    assert all(share > 0 for _, share in shares)
    assert len({id(m) for m, _ in shares}) == len(shares)
    given_ = {id(m): share for m, share in shares}

    def height(m, more=0):
        return (m.engine.in_flight + given_.get(id(m), 0) + more) * FULL / m.weight

    # No request would have been better served by another member: not by more than one request.
    for m, _ in shares:
        for other in team:
            assert height(m, -1) <= height(other, 1) + 1e-6


def test_idle_members_of_full_weight_share_alike():
    team = [member(0), member(0), member(0)]
    assert [share for _, share in share_out(100, team)] == [34, 33, 33]


def test_a_busy_member_gets_no_share():
    team = [member(1000), member(0)]
    assert share_out(100, team) == [(team[1], 100)]


# ---- the time of an attempt ----


@pytest.mark.parametrize(
    ("mode", "members", "share"),
    [
        ("smart", "a", 8.0),
        ("smart", "a a", 4.0),
        ("smart", "a a a", 4.0),
        ("smart", "a b", 8.0),  # the next one signs under another key
        ("smart", "a b b", 8.0),
        ("smart", "a a b", 4.0),
        ("smart", "a -a", 8.0),  # the next one is out of service
        ("smart", "-a a a", 4.0),
        ("smart", "-a e", 8.0),  # only the emergency level, which may not sign now
        ("literal", "a a", 8.0),
    ],
)
def test_an_attempt_has_half_of_the_time_if_another_member_of_its_key_could_sign_afterwards(mode, members, share):
    """`members`: the key of each, with - before it if the member is out of service; e: of the emergency level."""
    made = [
        Endpoint(name, one.endswith("e"), 1, EMERGENCY if one == "e" else "primary", lambda: None)
        for name, one in ((f"{number}", one) for number, one in enumerate(members.split()))
    ]
    names = ["primary", EMERGENCY]
    levels = Levels([Level(name, 3, 1, other_keys=True) for name in names], made, mode)
    levels.permit_emergency(False, "", 1)
    router = Router(
        *(levels,),
        default_timeout=8.0,
        sink=lambda _: None,
        budget=None,
        operations=frozenset(),
        hedging=False,
        on_emergency=lambda *_: None,
        bindings=KeyBindings(),
    )
    for endpoint, one in zip(made, members.split(), strict=True):
        levels.started(endpoint, one[-1].encode(), 1)
        if one.startswith("-"):
            levels.failed(endpoint, "fatal", "it is gone", 1)
    aimed: list[bool] = []
    router.routes = SimpleNamespace(aim=lambda *_members, halve, **_: aimed.append(halve))
    router.settle()
    if mode == "literal":  # to the letter of its settings: it tries again where it failed
        assert not router._has_room(made[0], QueueFull("full"), Request(b"m", 1, False, None))
    assert (router.share(8.0), aimed) == (share, [share == 4.0]), "the short way halves as well, and at once"
