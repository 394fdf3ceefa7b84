"""Which members may sign, by the facts alone: the reference that the levels' state machine is compared with.

It keeps no level, weight or queue; after each event it works out again which members are trusted and which may sign.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from hsmcore.failover.breaker import RULES
from hsmcore.failover.levels import EMERGENCY, Level, Levels

GOOD_PROBES = 3  # as required
ALWAYS_OUT = {"wrong", "key", "auth", "fatal"}  # also in literal mode


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


class Reference:
    """Told of whatever the state machine is told, in the same words; members by number."""

    def __init__(self, levels: Sequence[Level], places: Sequence[int], mode: str = "smart") -> None:
        self.levels = levels
        self.facts = [Fact(place) for place in places]
        self.mode = mode
        self.current: bytes | None = None
        self.from_level = 0
        self.forced: int | None = None
        self.permitted, self.spent, self.fault = True, False, ""

    # ---- what happens ----

    def started(self, number: int, key: bytes) -> None:
        fact = self.facts[number]
        level = self.levels[fact.level]
        fact.key = key
        above = fact.level < self.from_level and self.levels[self.from_level].other_keys
        if level.name != EMERGENCY and (self.current is None or above):
            self.current, self.from_level = key, fact.level
        if not level.other_keys and self.current not in (None, key):
            fact.good["key"] = 0
        self.settle()

    def stopped(self, number: int) -> None:
        self.facts[number].key = None
        self.settle()

    def use_key(self, key: bytes) -> None:
        self.current, self.from_level = key, 0
        self.settle()

    def failed(self, number: int, kind: str, *, others: bool) -> None:
        """`others`: whether another member signs with the same key now."""
        if (self.mode == "literal" and kind not in ALWAYS_OUT) or (kind == "slow" and not others):
            return
        fact = self.facts[number]
        if kind in fact.good:
            fact.good[kind] = 0
        else:
            fact.failures[kind] = fact.failures.get(kind, 0) + 1
            if fact.failures[kind] >= RULES[kind].threshold:
                self._open(fact, kind)
        self.settle()

    def stalled(self, number: int) -> None:
        if self.mode != "literal" and self.facts[number].trusted:
            self._open(self.facts[number], "late")
            self.settle()

    def given_up(self, level: int) -> None:
        for fact in self.facts:
            if fact.level == level and fact.trusted:
                self._open(fact, "down")
        self.settle()

    def probed(self, number: int, good: bool, kind: str = "down") -> None:
        fact = self.facts[number]
        if not fact.good:
            if not good:
                self.failed(number, kind, others=True)
            return
        for open_ in list(fact.good):
            if not RULES[open_].probed:
                continue
            fact.good[open_] = fact.good[open_] + 1 if good else 0
            if fact.good[open_] >= GOOD_PROBES:
                del fact.good[open_]
                fact.failures[open_] = 0
        self.settle()

    def progressed(self, number: int) -> None:
        self.facts[number].failures.clear()

    def readmit(self, number: int) -> None:
        fact = self.facts[number]
        if fact.good:
            fact.good = {"down": 0}
            fact.failures.clear()
            self.settle()

    def drain(self, number: int, on: bool) -> None:
        self.facts[number].drained = on
        self.settle()

    def restrict(self, *, permitted: bool, spent: bool, fault: str = "") -> None:
        self.permitted, self.spent, self.fault = permitted, spent, fault
        self.settle()

    def _open(self, fact: Fact, kind: str) -> None:
        fact.good[kind] = 0
        fact.failures[kind] = 0

    def settle(self) -> None:
        """A slow member is better than none."""
        if not any(self.usable(number) for number in range(len(self.facts))):
            for fact in self.facts:
                if set(fact.good) == {"slow"}:
                    fact.good.clear()

    # ---- what follows ----

    def usable(self, number: int) -> bool:
        fact = self.facts[number]
        emergency = self.levels[fact.level].name == EMERGENCY
        consented = self.levels[fact.level].other_keys or self.current in (None, fact.key)
        allowed = self.permitted and not self.spent and not self.fault
        return fact.trusted and consented and (not emergency or allowed)

    @property
    def active(self) -> int | None:
        """The level that signs."""
        order = sorted(range(len(self.levels)), key=lambda level: (level != self.forced, level))
        usable = {fact.level for number, fact in enumerate(self.facts) if self.usable(number)}
        return next((level for level in order if level in usable), None)

    def differences(self, machine: Levels[Any]) -> list[str]:
        """Where the state machine says something else, and where it breaks a rule."""
        found = []
        trusted = [member.trusted for member in machine.members]
        if trusted != [fact.trusted for fact in self.facts]:
            found.append(f"trusted: {trusted} instead of {[fact.trusted for fact in self.facts]}")
        if machine.active != self.active:
            found.append(f"level {machine.active} is active instead of {self.active}")
        if bool(machine.ready) != (self.active is not None):
            found.append(f"{len(machine.ready)} are ready in level {self.active}")
        for member in machine.ready:
            number = machine.members.index(member)
            if not self.usable(number):
                found.append(f"{member.name} signs and may not")
            if member.key != self.current and not self.levels[member.level].other_keys:
                found.append(f"{member.name} signs with a second key without consent")
            if member.key != machine.ready[0].key:
                found.append("two keys at a time")
        return found
