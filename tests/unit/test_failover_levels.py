"""The state machine of levels, driven through years, against a reference model that keeps nothing but facts."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tests.support.levels_model import GOOD_PROBES, Reference
from tests.support.size import share

from hsmcore.failover.breaker import RULES, SECOND
from hsmcore.failover.levels import EMERGENCY, Level, Levels
from hsmcore.failover.member_state import FULL, MemberState

YEAR = 365 * 86_400 * SECOND
KEYS = [b"key-a", b"key-b", b"key-e"]


@dataclass
class Engine:
    in_flight: int = 0
    waiting: int = 0


class LevelsMachine(RuleBasedStateMachine):
    """After any events, the members that sign are those that the facts allow."""

    @initialize(
        sizes=st.tuples(st.integers(1, 3), st.integers(0, 3), st.integers(0, 1)),
        consent=st.tuples(st.booleans(), st.booleans()),
        interval=st.sampled_from([50_000_000, 5 * SECOND]),
        ramp=st.sampled_from([0, 10 * SECOND]),
        data=st.data(),
    )
    def begin(self, sizes, consent, interval, ramp, data):
        names = ["primary", "secondary", EMERGENCY]
        used = [i for i in range(3) if sizes[i]]
        self.levels_: list[Level] = [Level(names[i], 3, interval, other_keys=i == 2 or consent[i]) for i in used]
        self.members: list[MemberState] = []
        for place, i in enumerate(used):
            for number in range(sizes[i]):
                self.members.append(MemberState(f"{names[i]}-{number}", place, interval))
        self.reference = Reference(self.levels_, [member.level for member in self.members])
        for member in self.members:
            member.engine = Engine(data.draw(st.integers(0, 5)), data.draw(st.integers(0, 2)))
        self.machine = Levels(self.levels_, self.members, ramp=ramp)
        self.now = 1

    # ---- what happens ----

    @rule(member=st.integers(0, 6), key=st.sampled_from(KEYS[:2]))
    def start(self, member, key):
        if member >= len(self.members) or self.reference.facts[member].key is not None:
            return
        key = KEYS[2] if self.levels_[self.members[member].level].name == EMERGENCY else key
        self.reference.started(member, key)
        self.machine.started(self.members[member], key, self.now)

    @rule(member=st.integers(0, 6))
    def stop(self, member):
        if member < len(self.members):
            self.reference.stopped(member)
            self.machine.stopped(self.members[member], self.now)

    @rule(member=st.integers(0, 6), kind=st.sampled_from(sorted(RULES)), times=st.integers(1, 10))
    def fail(self, member, kind, times):
        if member >= len(self.members) or self.reference.facts[member].key is None:
            return
        key = self.reference.facts[member].key
        for _ in range(times):
            others = any(m is not self.members[member] and m.key == key for m in self.machine.ready)
            self.reference.failed(member, kind, others=others)
            self.machine.failed(self.members[member], kind, "it failed", self.now)

    @rule(member=st.integers(0, 6))
    def stall(self, member):
        if member < len(self.members):
            self.reference.stalled(member)
            self.machine.stalled(self.members[member], self.now)

    @rule(key=st.sampled_from(KEYS[:2]))
    def use_key(self, key):
        self.reference.use_key(key)
        self.machine.use_key(key, self.now)

    @rule(member=st.integers(0, 6))
    def progress(self, member):
        if member < len(self.members):
            self.reference.progressed(member)
            self.machine.progressed(self.members[member])

    @rule(good=st.booleans(), times=st.integers(1, 5))
    def probe(self, good, times):
        """Probe the members that are due, as the keeper does."""
        for _ in range(times):
            for member in self.machine.probes_due(self.now):
                number = self.members.index(member)
                fact = self.reference.facts[number]
                if fact.key is None:
                    continue
                if not fact.good:  # on standby
                    assert member not in self.machine.ready
                assert all(RULES[kind].probed for kind in fact.good), "faults that only a person repairs are not probed"
                self.reference.probed(number, good)
                self.machine.probed(member, good, "" if good else "a bad probe", self.now)
            self.now += self.members[0].interval

    @rule(passed=st.sampled_from([1, 1_000_000, SECOND, 60 * SECOND, 86_400 * SECOND, YEAR]))
    def time_passes(self, passed):
        self.now += passed
        self.machine.tick(self.now)

    @rule(member=st.integers(0, 6))
    def readmit(self, member):
        if member < len(self.members):
            self.reference.readmit(member)
            self.machine.readmit(self.members[member], "mended", self.now)
            found = self.members[member]
            if found.open_breakers and not found.drained:
                assert found in self.machine.probes_due(self.now), "the first probe comes at once"

    @rule(member=st.integers(0, 6), on=st.booleans())
    def drain(self, member, on):
        if member < len(self.members):
            self.reference.drain(member, on)
            self.machine.drain(self.members[member], on, "maintenance", self.now)

    @rule(level=st.one_of(st.none(), st.integers(0, 2)))
    def force(self, level):
        if level is None or level < len(self.levels_):
            self.reference.forced = level
            self.machine.force(level, "by hand", self.now)

    @rule(permitted=st.booleans(), spent=st.booleans())
    def restrict(self, permitted, spent):
        self.machine.permit_emergency(permitted, "", self.now)
        self.reference.restrict(permitted=permitted, spent=self.reference.spent)
        self.machine.emergency_used_up(spent, "", self.now)
        self.reference.restrict(permitted=permitted, spent=spent)

    @rule(member=st.integers(0, 6), load=st.integers(0, 100))
    def load(self, member, load):
        if member < len(self.members):
            self.members[member].engine = Engine(load)

    # ---- what must hold ----

    @precondition(lambda self: hasattr(self, "machine"))
    @invariant()
    def who_signs_is_who_may(self):
        machine = self.machine
        assert self.reference.differences(machine) == []
        assert bool(machine.sharing) == bool(machine.ready)
        assert all(member.weight == 256 for member in machine.steady) or not machine.ramping
        for member in machine.sharing:
            assert self.reference.usable(self.members.index(member))
            level = self.levels_[member.level]
            assert level.other_keys or member.key == machine.key, "a second key needs consent"
            assert member.key == machine.ready[0].key, "one key at a time"
        for key in KEYS:
            tried = machine.pick_for(key, ())
            assert tried is None or tried.key == key
            assert machine.pick_for(key, self.members) is None

    @precondition(lambda self: hasattr(self, "machine"))
    @invariant()
    def every_move_is_an_event(self):
        events, self.machine.events = self.machine.events, []
        names = [level.name for level in self.levels_]
        for event in events:
            if event.kind == "failover":
                assert names.index(event.level_from) < names.index(event.level_to)
            if event.kind == "failback":
                assert names.index(event.level_from) > names.index(event.level_to)
        moves = [e for e in events if e.kind in ("failover", "failback", "recovered", "outage")]
        active = self.machine.active
        if moves:
            last = moves[-1]
            assert last.level_to == (None if active is None else names[active])


LevelsMachine.TestCase.settings = settings(max_examples=share(300), stateful_step_count=40, deadline=None)
TestLevels = LevelsMachine.TestCase


def test_a_suspicion_waits_for_the_emergency_and_a_failed_probe_or_an_error_does_not():
    def late():
        levels = [Level("primary", 3, SECOND), Level(EMERGENCY, 1, SECOND, other_keys=True)]
        members = [MemberState("p", 0, SECOND), MemberState("e", 1, SECOND)]
        machine = Levels(levels, members, suspicion=2 * SECOND)
        machine.started(members[0], b"key", 0)
        machine.stalled(members[0], 0)
        return machine, members[0]

    machine, member = late()
    assert not machine.emergency_wanted(2 * SECOND - 1)
    assert machine.emergency_wanted(2 * SECOND)
    machine.probed(member, False, "it did not answer", 1)
    assert machine.emergency_wanted(1)
    machine, member = late()
    machine.failed(member, "down", "it is gone", 1)
    assert machine.emergency_wanted(1)
    machine, member = late()
    machine.drain(member, True, "an order", 1)
    assert machine.emergency_wanted(1)


# ---- what the model does not look at: events, reasons, weights and times ---------------------------------------------

KEY, OTHER = KEYS[:2]
INTERVAL = 10 * SECOND


def machine(*sizes, ramp=0, consent=True, started=True, **given):
    """Levels of as many members; those of the first two hold one key, and the emergency level's none yet."""
    names = ["primary", "secondary", EMERGENCY]
    levels = [Level(names[n], 3, INTERVAL, other_keys=consent and n > 0) for n in range(len(sizes))]
    members = [MemberState(f"{names[n]}-{m}", n, INTERVAL) for n, size in enumerate(sizes) for m in range(size)]
    made = Levels(levels, members, ramp=ramp, **given)
    for member in members:
        if started and names[member.level] != EMERGENCY:
            made.started(member, KEY, 0)
    return made


