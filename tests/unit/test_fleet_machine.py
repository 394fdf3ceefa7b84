"""The states of a fleet's hosts, driven together against one database, with clocks that do not agree, answers that are
late or lost, and processes that stop: never two leases at a time."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from sqlalchemy.dialects.postgresql import dialect
from tests.support.size import share

from hsmcore.fleet import rows
from hsmcore.fleet.machine import RESTS, EpochRow, Machine

TTL = 2_000_000_000
MS = 1_000_000
FIRST = "00000001"
"""A server's timeline before any promotion."""


@dataclass
class Asked:
    """A transaction: what it does, when it began by its host's clock, and its result once it is committed."""

    kind: str
    began: int
    instance: str = ""
    epoch: int = 0
    last: EpochRow = field(default_factory=EpochRow)
    """The row as its host knew it: what it writes is written only while the row is still the same."""
    mark: str = ""
    committed: bool = False
    row: EpochRow | None = None
    server: tuple[str, str] = ("", "")
    done: bool = False


@dataclass
class Host:
    """One process: its machine, its own clock, and the one transaction that it has under way."""

    machine: Machine
    offset: int
    rate: float
    asked: Asked | None = None
    server: tuple[str, str] = ("", "")

    def clock(self, real: int) -> int:
        return self.offset + int(real * self.rate)


