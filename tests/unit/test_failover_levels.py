"""The state machine of levels, driven through years, against a reference model that keeps nothing but facts."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from hsmcore.failover.breaker import RULES, SECOND
from hsmcore.failover.levels import EMERGENCY, Level, Levels
from hsmcore.failover.member_state import MemberState

GOOD_PROBES = 3  # as required
YEAR = 365 * 86_400 * SECOND
KEYS = [b"key-a", b"key-b", b"key-e"]


@dataclass
class Engine:
    in_flight: int = 0
    waiting: int = 0


@dataclass
class Fact:
    """What is known of a member."""

    level: int
    key: bytes | None = None
    drained: bool = False
    failures: dict[str, int] = field(default_factory=dict)
    good: dict[str, int] = field(default_factory=dict)  # the kinds that are open, and their good probes in a row

    @property
    def trusted(self) -> bool:
        return self.key is not None and not self.drained and not self.good


class LevelsMachine(RuleBasedStateMachine):
    """Whatever happens: who signs is who the facts allow."""

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
        self.facts = [Fact(member.level) for member in self.members]
        for member in self.members:
            member.engine = Engine(data.draw(st.integers(0, 5)), data.draw(st.integers(0, 2)))
        self.machine = Levels(self.levels_, self.members, ramp=ramp)
        self.now = 1
        self.permitted, self.spent, self.forced = True, False, None
        self.current: bytes | None = None
        self.from_level = 0
        self.returned: dict[int, int] = {}

    # ---- what happens ----

    @rule(member=st.integers(0, 6), key=st.sampled_from(KEYS[:2]))
    def start(self, member, key):
        if member >= len(self.members) or self.facts[member].key is not None:
            return
        fact, level = self.facts[member], self.levels_[self.members[member].level]
        key = KEYS[2] if level.name == EMERGENCY else key
        fact.key = key
        above = fact.level < self.from_level and self.levels_[self.from_level].other_keys
        if level.name != EMERGENCY and (self.current is None or above):
            self.current, self.from_level = key, fact.level
        if not level.other_keys and self.current not in (None, key):
            fact.good["key"] = 0
        self.machine.started(self.members[member], key, self.now)

    @rule(member=st.integers(0, 6), kind=st.sampled_from(sorted(RULES)), times=st.integers(1, 10))
    def fail(self, member, kind, times):
        if member >= len(self.members) or self.facts[member].key is None:
            return
        fact = self.facts[member]
        for _ in range(times):
            others = any(m is not self.members[member] and m.key == fact.key for m in self.machine.ready)
            if kind == "slow" and not others:
                continue
            if kind in fact.good:
                fact.good[kind] = 0
            else:
                fact.failures[kind] = fact.failures.get(kind, 0) + 1
                if fact.failures[kind] >= RULES[kind].threshold:
                    fact.good[kind] = 0
                    fact.failures[kind] = 0
            self.machine.failed(self.members[member], kind, "it failed", self.now)
            self._slow_is_better_than_nobody()

    def _slow_is_better_than_nobody(self):
        if not any(self.usable(i) for i in range(len(self.members))):
            for fact in self.facts:
                if set(fact.good) == {"slow"}:
                    fact.good.clear()

    @rule(key=st.sampled_from(KEYS[:2]))
    def use_key(self, key):
        self.current, self.from_level = key, 0
        self.machine.use_key(key, self.now)
        self._slow_is_better_than_nobody()

    @rule(member=st.integers(0, 6))
    def progress(self, member):
        if member < len(self.members):
            self.facts[member].failures.clear()
            self.machine.progressed(self.members[member])

    @rule(good=st.booleans(), times=st.integers(1, 5))
    def probe(self, good, times):
        """Probe whoever is due, as the keeper does."""
        for _ in range(times):
            for member in self.machine.probes_due(self.now):
                index = self.members.index(member)
                fact = self.facts[index]
                if fact.key is None:
                    continue
                if not fact.good:  # on standby
                    assert member not in self.machine.ready
                    if not good:
                        fact.good["down"] = 0
                        fact.failures["down"] = 0
                else:
                    assert all(RULES[kind].probed for kind in fact.good), "nobody probes what only a person mends"
                    for kind in list(fact.good):
                        fact.good[kind] = fact.good[kind] + 1 if good else 0
                        if fact.good[kind] >= GOOD_PROBES:
                            del fact.good[kind]
                            fact.failures[kind] = 0
                self.machine.probed(member, good, "" if good else "a bad probe", self.now)
                self._slow_is_better_than_nobody()
            self.now += self.members[0].interval

    @rule(passed=st.sampled_from([1, 1_000_000, SECOND, 60 * SECOND, 86_400 * SECOND, YEAR]))
    def time_passes(self, passed):
        self.now += passed
        self.machine.tick(self.now)

    @rule(member=st.integers(0, 6), on=st.booleans())
    def drain(self, member, on):
        if member < len(self.members):
            self.facts[member].drained = on
            self.machine.drain(self.members[member], on, "maintenance", self.now)
            self._slow_is_better_than_nobody()

    @rule(level=st.one_of(st.none(), st.integers(0, 2)))
    def force(self, level):
        if level is None or level < len(self.levels_):
            self.forced = level
            self.machine.force(level, "by hand", self.now)

    @rule(permitted=st.booleans(), spent=st.booleans())
    def restrict(self, permitted, spent):
        self.permitted, self.spent = permitted, spent
        self.machine.permit_emergency(permitted, "", self.now)
        self.machine.emergency_used_up(spent, "", self.now)
        self._slow_is_better_than_nobody()

    @rule(member=st.integers(0, 6), load=st.integers(0, 100))
    def load(self, member, load):
        if member < len(self.members):
            self.members[member].engine = Engine(load)

    # ---- what must hold ----

    def usable(self, index: int) -> bool:
        fact = self.facts[index]
        emergency = self.levels_[fact.level].name == EMERGENCY
        consented = self.levels_[fact.level].other_keys or self.current in (None, fact.key)
        return fact.trusted and consented and (not emergency or (self.permitted and not self.spent))

    @precondition(lambda self: hasattr(self, "machine"))
    @invariant()
    def who_signs_is_who_may(self):
        machine = self.machine
        assert [m.trusted for m in self.members] == [fact.trusted for fact in self.facts]
        order = sorted(range(len(self.levels_)), key=lambda level: (level != self.forced, level))
        able = [level for level in order if any(self.usable(i) for i, f in enumerate(self.facts) if f.level == level)]
        assert machine.active == (able[0] if able else None)
        picked = [machine.pick() for _ in range(5)]
        if not able:
            assert picked == [None] * 5
            return
        for member in picked:
            index = self.members.index(member)
            assert self.usable(index)
            level = self.levels_[member.level]
            assert level.other_keys or member.key == self.current, "a second key needs consent"
            assert member.key == machine.ready[0].key, "one key at a time"
        if all(m.weight == 256 for m in machine.ready):
            load = [m.engine.in_flight + m.engine.waiting for m in machine.ready]
            assert picked[0].engine.in_flight + picked[0].engine.waiting == min(load)
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


LevelsMachine.TestCase.settings = settings(max_examples=300, stateful_step_count=40, deadline=None)
TestLevels = LevelsMachine.TestCase
