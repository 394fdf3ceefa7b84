"""The policy for one request: simulated to its end, with a clock of the test's own."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from hsmcore.failover.breaker import RULES, SECOND
from hsmcore.failover.latency import HISTORY_MIN, WINDOWS, LatencyWatch
from hsmcore.failover.levels import EMERGENCY, Level, Levels
from hsmcore.failover.member_state import MemberState
from hsmcore.failover.policy import Attempts, GiveUp, Try, Wait, next_step

KEY, OTHER = b"current", b"other"
KINDS = st.sampled_from(sorted(RULES))


def plan(mode, sizes, retries, interval, *, emergency=False, other=frozenset()):
    """Levels whose members have all started; `other`: the levels of another key, accepted."""
    names = ["primary", "secondary"][: len(sizes)] + ([EMERGENCY] if emergency else [])
    levels = [Level(name, retries, interval, other_keys=name in other or name == EMERGENCY) for name in names]
    members = [MemberState(f"{names[i]}-{n}", i, interval) for i, size in enumerate(sizes) for n in range(size)]
    if emergency:
        members.append(MemberState("emergency-0", len(sizes), interval))
    machine = Levels(levels, members, mode=mode, emergency_permitted=emergency)
    for member in members:
        name = names[member.level]
        if name != EMERGENCY:
            machine.started(member, OTHER if name in other else KEY, 0)
    machine.events.clear()
    return machine


def serve(machine, attempts, now, fails, deadline):
    """Play the router: returns (the member that signed or None, the attempts made, the time at the end)."""
    made = []
    while now < deadline:
        step = next_step(machine, attempts, now)
        if isinstance(step, GiveUp):
            return None, made, now
        if isinstance(step, Wait):
            assert step.until >= now
            # An eager one would be woken when the emergency level has been started.
            woken = now + SECOND // 10 if step.eager and EMERGENCY in {level.name for level in machine.levels} else now
            now = max(min(step.until, woken) if step.eager and woken > now else step.until, now + 1)
            machine.tick(now)
            if machine.emergency_wanted(now):
                for member in machine.members:
                    if machine.levels[member.level].name == EMERGENCY and member.key is None:
                        machine.started(member, b"emergency", now)
            continue
        assert isinstance(step, Try)
        made.append((now, step.member))
        kind = fails(step.member)
        if kind is None:
            return step.member, made, now
        attempts.tried.append(step.member)
        machine.failed(step.member, kind, "it failed", now)
        now += 1
        assert len(made) < 10_000
    return None, made, now


@given(
    sizes=st.lists(st.integers(1, 3), min_size=1, max_size=2),
    retries=st.integers(1, 5),
    interval=st.integers(1_000, 10 * SECOND),
)
def test_literal_mode_tries_and_retries_each_level_at_its_interval(sizes, retries, interval):
    machine = plan("literal", sizes, retries, interval)
    signer, made, end = serve(machine, Attempts(), 5, lambda _member: "down", 10**18)
    assert signer is None
    assert [member.level for _, member in made] == [lv for lv in range(len(sizes)) for _ in range(retries + 1)]
    for level in range(len(sizes)):
        times = [when for when, member in made if member.level == level]
        assert all(interval <= b - a <= interval + 2 for a, b in itertools.pairwise(times))
    assert end >= retries * interval * len(sizes)
    # In its level, a retry asks a member that has not failed this request yet, as long as there is one.
    for level, size in enumerate(sizes):
        names = [member.name for _, member in made if member.level == level]
        assert len(set(names[:size])) == min(size, len(names))


@given(
    sizes=st.lists(st.integers(1, 3), min_size=1, max_size=2),
    broken=st.sets(st.integers(0, 5)),
    kind=KINDS,
    interval=st.integers(1_000, 10 * SECOND),
)
def test_smart_mode_never_waits_while_a_member_can_sign(sizes, broken, kind, interval):
    machine = plan("smart", sizes, 3, interval)
    bad = {member for index, member in enumerate(machine.members) if index in broken}
    signer, made, end = serve(machine, Attempts(), 0, lambda m: kind if m in bad else None, 10**18)
    if len(bad) < len(machine.members):
        assert signer is not None
        assert end <= len(made)  # every attempt took one nanosecond, and there was nothing else
        assert len(made) <= len(bad) + 1
        assert len({member for _, member in made}) == len(made)
    else:
        assert signer is None


@given(kind=KINDS, retries=st.integers(1, 4), interval=st.integers(1_000, 10 * SECOND))
def test_smart_mode_gives_all_members_up_after_their_retries(kind, retries, interval):
    machine = plan("smart", [2, 1], retries, interval)
    signer, made, end = serve(machine, Attempts(), 0, lambda _member: kind, 10**18)
    assert signer is None
    assert end <= (retries + 1) * interval + len(made) + 2
    for member in machine.members:
        assert 1 <= [m for _, m in made].count(member) <= retries + 1
    # A later request fails at once, until something changes.
    if all(not m.trusted for m in machine.members):
        assert serve(machine, Attempts(), end + 1, lambda _member: kind, 10**18) == (None, [], end + 1)


@given(bound=st.booleans(), mode=st.sampled_from(["smart", "literal"]), other=st.booleans())
def test_no_second_key_signs_what_a_first_one_may_have_signed(bound, mode, other):
    machine = plan(mode, [2, 1], 2, SECOND, emergency=True, other=frozenset({"secondary"} if other else ()))
    attempts = Attempts(bound_to=KEY if bound else None)
    signer, made, _ = serve(machine, attempts, 0, lambda m: "down" if m.level == 0 else None, 10**18)
    if bound and other:
        assert signer is None
        assert {member.key for _, member in made} == {KEY}
    else:
        assert machine.levels[signer.level].name == "secondary"


@given(mode=st.sampled_from(["smart", "literal"]), delay=st.sampled_from([0, 20 * SECOND]))
def test_the_emergency_level_comes_last(mode, delay):
    machine = plan(mode, [1, 1], 2, SECOND, emergency=True)
    machine.emergency_delay = delay
    signer, made, end = serve(machine, Attempts(), 0, lambda m: "down" if m.level < 2 else None, 10**18)
    assert [member.level for _, member in made if member.level < 2] == sorted(m.level for _, m in made if m.level < 2)
    assert {member.level for _, member in made} >= {0, 1}
    assert machine.levels[signer.level].name == EMERGENCY
    assert end >= delay


@given(
    usual=st.integers(1_000, 50_000_000),
    factor=st.floats(0.1, 50),
    windows=st.lists(st.booleans(), min_size=1, max_size=30),
)
def test_slow_is_slower_than_it_used_to_be_for_three_windows(usual, factor, windows):
    watch, counts = LatencyWatch(), {}

    def look(value, count=100):
        counts[value] = counts.get(value, 0) + count
        return watch.look(sorted(counts.items()))

    for _ in range(HISTORY_MIN):
        assert not look(usual)
    value, run = max(int(usual * factor), 1), 0
    for odd in windows:
        outlier = odd and value > max(8 * usual, 5_000_000)
        run = run + 1 if outlier else 0
        assert look(value if odd else usual) == (run >= WINDOWS)
        if odd and not outlier:
            return  # from here on it is part of the history


def test_a_request_waits_for_members_that_may_sign_it_and_no_longer():
    machine = plan("smart", [1, 2], 3, 10 * SECOND, other=frozenset({"secondary"}))
    first, second, third = machine.members
    for member in machine.members:
        machine.failed(member, "down", "gone", 100)
    machine.stopped(third, 100)
    until = 100 + 30 * SECOND
    for attempts in (Attempts(), Attempts(bound_to=KEY), Attempts(only=KEY), Attempts(bound_to=b"of the third")):
        assert next_step(machine, attempts, until - 1) == Wait(until, eager=True)
        assert next_step(machine, attempts, until) == GiveUp()
    machine.drain(third, True, "a repair", 100)
    assert next_step(machine, Attempts(bound_to=b"of nobody"), 200) == GiveUp()
    assert next_step(machine, Attempts(bound_to=OTHER), 200) == Wait(until, eager=True)
    machine.failed(second, "auth", "locked", 100)  # no probe brings it back
    assert next_step(machine, Attempts(bound_to=OTHER), 200) == GiveUp()
    machine.drain(first, True, "a repair", 100)
    assert next_step(machine, Attempts(), 200) == GiveUp()


def test_a_request_for_a_key_that_has_not_started_waits_for_no_level_that_signs():
    machine = plan("smart", [2], 3, 10 * SECOND)
    machine.stopped(machine.members[1], 100)
    assert next_step(machine, Attempts(bound_to=OTHER), 200) == GiveUp()


@given(mode=st.sampled_from(["smart", "literal"]))
def test_only_a_request_that_any_key_may_sign_waits_for_the_emergency_level(mode):
    machine = plan(mode, [1], 1, SECOND, emergency=True)
    machine.emergency_delay = 20 * SECOND
    machine.failed(machine.members[0], "fatal", "gone", 100)
    until = 100 + 25 * SECOND
    at = {"level": 1} if mode == "literal" else {}
    assert next_step(machine, Attempts(**at), until - 1) == Wait(until, eager=True)
    assert next_step(machine, Attempts(**at), until) == GiveUp()
    assert next_step(machine, Attempts(bound_to=KEY, **at), 200) == GiveUp()
    if mode == "literal":
        assert next_step(machine, Attempts(tried=[machine.members[1]], **at), 200) == GiveUp()
    machine.emergency_failed("no key", 200)
    assert next_step(machine, Attempts(**at), 200) == GiveUp()
    machine.emergency_failed("", 200)
    machine.started(machine.members[1], b"emergency", 200)
    assert next_step(machine, Attempts(**at), 200) == Try(machine.members[1])
    assert next_step(machine, Attempts(bound_to=KEY, **at), 200) == GiveUp()


def test_members_that_failed_the_request_and_are_trusted_are_asked_again_at_once_and_then_at_the_interval():
    machine = plan("smart", [2], 2, 10 * SECOND)
    attempts = Attempts()
    for wait in (0, 10 * SECOND):
        attempts.tried.extend(machine.members)
        assert next_step(machine, attempts, 100) == Wait(100 + wait, eager=False)
        assert isinstance(next_step(machine, attempts, 100), Try)
    attempts.tried.extend(machine.members)
    assert next_step(machine, attempts, 100) == GiveUp()
