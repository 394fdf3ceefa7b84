"""How a batch is shared out over members with any load."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from hsmcore.failover.batch import share_out
from hsmcore.failover.member_state import FULL, MemberState


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