def events(made):
    """What was told since the last look: kind, levels and reason."""
    told, made.events = made.events, []
    return [(event.kind, event.level_from, event.level_to, event.reason) for event in told]


def returned(made, member, now):
    """Close its breakers by good probes."""
    for _ in range(GOOD_PROBES):
        made.probed(member, True, "", now)


def test_what_happens_is_told_with_its_reason():
    made = machine(1, 1)
    first, second = made.members
    assert events(made) == []  # the first level after the start is no news
    made.failed(first, "down", "unplugged", 1)
    assert events(made) == [
        ("member-down", "primary", None, "unplugged"),
        ("failover", "primary", "secondary", "primary-0: unplugged"),
    ]
    made.stalled(second, 2)
    assert made.causes() == "primary-0: unplugged; secondary-0: it has requests and ends none"
    assert (made.causes(1), made.causes(0)) == ("primary-0: unplugged", "")
    assert events(made) == [
        ("member-down", "secondary", None, "it has requests and ends none"),
        ("outage", "secondary", None, made.causes()),
    ]
    returned(made, second, 3)
    assert events(made)[-1] == ("recovered", "secondary", "secondary", "")
    returned(made, first, 4)
    assert events(made)[-1] == ("failback", "secondary", "primary", "")
    assert made.causes() == ""
    made.force(1, "an exercise", 5)
    made.force(1, "an exercise", 5)
    assert events(made) == [
        ("level-forced", None, "secondary", "an exercise"),
        ("failover", "primary", "secondary", "an exercise"),
    ]
    made.force(None, "it is over", 6)
    assert events(made) == [("level-released", None, None, "it is over"), ("failback", "secondary", "primary", "")]
    made.drain(first, True, "a repair", 7)
    assert [kind for kind, *_ in events(made)] == ["member-drained", "failover"]
    assert made.causes() == "primary-0: drained"