class Fleet(RuleBasedStateMachine):
    """Time passes only in `wait`; a transaction begins, is committed, and is answered, each when the rules say so."""

    @initialize(
        clocks=st.lists(st.tuples(st.integers(0, 10**15), st.sampled_from([0.95, 1.0, 1.05])), min_size=2, max_size=3),
        ttl=st.sampled_from([200 * MS, TTL]),
    )
    def begin(self, clocks, ttl):
        self.real = 0
        self.row = EpochRow()
        self.server = ("4711", FIRST)
        self.latest = self.marks = 0
        self.adrift: list[Asked] = []
        self.hosts = [
            Host(Machine(f"host-{number}", ttl), offset, rate) for number, (offset, rate) in enumerate(clocks)
        ]
        self.ttl = ttl

    def host(self, number: int) -> Host:
        return self.hosts[number % len(self.hosts)]

    @rule(sixteenths=st.sampled_from([1, 4, 8, 12, 18]))
    def wait(self, sixteenths):
        self.real += self.ttl * sixteenths // 16

    @rule(number=st.integers(0, 2), kind=st.sampled_from(["look", "look", "renew", "claim"]))
    def act(self, number, kind):
        """A transaction that takes no time."""
        if self.host(number).asked is None:
            self.ask(number, kind)
            self.commit(number)
            self.answer(number, lost=False)

    @rule(number=st.integers(0, 2), kind=st.sampled_from(["renew", "claim"]), other=st.integers(0, 2))
    def act_slowly(self, number, kind, other):
        """A transaction whose answer takes half a life, and another host that sees it at once."""
        if self.host(number).asked is None and self.host(number) is not self.host(other):
            self.ask(number, kind)
            self.commit(number)
            self.act(other, "look")
            self.wait(8)
            self.answer(number, lost=False)

    @rule(number=st.integers(0, 2), kind=st.sampled_from(["look", "renew", "claim", "release"]))
    def ask(self, number, kind):
        host = self.host(number)
        if host.asked is not None or (kind in ("renew", "release") and not host.machine.epoch):
            return
        machine, now = host.machine, host.clock(self.real)
        host.asked = asked = Asked(kind, now, machine.instance, machine.epoch, machine.row)
        if kind == "claim":
            machine.claims()
            machine.answered(self.server, now)  # it has looked, and was answered
            host.server, asked.last = self.server, self.row
            if not self.is_settled or not machine.may_claim(self.row, now, self.server):
                asked.kind = "look"
        if asked.kind in ("renew", "claim"):
            self.marks += 1
            asked.mark = machine.marks(f"{self.marks}")
        if kind == "release":
            machine.gives_up("it was told to")

    @rule(number=st.integers(0, 2))
    def commit(self, number):
        host = self.host(number)
        asked = host.asked
        if asked is None or asked.committed:
            return
        self.write(asked)

    @rule(number=st.integers(0, 3))
    def drift(self, number):
        """What was given up is committed all the same."""
        if self.adrift:
            self.write(self.adrift.pop(number % len(self.adrift)))

    def write(self, asked):
        asked.committed = True
        me, row, last = asked.instance, self.row, asked.last
        mine = (row.epoch, row.holder, row.released) == (asked.epoch, me, False)
        if asked.kind == "renew" and mine and row.renewals == last.renewals:
            row, asked.done = row._replace(renewals=row.renewals + 1, renewed_by=asked.mark), True
        elif asked.kind == "release" and mine:
            row = row._replace(released=True)
        elif asked.kind == "claim" and row.age == last.age and row.incident == last.incident:
            row, asked.done = (
                EpochRow(row.epoch + 1, me, me, 0, False, row.incident, row.server, renewed_by=asked.mark),
                True,
            )
            if row.server == ("", ""):
                row = row._replace(server=self.server)
        self.row = asked.row = row
        asked.server = self.server
        self.latest = max(self.latest, row.epoch)

    @property
    def is_settled(self) -> bool:
        """Whether a loss that there was is seen as one: before, nobody claims."""
        return self.row.server in (self.server, ("", ""))

    @rule(number=st.integers(0, 2), lost=st.booleans())
    def answer(self, number, lost):
        host = self.host(number)
        asked, machine = host.asked, host.machine
        if asked is None:
            return
        host.asked = None
        now = host.clock(self.real)
        if lost or asked.row is None:
            machine.doubt("no answer")
            if not asked.committed:
                self.adrift.append(asked)
            return
        host.server = asked.server
        machine.answered(asked.server, now)
        if asked.mark:
            machine.is_marked()
        assert asked.done or not machine.is_copied(asked.row), "there is no copy"
        if asked.kind == "claim" and asked.done:
            machine.claimed(asked.row, asked.began, now)
        elif asked.kind == "renew" and asked.done:
            machine.renewed(asked.row, asked.began, now)
        else:
            machine.saw(asked.row, now)

    @rule(opens=st.booleans())
    def incident(self, opens):
        self.row = self.row._replace(incident=1 if opens else 0)

    @rule(number=st.integers(0, 2))
    def restart(self, number):
        """Killed, and begun again: a process of another name, which knows nothing."""
        host = self.host(number)
        host.machine = Machine(host.machine.instance + "'", self.ttl)
        host.asked = None

    @invariant()
    def one_lease_at_most(self):
        holding = [host for host in self.hosts if host.machine.holds(host.clock(self.real))]
        assert len(holding) <= 1, [host.machine.instance for host in holding]

    @invariant()
    def a_lease_goes_with_an_epoch(self):
        for host in self.hosts:
            machine = host.machine
            if machine.until:
                assert machine.epoch
            if machine.state == "holder":
                assert machine.epoch
                assert not machine.row.incident
            assert (machine.state in ("holder", "doubtful")) == bool(machine.epoch) or machine.state == "claiming"
            assert machine.epoch <= self.latest

    @invariant()
    def what_is_due_may_be_claimed(self):
        for host in self.hosts:
            free_at, now = host.machine.free_at(), host.clock(self.real)
            if free_at is not None and now >= free_at:
                assert host.machine.may_claim(host.machine.row, now, host.server)


class LosingFleet(Fleet):
    """Another server takes the place of the database, and has lost the latest changes of the row."""

    @initialize()
    def keep(self):
        self.kept = [EpochRow()]

    @rule(number=st.integers(0, 2))
    def commit(self, number):
        super().commit(number)
        if self.row != self.kept[-1]:
            self.kept.append(self.row)

    @rule(back=st.integers(0, 3))
    def lose(self, back):
        if self.row.epoch:
            del self.kept[max(len(self.kept) - back, 1) :]
            self.row = self.kept[-1]
            self.server = (self.server[0], f"{int(self.server[1], 16) + 1:08X}")

    @rule(number=st.integers(0, 2))
    def claim_and_lose(self, number):
        """An epoch is taken over from a host that does not renew it, and that is lost."""
        if self.host(number).asked is None:
            self.act(number, "look")
            self.wait(20)
            self.act(number, "claim")
            self.lose(1)

    @rule()
    def vouch(self):
        """An operator names the mark of the release that was the last one: nobody has claimed since."""
        if self.row.released and self.row.epoch == self.latest:
            self.row = self.row._replace(incident=0, server=self.server, vouched=True)
            self.kept[-1] = self.row

    @rule(number=st.integers(0, 2))
    def release_and_lose_and_vouch(self, number):
        if self.host(number).asked is None and self.host(number).machine.epoch:
            self.act(number, "release")
            self.lose(0)
            self.vouch()

    @rule(opens=st.booleans())
    def incident(self, opens):
        """Opened by whoever sees the loss first, it is closed when each process has been there."""
        if opens:
            vouched = self.row.vouched and self.row.server == self.server
            self.row = self.row._replace(incident=1, server=self.server, vouched=vouched)
        elif self.is_settled and all(host.server in (self.server, ("", "")) for host in self.hosts):
            self.row = self.row._replace(incident=0)
        self.kept[-1] = self.row

    @rule(number=st.integers(0, 2))
    def restart(self, number):
        super().restart(number)
        self.host(number).server = ("", "")


