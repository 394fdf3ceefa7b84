"""The states of one host of a fleet: whether it holds the epoch, until when it may hand out, when it may take over.

    follower -> claiming -> holder <-> doubtful, and from each of them back to follower

Times are nanoseconds of this host's CLOCK_BOOTTIME and always passed in; nothing here waits, reads a clock or knows a
database. A lease counts from before its renewal began, and its end is awaited from after the renewal was seen: so the
clocks of two hosts need not agree, they only must not run apart by more than the margins.
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

State = Literal["follower", "claiming", "holder", "doubtful"]

LEAST_MARGIN: Final = 50_000_000
RESTS: Final = 4
"""Lives of a lease for which a host that has released the epoch leaves the next one to the others."""
NOWHERE: Final = "", ""
"""No server: of a file, and of a fleet in which nobody has claimed yet."""
NEVER_PROMOTED: Final = "", "00000001"
"""Timelines, as the names of WAL files have them, on which no promotion can have lost a fleet's first claim: that of a
file, and that of a server that was never promoted."""


class EpochRow(NamedTuple):
    """What the database says of the epoch. `holder`: the process that claimed it last; `incident`: the number of a loss
    that not every host has answered yet, or 0."""

    epoch: int = 0
    holder: str = ""
    host: str = ""
    renewals: int = 0
    released: bool = True
    incident: int = 0
    server: tuple[str, str] = NOWHERE
    """System and timeline of the database that positions were bound on last."""
    held: str = ""
    """Why an operator has nothing bound for now, or ""."""
    renewed_by: str = ""
    """A random text of the last renewal or claim."""
    number: int = 0
    """Of the last incident, which may be answered."""
    vouched: bool = False
    """Whether an operator has said, on this server, that nobody has claimed since this epoch was released."""

    @property
    def age(self) -> tuple[int, int, bool]:
        """What only goes forward, as long as the database loses nothing."""
        return self.epoch, self.renewals, self.released

    @property
    def is_free(self) -> bool:
        """Whether nobody holds the epoch."""
        return self.released or not self.holder

    def is_held_by(self, instance: str, epoch: int) -> bool:
        """Whether a process holds this epoch."""
        return (self.epoch, self.holder, self.released) == (epoch, instance, False)


class Machine:
    """`instance` names this process in the fleet. `ttl` in nanoseconds."""

    def __init__(self, instance: str, ttl: int) -> None:
        self.instance = instance
        self.ttl = ttl
        self.margin = max(ttl // 10, LEAST_MARGIN)
        self.state: State = "follower"
        self.epoch = 0
        """The epoch that this process holds, or 0."""
        self.row = EpochRow()
        """What was seen last."""
        self.until = 0
        """When the lease is over."""
        self.reason = ""
        """Why it is doubtful, was lost, or is not followed."""
        self._trouble = ""
        """Why the last look of a follower failed."""
        self._seen_at = -1
        """When the present renewal was seen first."""
        self._server = NOWHERE
        """System and timeline of the server that answered last."""
        self._lost_at = -1
        """When the row was last seen to have gone back, another server to answer, or a loss to be unanswered: a holder
        that the database forgot may have a lease since then."""
        self._mark = ""
        """Of the renewal or claim that was sent last."""
        self._unanswered = self._lost = False
        """Whether that has no answer; and whether one before it with the same mark had none."""
        self._rest: tuple[int, int] | None = None
        """The epoch that was released on somebody's word, and when."""

    def answered(self, server: tuple[str, str], now: int) -> None:
        """A server has answered; before what it said is passed on."""
        if self._server not in (NOWHERE, server):
            self._lost_at = now
        self._server = server

    def saw(self, row: EpochRow, now: int) -> None:
        """The row was read; the answer was there at `now`."""
        known = row.server == self._server or (row.server == NOWHERE and self._server[1] in NEVER_PROMOTED)
        if self._seen_at < 0 and (row.incident or not known):
            self._lost_at = now  # nobody knows how long ago, and not every holder knows it yet
        if self._seen_at < 0 or self._life(row) != self._life(self.row):
            self._seen_at = now
        if self.went_back(row):
            self._lost_at = now
        elif row.vouched and row.released and row.server == self._server and not (row.incident or self.row.vouched):
            self._lost_at = -1
        newer = row.epoch > self.row.epoch
        self.row = row
        mine = row.holder == self.instance and not row.released
        if self.epoch and not (mine and row.epoch == self.epoch):
            holder = "nobody" if row.is_free else row.holder
            if row.released and row.holder == self.instance:
                self._rest = row.epoch, now
            self._lose(f"epoch {row.epoch} is {holder}'s")
        elif mine and newer and not self.epoch:  # a claim of which no answer came was written all the same
            self.epoch, self.state = row.epoch, "doubtful"
            self.reason = "the answer to its claim was lost"
        elif self.state == "claiming" and not self.epoch:
            self._lose("its claim was not written")
        if row.incident:
            self.doubt(f"incident {row.incident} is open")

    def marks(self, fresh: str) -> str:
        """A renewal or a claim is about to be sent: return its mark. As long as none is answered, all have the same
        one: it may be an earlier one of them that the server has done."""
        self._lost = self._unanswered
        if not self._unanswered:
            self._mark = fresh
        self._unanswered = True
        return self._mark

    def is_marked(self, *, again: bool = False) -> None:
        """The answer is there, whatever it says. `again`: it was sent twice."""
        self._unanswered, self._lost = False, self._lost or again

    def is_copied(self, row: EpochRow) -> bool:
        """Whether a copy of this process, with its memory and its name, has renewed or claimed the epoch, by a row that
        was read, before it is passed on. A renewal is done once for each count; so even a copy that has the same marks
        is found out by one of the next."""
        mine = row.holder == self.instance and not row.released and not self.went_back(row)
        sent = self._mark if self._unanswered or self._lost else self.row.renewed_by
        return mine and row.renewed_by not in (self.row.renewed_by, sent)

    def went_back(self, row: EpochRow, before: EpochRow | None = None) -> bool:
        """Whether the row is older than the one `before`, by default the one that was seen last: the database has lost
        commits."""
        before = self.row if before is None else before
        if self._seen_at < 0:
            return (row.epoch, row.released) < (before.epoch, before.released)
        return row.age < before.age

    def free_at(self) -> int | None:
        """When the epoch may be claimed, if the holder does not renew it; None: nothing was seen yet."""
        if self._seen_at < 0:
            return None
        if not self.row.is_free and self.row.holder != self.instance:
            return self._seen_at + self.ttl + self.margin
        return 0 if self._lost_at < 0 else self._lost_at + self.ttl + self.margin

    def _may_be_leased(self, at: int) -> bool:
        """Whether a holder that the database has forgotten may have a lease."""
        return self._lost_at >= 0 and at < self._lost_at + self.ttl + self.margin

    def may_claim(self, row: EpochRow, began: int, server: tuple[str, str] = NOWHERE) -> bool:
        """Whether the epoch may be claimed in a transaction that began at `began` and has locked this row, on this
        server."""
        if self._seen_at < 0 or self.went_back(row) or server != self._server:
            return False
        if row.is_free or row.holder == self.instance:
            return not self._may_be_leased(began)
        free_at = self.free_at()
        return free_at is not None and self._life(row) == self._life(self.row) and began >= free_at

    def claims(self) -> None:
        """A claim is under way."""
        self.state, self.reason = "claiming", ""

    def claimed(self, row: EpochRow, began: int, now: int) -> None:
        """The claim that began at `began` is durable: the row as it is since then."""
        self.epoch = row.epoch
        self.saw(row, now)
        self.renewed(row, began, now)

    def renewed(self, row: EpochRow, began: int, now: int) -> None:
        """A renewal that began at `began` is durable: the row as it is since then."""
        self.saw(row, now)
        if not self.epoch:
            return
        # As long as its lease went on, no other host has claimed; afterwards, one may have that nobody remembers.
        waits = now >= self.until and self._may_be_leased(began)
        if not waits:
            self.until = max(self.until, began + self.ttl - self.margin)
        if not row.incident:
            self.state = "holder"
            self.reason = "a host that the database has forgotten may have a lease" if waits else ""

    def doubt(self, reason: str) -> None:
        """A renewal has no answer, the database is another one, or an incident is open. The lease goes on to its
        end."""
        if self.epoch:
            self.state, self.reason = "doubtful", reason

    def fails(self, reason: str) -> bool:
        """A look or a renewal has failed. Returns whether that is news of a follower."""
        self.doubt(reason)
        if self.epoch or self.reason == reason:
            return False
        self.reason = self._trouble = reason
        return True

    def looked(self) -> None:
        """A look has an answer: a follower's trouble is over."""
        self.reason = "" if self.reason == self._trouble else self.reason

    def gives_up(self, reason: str) -> None:
        """The epoch is about to be released, or another process speaks for this host: nothing is handed out any
        more."""
        self._lose(reason)

    def releases(self, reason: str, now: int) -> None:
        """The epoch is about to be released on somebody's word: as `gives_up`, and another host may have the next
        one."""
        self._rest = self.epoch, now
        self._lose(reason)

    def rests(self, now: int) -> bool:
        """Whether the next epoch is left to the others: until one of them has claimed, or RESTS lives have passed."""
        return self._rest is not None and self.row.epoch <= self._rest[0] and now < self._rest[1] + RESTS * self.ttl

    def wakes(self) -> None:
        """Leave the next epoch to nobody any more."""
        self._rest = None

    def why(self, row: EpochRow) -> str:
        """Return why this process may not sign, by the row."""
        if row.is_free:
            return "nobody holds the epoch"
        if row.holder != self.instance:
            return f"epoch {row.epoch} is held by {row.holder}"
        return self.reason or "its renewal is late"

    def holds(self, now: int) -> bool:
        """Whether the lease is confirmed."""
        return now < self.until

    def _lose(self, reason: str) -> None:
        self.state, self.epoch, self.until, self.reason = "follower", 0, 0, reason

    @staticmethod
    def _life(row: EpochRow) -> tuple[int, str, int, bool]:
        return row.epoch, row.holder, row.renewals, row.released