def test_a_member_that_returns_takes_a_growing_share():
    ramp = 16 * SECOND
    made = machine(2, 1, ramp=ramp)
    first, second, other = made.members
    assert (made.steady, made.ramping, made.round) == ((first, second), (), FULL)
    made.failed(first, "down", "gone", 1)
    returned(made, first, 100)
    assert (first.weight, made.steady, made.ramping, made.round) == (16, (second,), (first,), 2 * FULL)
    for passed, weight in ((0, 16), (ramp // 2, 136), (ramp - 1, 255), (ramp, FULL)):
        made.tick(100 + passed)
        assert first.weight == weight
    assert (made.steady, made.ramping) == ((first, second), ())
    for member in (first, second):
        made.failed(member, "down", "gone", 200)
    returned(made, first, 300)  # others sign meanwhile: those of the level below, with the same key
    assert (made.ready, made.steady, made.ramping, made.round) == ((first,), (other,), (first,), FULL)
    returned(made, second, 301)
    assert (made.steady, made.ramping, made.round) == ((other,), (first, second), FULL)
    alone = machine(1, ramp=ramp)
    alone.failed(alone.members[0], "down", "gone", 1)
    returned(alone, alone.members[0], 2)
    assert alone.members[0].weight == FULL  # nobody else would take the rest


def test_while_no_member_is_trusted_one_whose_last_probe_was_good_may_sign_with_its_key():
    made = machine(1, 1)
    first, second = made.members
    for member in made.members:
        made.failed(member, "down", "gone", 1)
    assert made.pick_for(None, ()) is None
    made.probed(second, True, "", 2)
    assert made.pick_for(None, ()) is made.pick_for(KEY, ()) is second
    assert made.pick_for(OTHER, ()) is made.pick_for(None, [second]) is None
    for _ in range(GOOD_PROBES):
        made.probed(first, True, "", 3)
    assert made.pick_for(None, [first]) is None  # a trusted one is there


def test_members_on_standby_are_probed_at_the_interval():
    made = machine(1, 1, 1)
    first, second, emergency = made.members
    assert made.probes_due(INTERVAL - 1) == []
    assert made.probes_due(INTERVAL) == [second]
    made.probed(second, True, "", INTERVAL)
    assert made.probes_due(2 * INTERVAL - 1) == []
    made.started(emergency, KEYS[2], 0)
    made.stopped(second, INTERVAL)
    assert made.probes_due(2 * INTERVAL) == [second]
    made.failed(first, "down", "gone", 2 * INTERVAL)
    assert made.ready == (emergency,)
    assert made.probes_due(2 * INTERVAL) == [second]
    made.failed(emergency, "down", "gone", 2 * INTERVAL)
    assert set(made.probes_due(2 * INTERVAL + SECOND // 20)) == {first, second, emergency}  # no member signs


def test_the_emergency_level_is_wanted_once_all_others_have_been_down_for_its_delay():
    made = machine(1, 1, 1, emergency_permitted=True, emergency_delay=5, suspicion=20)
    first, second, _ = made.members
    made.failed(first, "down", "gone", 100)
    assert made.all_down_since() is None
    made.failed(second, "down", "gone", 200)
    assert made.all_down_since() == 200
    assert [made.emergency_wanted(now) for now in (204, 205)] == [False, True]
    for change, back in (
        (lambda: made.permit_emergency(False, "no", 300), lambda: made.permit_emergency(True, "yes", 300)),
        (lambda: made.emergency_used_up(True, "used", 300), lambda: made.emergency_used_up(False, "", 300)),
        (lambda: made.emergency_failed("no key", 300), lambda: made.emergency_failed("", 300)),
    ):
        change()
        assert not made.emergency_wanted(400)
        back()
        assert made.emergency_wanted(400)
    returned(made, first, 500)
    assert not made.emergency_wanted(600)
    made.force(2, "an exercise", 600)
    assert made.emergency_wanted(600)
    made.force(1, "an exercise", 600)
    assert not made.emergency_wanted(600)
    made.stalled(first, 700)  # late, and perhaps alive
    assert made.emergency_wait == 25
    made.drain(first, True, "a repair", 700)
    assert made.emergency_wait == 5
    made.drain(first, False, "repaired", 700)
    assert made.emergency_wait == 25
    returned(made, first, 800)
    assert made.emergency_wait == 5


def test_in_literal_mode_only_what_must_not_sign_takes_a_member_out():
    for kind in RULES:
        made = machine(2, mode="literal")
        for _ in range(10):
            made.failed(made.members[0], kind, "it failed", 1)
        made.stalled(made.members[1], 1)
        assert made.members[0].trusted == (kind not in {"wrong", "key", "auth", "fatal"})
        assert made.members[1].trusted


def test_a_member_that_is_only_late_or_slow_is_suspected_until_a_probe_fails():
    for kind in RULES:
        made = machine(2)
        member = made.members[0]
        for _ in range(10):
            made.failed(member, kind, "it failed", 1)
        assert not member.trusted
        assert member.suspected == (kind in {"late", "slow"})
        made.probed(member, False, "it failed", 2)
        assert not member.suspected