TestFleet = Fleet.TestCase
TestFleet.settings = settings(max_examples=share(200), stateful_step_count=50, deadline=None)
TestLosingFleet = LosingFleet.TestCase
TestLosingFleet.settings = settings(max_examples=share(80), stateful_step_count=50, deadline=None)


def test_a_promoted_server_may_have_lost_the_first_claim():
    for timeline, free_at in ((FIRST, 0), ("00000002", 5 + TTL + TTL // 10)):
        machine = Machine("me", TTL)
        machine.answered(("4711", timeline), 5)
        machine.saw(EpochRow(), 5)
        assert machine.free_at() == free_at
        assert machine.may_claim(EpochRow(), 6, ("4711", timeline)) == (free_at == 0)


def holder(ttl: int = TTL) -> Machine:
    machine = Machine("me", ttl)
    machine.saw(EpochRow(), 5)
    machine.claims()
    machine.claimed(EpochRow(1, "me", "host", 0, False), 10, 30)
    return machine


def test_a_lease_counts_from_before_its_renewal():
    machine = holder()
    assert (machine.state, machine.epoch, machine.until) == ("holder", 1, 10 + TTL - TTL // 10)
    machine.renewed(EpochRow(1, "me", "host", 1, False), 100, 900)
    assert machine.until == 100 + TTL - TTL // 10
    assert machine.holds(machine.until - 1)
    assert not machine.holds(machine.until)


def test_doubt_leaves_the_lease_and_a_renewal_ends_it():
    machine = holder()
    until = machine.until
    machine.doubt("no answer")
    assert (machine.state, machine.until) == ("doubtful", until)
    machine.renewed(EpochRow(1, "me", "host", 1, False), until + 1, until + 2)
    assert (machine.state, machine.reason) == ("holder", "")


def test_another_s_claim_ends_it_at_once():
    machine = holder()
    machine.renewed(EpochRow(2, "other", "elsewhere", 0, False), 100, 101)
    assert (machine.state, machine.epoch, machine.until) == ("follower", 0, 0)
    assert "other" in machine.reason


def test_an_open_incident_stops_positions_only():
    machine = holder()
    machine.renewed(EpochRow(1, "me", "host", 1, False, incident=4), 100, 101)
    assert machine.state == "doubtful"
    assert machine.until == 100 + TTL - TTL // 10
    machine.renewed(EpochRow(1, "me", "host", 2, False), 200, 201)
    assert machine.state == "holder"


def test_what_was_not_seen_for_long_enough_is_not_claimed():
    machine = Machine("me", TTL)
    assert machine.free_at() is None
    assert not machine.may_claim(EpochRow(3, "other", "x", 7, False), 10**12)
    machine.answered(("4711", "00000002"), 500)
    assert not machine.may_claim(EpochRow(), 10**12, ("4711", "00000002")), "of a row that it has never seen"
    machine = Machine("me", TTL)
    machine.saw(EpochRow(3, "other", "x", 7, False), 1000)
    due = 1000 + TTL + TTL // 10
    assert machine.free_at() == due
    assert not machine.may_claim(EpochRow(3, "other", "x", 7, False), due - 1)
    assert not machine.may_claim(EpochRow(3, "other", "x", 8, False), due)
    assert not machine.may_claim(EpochRow(4, "other", "x", 7, False), due)
    assert machine.may_claim(EpochRow(3, "other", "x", 7, False), due)
    machine.saw(EpochRow(3, "other", "x", 8, False), due)
    assert machine.free_at() == due + TTL + TTL // 10
    machine.saw(EpochRow(3, "other", "x", 8, True), due + 10)
    assert machine.free_at() == 0


@pytest.mark.parametrize("written", [True, False])
def test_a_claim_without_an_answer_is_read_again(written):
    machine = Machine("me", TTL)
    machine.saw(EpochRow(), 1)
    machine.claims()
    machine.doubt("no answer")
    assert machine.state == "claiming"
    found: Any = EpochRow(1, "me", "host", 0, False) if written else EpochRow()
    machine.saw(found, 2)
    assert (machine.state, machine.epoch, machine.until) == (("doubtful", 1, 0) if written else ("follower", 0, 0))


def test_a_claim_is_made_on_the_server_that_answered_last():
    """Another one may have been promoted since, without commits that this host has seen."""
    machine = Machine("me", TTL)
    machine.answered(("4711", FIRST), 1)
    machine.saw(EpochRow(), 1)
    assert machine.may_claim(EpochRow(), 2, ("4711", FIRST))
    assert not machine.may_claim(EpochRow(), 2, ("4711", "00000002"))
    assert not machine.may_claim(EpochRow(), 2)


def test_a_server_that_is_not_the_one_that_was_bound_on_last_frees_nothing_at_once():
    for bound, free_at in ((("4711", FIRST), 0), (("", ""), 0), (("4711", "00000003"), 7 + TTL + TTL // 10)):
        machine = Machine("me", TTL)
        machine.answered(("4711", FIRST), 7)
        machine.saw(EpochRow(1, "other", "x", 0, True, 0, bound), 7)
        assert machine.free_at() == free_at


def test_an_epoch_that_a_database_went_back_to_is_not_taken_up_again():
    """It was lost to another one, whose lease may go on although the database has forgotten it."""
    machine = holder()
    mine = machine.row
    machine.saw(EpochRow(2, "other", "elsewhere", 7, False), 100)
    machine.saw(mine, 200)
    assert (machine.state, machine.epoch) == ("follower", 0)
    due = 200 + TTL + TTL // 10
    assert machine.free_at() == due
    assert not machine.may_claim(mine, due - 1)
    assert machine.may_claim(mine, due)


@pytest.mark.parametrize("late", [0, 5])
def test_a_lease_that_was_over_does_not_go_on_at_once_on_another_server(late):
    """Another host may have claimed meanwhile, which the server that was promoted does not know."""
    machine = holder()
    lapsed, due = machine.until, machine.until + late + TTL + TTL // 10
    machine.answered(("4711", "1"), 40)
    machine.answered(("4711", "2"), lapsed + late)
    machine.renewed(
        EpochRow(1, "me", "host", 1, False), lapsed - 1, lapsed + late
    )  # it began in time, and was not there
    assert (machine.state, machine.until, "forgotten" in machine.reason) == ("holder", lapsed, True)
    machine.renewed(EpochRow(1, "me", "host", 2, False), due - 1, due)
    assert not machine.holds(due)
    machine.renewed(EpochRow(1, "me", "host", 3, False), due, due + 1)
    assert (machine.holds(due + 1), machine.reason) == (True, "")


def test_a_lease_that_goes_on_goes_on_on_another_server():
    machine = holder()
    machine.answered(("4711", "1"), 40)
    machine.answered(("4711", "2"), 50)
    machine.renewed(EpochRow(1, "me", "host", 1, False), 45, 50)
    assert machine.until == 45 + TTL - TTL // 10


@pytest.mark.parametrize("settled_on", [("4711", "1"), ("4711", "2")])
def test_a_process_that_begins_in_an_incident_waits_for_a_lease_that_may_be_forgotten(settled_on):
    machine = Machine("me", TTL)
    machine.answered(("4711", "2"), 100)
    free = EpochRow(3, "other", "x", 7, True, 0 if settled_on[1] == "1" else 5, settled_on)
    machine.saw(free, 100)
    assert machine.free_at() == 100 + TTL + TTL // 10
    assert not machine.may_claim(free, 100 + TTL, ("4711", "2"))


def test_an_operator_who_names_the_last_release_frees_the_epoch_on_another_server():
    one, other = ("4711", FIRST), ("4711", "00000002")
    free = EpochRow(3, "other", "x", 7, True, 0, one)
    machine = Machine("me", TTL)
    machine.answered(one, 100)
    machine.saw(free, 100)
    machine.answered(other, 200)
    machine.saw(free._replace(incident=1, server=other), 200)
    assert machine.free_at() == 200 + TTL + TTL // 10
    named = free._replace(server=other, vouched=True)
    machine.saw(named, 300)
    assert machine.free_at() == 0
    assert machine.may_claim(named, 300, other)
    machine.answered(("4711", "00000003"), 400)
    machine.saw(named, 400)
    assert machine.free_at() == 400 + TTL + TTL // 10, "named on another server"


def test_what_went_back_is_freed_by_no_operator_s_word():
    machine = Machine("me", TTL)
    machine.answered(("4711", FIRST), 100)
    named = EpochRow(3, "other", "x", 7, True, 0, ("4711", FIRST), vouched=True)
    machine.saw(EpochRow(4, "other", "x", 0, False, 0, ("4711", FIRST)), 100)
    for at in (200, 300):
        machine.saw(named, at)
        assert machine.free_at() == 200 + TTL + TTL // 10


def test_what_went_back_to_nobody_s_is_not_free_at_once():
    machine = Machine("me", TTL)
    machine.saw(EpochRow(2, "other", "elsewhere", 7, False), 100)
    assert not machine.may_claim(EpochRow(1, "third", "x", 9, True), 10**12)  # in the transaction that finds it
    machine.saw(EpochRow(1, "third", "x", 9, True), 200)
    assert machine.free_at() == 200 + TTL + TTL // 10


def test_an_epoch_that_was_given_up_is_not_taken_up_again():
    machine = holder()
    machine.gives_up("released")  # and the release is lost
    machine.saw(machine.row, 100)
    machine.renewed(machine.row, 200, 300)
    assert (machine.state, machine.epoch, machine.until) == ("follower", 0, 0)


@pytest.mark.parametrize("beside", [False, True])
def test_a_release_leaves_the_next_epoch_to_others_for_a_time_or_one_claim(beside):
    """`beside`: it was released without this process."""
    machine = holder()
    assert not machine.rests(100)
    released = machine.row._replace(released=True)
    if not beside:
        machine.releases("a test", 100)
        assert (machine.state, machine.until, machine.reason) == ("follower", 0, "a test")
    machine.saw(released, 100)
    assert (machine.rests(100 + RESTS * TTL - 1), machine.rests(100 + RESTS * TTL)) == (True, False)
    machine.saw(EpochRow(2, "other", "elsewhere", 0, False), 200)
    assert not machine.rests(200)
    machine.saw(released, 300)
    machine.wakes()
    assert not machine.rests(300)


def test_the_margin_of_a_short_lease():
    assert Machine("me", 200 * MS).margin == 50 * MS


def test_a_look_that_fails_is_news_once_and_ends_no_lease():
    machine = Machine("me", TTL)
    assert [machine.fails("unreachable"), machine.fails("unreachable"), machine.fails("refused")] == [True, False, True]
    machine.looked()
    assert machine.reason == ""
    machine.gives_up("released")
    machine.looked()
    assert machine.reason == "released"  # which is no trouble of a look
    machine = holder()
    assert not machine.fails("unreachable")
    assert (machine.state, machine.reason, machine.holds(30)) == ("doubtful", "unreachable", True)


def test_why_an_epoch_is_doubtful_or_lost_is_said():
    machine = Machine("me", TTL)
    machine.saw(EpochRow(), 1)
    machine.claims()
    machine.saw(EpochRow(1, "me", "host", 0, False), 2)
    assert (machine.state, machine.reason) == ("doubtful", "the answer to its claim was lost")
    for row, whose in (
        (EpochRow(2, "other", "elsewhere", 0, False), "epoch 2 is other's"),
        (EpochRow(2, "me", "host", 0, False), "epoch 2 is me's"),
        (EpochRow(1, "me", "host", 0, True), "epoch 1 is nobody's"),
    ):
        machine = holder()
        machine.saw(row, 50)
        assert (machine.state, machine.epoch, machine.reason) == ("follower", 0, whose)
        assert machine.rests(51) == (whose == "epoch 1 is nobody's")
    machine = holder()
    machine.saw(EpochRow(2, "other", "elsewhere", 0, True), 50)
    assert (machine.reason, machine.rests(51)) == ("epoch 2 is nobody's", False)
    machine = Machine("me", TTL)
    machine.saw(EpochRow(), 1)
    machine.saw(EpochRow(1, "other", "elsewhere", 0, False), 1)
    assert machine.reason == ""
    machine.claims()
    machine.saw(EpochRow(1, "other", "elsewhere", 0, False), 2)
    assert (machine.state, machine.reason) == ("follower", "its claim was not written")
    machine.saw(EpochRow(1, "other", "elsewhere", 1, False, incident=3), 3)
    assert (machine.state, machine.reason) == ("follower", "its claim was not written")


def test_a_row_is_held_by_one_process_at_its_epoch():
    row = EpochRow(3, "me", "host", 0, False)
    assert row.is_held_by("me", 3)
    assert not any([row.is_held_by("me", 2), row.is_held_by("you", 3), row._replace(released=True).is_held_by("me", 3)])


def test_a_renewal_whose_answer_was_lost_is_known_by_its_mark():
    machine, row = holder(), EpochRow(1, "me", "host", 0, False)
    mark = machine.marks("first")
    assert machine.marks("second") == mark, "as long as none is answered, any of them may have been done"
    machine.is_marked()
    found = row._replace(renewals=1, renewed_by=mark)
    assert not machine.is_copied(found)
    machine.saw(found, 60)
    assert (machine.state, machine.row.renewals, machine.until) == ("holder", 1, holder().until), "and is no lease"
    assert machine.marks("third") == "third"


def test_a_copy_that_renews_is_found_out():
    """Both have the same memory. The one whose renewal comes second learns of it, also if it would make the same mark;
    and so does one that has not tried."""
    for marks in (("first", "second"), ("same", "same")):
        first, second = holder(), holder()
        mark = first.marks(marks[0])
        first.is_marked()
        row = EpochRow(1, "me", "host", 1, False, renewed_by=mark)
        first.renewed(row, 100, 110)
        assert second.is_copied(row)
        second.marks(marks[1])
        second.is_marked()  # it was answered: nothing was renewed
        assert second.is_copied(row)
        assert not first.is_copied(row)


def test_a_row_that_the_database_went_back_to_is_no_copy_s():
    machine = holder()
    for renewals in (1, 2):
        mark = machine.marks(f"{renewals}")
        machine.is_marked()
        machine.renewed(EpochRow(1, "me", "host", renewals, False, renewed_by=mark), 100, 110)
    earlier = EpochRow(1, "me", "host", 1, False, renewed_by="1")
    assert not machine.is_copied(earlier)
    machine.saw(earlier, 120)
    assert not machine.is_copied(earlier)


@pytest.mark.parametrize(("is_open", "owed"), [(0, 7), (1, 0)])
def test_a_new_host_belongs_to_the_fleet_and_answers_an_incident_that_is_open(is_open, owed):
    seen = rows.seen([(1, "", "", 0, 1, "", "", 7, None, None, None, is_open, *[None] * 7)])
    change = rows.enter(seen, "host", "me")
    assert change.values == [{"name": "host", "incident": owed, "instance": "me", "state": "follower"}]
    made = change.statement.compile(dialect=dialect(), column_keys=list(change.values[0])).params
    assert (made["retired"], made["note"]) == (0, "")


def test_a_host_that_has_not_answered_all_stays_retired():
    """One that has belongs to the fleet again; the database compares."""
    seen = rows.Seen(EpochRow(number=7), "retired", 5)
    change = rows.enter(seen, "host", "me")
    assert change.values == [
        {"own": "host", "before": "retired", "last": 5, "number": 7, "instance": "me", "state": "follower"}
    ]
    text = str(change.statement.compile(dialect=dialect(), column_keys=list(change.values[0])))
    assert "retired=CASE WHEN (fleet_host.incident < %(number)s" in text
