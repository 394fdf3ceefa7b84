"""The second witness: what this host's audit log says was bound, against what the database still has.

A database can lose commits that it had acknowledged: a standby that lagged is promoted, an older copy is put in its
place. The audit log lies on another disk, and has each payload with a position that was signed, before the signature
was handed out. So each host compares its log with the database at the start, at each reconnection and when the database
is another one; what the database lacks opens an incident (incident.py), and is put back from the log.

A process that can write the log's files can append records. With a sealed store (stateSecret), each record of a bind
has a MAC, and a record without it does not count as a witness, except those that a checkpoint sealed before hsmcore
wrote such MACs.

The log is read from its end, until all that could have been lost was seen. A database loses a suffix of its commits, so
a row of this host that is there proves that all that this host bound before is there, too.
"""

from __future__ import annotations

import asyncio
import re
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, TypeVar

from sqlalchemy import Connection, bindparam, delete, insert, select

from hsmcore.audit import AuditLog
from hsmcore.audit.segment import SegmentError
from hsmcore.base.log import get_logger
from hsmcore.base.payload import MOST_POSITION
from hsmcore.config.policy import OWN
from hsmcore.errors import AuditUnavailable, BadArgument, FleetBehind
from hsmcore.recovery import incident
from hsmcore.recovery.hold import require_not_held
from hsmcore.recovery.incident import Standing, count, not_ours, word
from hsmcore.state import Store, StoreError, StoreNotGenuine, domains, positions
from hsmcore.state.exchange import Change, Question, one_by_one
from hsmcore.state.mark import Mark
from hsmcore.state.positions import BoundRow, Conflict
from hsmcore.state.schema import FLEET_FLOOR
from hsmcore.state.store import now_ns

T = TypeVar("T")

MOST_BYTES: Final = 256 << 20
"""Most bytes of the log's text that are read to answer: about two minutes at 4,000 signatures a second."""
LEAST: Final = 1024
"""Records that are compared at least, if there are so many."""
REMEMBERED: Final = 65_536
"""Positions that are kept in memory: those that were bound, and perhaps are not in the log yet."""
_SLACK_NS: Final = 1_000_000_000
"""How far the host's clock may have been set back between a bind and its record."""
_NEAR_NS: Final = 60_000_000_000
"""The longest time from a bind to its record. A record of another time is of a payload that was signed again, or the
clock was set in between: its row says nothing of those that were bound before the record."""
_MOST_OLD: Final = 1 << 18
"""Records without a MAC that are remembered until one that has a MAC is found before them."""
_GROUP: Final = 1000
_TRIES: Final = 8
_DIGEST: Final = re.compile(r"[0-9a-f]{64}\Z")
FLOORS: Final = Question(select(FLEET_FLOOR))
_FLOOR: Final = insert(FLEET_FLOOR)
_NO_FLOOR: Final = delete(FLEET_FLOOR).where(
    FLEET_FLOOR.c.host == bindparam("own"), FLEET_FLOOR.c.domain == bindparam("of")
)


class _Changed(Exception):
    """Another server answers than the one that was compared, or it went back since."""


@dataclass(slots=True)
class Compared:
    """`lacking`: what the database lacks or contradicts, newest first. `guarded`: those of which its watermark says
    that they were bound. `cut`: older records may lack too. `doubts`: those that there were before."""

    doubts: int = 0
    lacking: list[BoundRow] = field(default_factory=list)
    guarded: set[BoundRow] = field(default_factory=set)
    cut: bool = False
    looked: int = 0
    newest_own: int = 0
    """The latest time of a row that this host bound and the database has."""
    domains: dict[bytes, str] = field(default_factory=dict)
    """In which domain each key has bound last."""


class LoggedRows:
    """What the audit log says was bound: the rows of its records that are witnesses. `doubtful`: records without a MAC
    before which no record with one was found yet; if there is none, they are from before hsmcore wrote MACs, and those
    count that were under a checkpoint before this process opened the log."""

    def __init__(self, store: Store, log: AuditLog, host: str, most_bytes: int) -> None:
        self._store, self._host, self._sealed = store, host, log.sealed_before
        self._blocks = log.newest_ordered(most_bytes)
        self._rows: list[BoundRow] = []
        self.domains: dict[bytes, str] = {}
        """In which domain each key has bound last, as far as was read."""
        self.doubtful: list[tuple[int, BoundRow, bytes]] = []
        self.reached_ns = 0
        """The time of the oldest witness."""
        self.cut = self.ended = False
        """Whether older records were not read; whether the log was read as far as it is to be."""
        self._not_vouched, self._newest = 0, 0

    async def portion(self) -> list[BoundRow]:
        """Return the next rows, newest first: LEAST at least, until the log has `ended`. Raises AuditUnavailable."""
        while not self.ended:
            found = await _next(self._blocks)
            if found is None:
                self._end()
                self.ended = True
                break
            self.cut = not found
            for record in found:
                self._add(record)
            if self.cut or len(self._rows) >= LEAST:
                break
        rows, self._rows = self._rows, []
        return rows

    def tell(self) -> None:
        if self._not_vouched:
            told = {"records": self._not_vouched, "newest": self._newest}
            get_logger().error("records of the audit log are not vouched for: they count for nothing", **told)

    def _add(self, record: dict[str, Any]) -> None:
        domain, position, digest = record["domain"], record["position"], record.get("message_sha256")
        good = type(domain) is str and type(position) is int and 0 <= position <= MOST_POSITION
        if record["operation"] != "sign" or not good or type(digest) is not str or not _DIGEST.match(digest):
            return
        row = BoundRow(domain, position, digest, f"{self._host}:log#{record['seq']}", record["time_ns"])
        key = _key_of(record)
        if not self._store.attests(record.get("mac"), *row[:3]):
            self.doubtful.append((record["seq"], row, key))
            if len(self.doubtful) > _MOST_OLD:
                self._end()
            return
        for seq, *_ in self.doubtful:
            self._refuse(seq)
        self.doubtful.clear()
        self._take(row, key)

    def _end(self) -> None:
        """No older record has a MAC."""
        for seq, row, key in self.doubtful:
            if seq <= self._sealed:
                self._take(row, key)
            else:
                self._refuse(seq)
        self.doubtful.clear()

    def _take(self, row: BoundRow, key: bytes) -> None:
        self._rows.append(row)
        self.reached_ns = row.bound_ns
        domain, _, kind = row.domain.rpartition("/")
        if key and kind not in OWN:
            self.domains.setdefault(key, domain)

    def _refuse(self, seq: int) -> None:
        self._not_vouched, self._newest = self._not_vouched + 1, max(self._newest, seq)


class Witness:
    """One host's witness. Belongs to one event loop. `instance`: this process, as the rows of the fleet name it."""

    def __init__(self, store: Store, name: str, host: str, instance: str, log: AuditLog) -> None:
        self._store, self._name, self._host, self._instance, self._log = store, name, host, instance, log
        self._bound: OrderedDict[tuple[str, int], BoundRow] = OrderedDict()
        self._highest: dict[str, BoundRow] = {}
        self._one = asyncio.Lock()
        self._doubts, self._settled_at, self._incarnation = 0, -1, store.incarnation
        self._loss = ""

    def doubt(self) -> None:
        """Bind nothing until `attend` has returned. Any thread."""
        self._doubts += 1

    def connected(self) -> None:
        """For Store.on_connect: the server may be another one, or have begun again. One that runs on has lost nothing
        with the connection."""
        before, self._incarnation = self._incarnation, self._store.incarnation
        if before != self._incarnation:
            self.doubt()

    def lost(self, what: str) -> None:
        """The database was seen to have gone back, so each host is to say what it knows: open an incident. Any
        thread."""
        self._loss = what
        self.doubt()

    @property
    def settled(self) -> bool:
        """Whether the log was compared with the server that is connected: before, nothing is bound. Any thread."""
        return self._settled_at == self._doubts

    def bound(self, rows: Iterable[BoundRow]) -> None:
        """Remember what this process has bound, once that is committed. Any thread."""
        for row in rows:
            self._bound[row.domain, row.position] = row
            self._note_highest(row)
        while len(self._bound) > REMEMBERED:
            self._bound.popitem(last=False)

    def require_kept(self, domain: str, position: int, mark: Mark, row: Mapping[str, Any] | None) -> None:
        """Raise FleetBehind, and have the loss answered, where the database lacks what this process knows of a domain.
        `mark` and `row`: of the domain and of the position, as they are there. In the store's thread."""
        highest, mine = self._highest.get(domain), self._bound.get((domain, position))
        if highest is not None and max(mark.high, mark.floor) < highest.position:
            what = f"{domain} ends at {mark.high}, and was bound up to {highest.position}"
        elif mine is not None and position > mark.floor and (row is None or row["digest"] != mine.digest):
            what = f"position {position} of {domain} is missing, or bound to another payload"
        else:
            return
        self.lost(what)
        raise FleetBehind(f"the fleet's database went back: {what}")

    def require_server(self, settled_on: tuple[str, str], held: str = "") -> None:
        """Raise FleetBehind unless payloads with a position may be bound, as far as losses are concerned. `settled_on`:
        system and timeline of a row without an open incident, which the transaction of a bind has locked. `held`: as of
        that row."""
        require_not_held(held)
        incident.require_same(settled_on, self._store.identity)
        if not self.settled:
            raise FleetBehind("the audit log is being compared with the fleet's database")

    def before_claim(
        self, settled_on: tuple[str, str], identity: tuple[str, str], found: Sequence[Sequence[Any]]
    ) -> list[Change]:
        """Return what the transaction of a claim notes of what this host knows. `found`: the answer to FLOORS. Raises
        FleetBehind where the database that answers is another one than the fleet was settled on."""
        if settled_on != ("", ""):
            incident.require_same(settled_on, identity)
        return self._noted(found)

    async def attend(self) -> Standing:
        """Compare the log with the database; open an incident if something is missing or the database is another one;
        answer the incident that is open. Returns how it stands then. Raises StoreError, AuditUnavailable."""
        async with self._one:
            for _ in range(_TRIES):
                doubts, loss = self._doubts, self._loss
                known = (await self._run(self._standing, turn=False)).number
                await self._log.flush()
                compared = await self.compare(doubts)
                try:
                    now = await self._run(partial(self._begin, compared=compared, loss=loss))
                    if self._loss == loss:
                        self._loss = ""
                    if now.answered < now.number:
                        if now.number != known:
                            continue  # what was there when it was compared may be what is lost: compare behind it
                        await self._answer(now.number, compared)
                        now = await self._run(self._standing, turn=False)
                except (BadArgument, _Changed):
                    continue  # another incident was opened, or another server was compared
                self._settled_at = doubts
                if self.settled:
                    return now
            raise StoreError("the fleet's database changes faster than its incidents can be answered")

    async def standing(self) -> Standing:
        """Return how the last incident stands. Raises StoreError."""
        return await self._run(self._standing, turn=False)

    async def write_floors(self) -> None:
        """Write the highest positions that this host knows of: with each claim, at the end, and now and then."""
        await self._store.exchange([FLOORS], lambda answers: (None, self._noted(answers[0])), turn=False)

    def _noted(self, found: Sequence[Sequence[Any]]) -> list[Change]:
        rows = {row.domain: row for row in _floors(found) if row.holder == self._host}
        changes = []
        for domain, row in sorted(self._highest.items()):
            if domain not in rows or rows[domain].position < row.position:
                values = {"host": self._host, "domain": domain, "position": row.position, "digest": row.digest}
                changes += [Change(_NO_FLOOR, [{"own": self._host, "of": domain}]), Change(_FLOOR, [values])]
        return changes

    async def put_back(self, since_ns: int, most_bytes: int) -> tuple[int, list[Conflict], dict[str, int]]:
        """Without a fleet: put back what the store lacks of the log since a moment (0: of all). Returns how many rows,
        those that another digest keeps out, and the floors that were raised since the log was not read so far back."""
        compared = await self.compare(0, since_ns, most_bytes)
        added, conflicts = 0, list[Conflict]()
        async for some, others in self._put_all(compared.lacking):
            added, conflicts = added + some, conflicts + others
        lost = {domain: row.position for domain, row in self._highest.items()} if compared.cut else {}
        await self._run(lambda connection: domains.put_back(connection, compared.domains, now_ns(connection)))
        why = "an older store was put back, and the audit log was not read so far back"
        for domain, position in sorted(lost.items()):
            await self._run(partial(positions.raise_floor, domain=domain, floor=position, reason=why))
        return added, conflicts, lost

    async def _run(self, work: Callable[[Connection], T], *, turn: bool = True) -> T:
        # Without a turn, which takes several round trips, no host waits for what the others only read.
        def checked(connection: Connection) -> T:
            with positions.of_our_making("positions"):
                return work(connection)

        return await self._store.run(checked, turn=turn)

    def _standing(self, connection: Connection) -> Standing:
        return incident.standing(connection, self._name, self._host)

    def _note_highest(self, row: BoundRow) -> None:
        known = self._highest.get(row.domain)
        if known is None or known.position < row.position:
            self._highest[row.domain] = row

    async def compare(self, doubts: int = 0, since_ns: int | None = None, most_bytes: int = 0) -> Compared:
        """Compare log and database; changes nothing. `since_ns`: read back to that time, whatever agrees. Raises
        StoreError, AuditUnavailable."""
        compared = Compared(doubts)
        noted = await self._run(lambda connection: _floors(connection.execute(FLOORS.statement)), turn=False)
        remembered = [*noted, *self._highest.values(), *reversed(self._bound.values())]
        for begin in range(0, len(remembered), _GROUP):
            look = partial(self._look, compared=compared, rows=remembered[begin : begin + _GROUP])
            await self._run(look, turn=False)
        compared.looked = 0
        logged = LoggedRows(self._store, self._log, self._host, most_bytes or MOST_BYTES)
        while not logged.ended:
            lacked = len(compared.lacking)
            rows = await logged.portion()
            await self._run(partial(self._look, compared=compared, rows=rows), turn=False)
            reached = logged.reached_ns
            agrees = len(compared.lacking) == lacked and reached < compared.newest_own - _SLACK_NS
            known = agrees and compared.looked >= LEAST if since_ns is None else reached < since_ns - _SLACK_NS
            if known and not logged.doubtful and not logged.ended:
                break
        else:
            compared.cut = logged.cut
        logged.tell()
        compared.domains = logged.domains
        return compared

    def _look(self, connection: Connection, *, compared: Compared, rows: Sequence[BoundRow]) -> None:
        """Compare some rows. Rows first, then floors: a floor that is raised in between explains what is missing."""
        there, marks = positions.bound_of(connection, rows), positions.marks(connection, {row.domain for row in rows})
        for row in rows:
            self._note_highest(row)
            mark, found = marks.get(row.domain, Mark()), there.get((row.domain, row.position))
            compared.looked += 1
            if row.position <= mark.floor:
                continue
            if found is None or found["digest"] != row.digest or mark.high < row.position:
                compared.lacking.append(row)
                if found is None and mark.has(row.position):
                    compared.guarded.add(row)
                continue
            if not positions.is_genuine(self._store.vouch, found):
                where = f"position {row.position} of {row.domain}"
                raise StoreNotGenuine(f"the state store is not genuine: the row of {where} was changed")
            bound_ns = count(found["bound_ns"])
            if word(found["holder"]).startswith(f"{self._host}:") and abs(row.bound_ns - bound_ns) < _NEAR_NS:
                compared.newest_own = max(compared.newest_own, bound_ns)

    def _require_same(self, compared: Compared) -> None:
        """In a transaction: raise _Changed unless it is on the server that was compared, as it was then."""
        if compared.doubts != self._doubts:
            raise _Changed

    def _begin(self, connection: Connection, *, compared: Compared, loss: str) -> Standing:
        self._require_same(compared)
        now, identity = self._standing(connection), self._store.identity
        settled_on, moved = (now.system, now.timeline), False
        why = loss and f"the fleet's database went back: {loss}"
        if compared.lacking:
            row = compared.lacking[0]
            why = f"position {row.position} of {row.domain} is missing, or bound to another payload"
        elif not why and settled_on == ("", "") != identity and not now.number:
            incident.settle(connection, self._name, identity)
        elif moved := settled_on != identity and not now.held:
            why = f"the database is another one: timeline {identity[1]}, was {settled_on[1]}"
        if why:
            number = incident.begin(connection, self._name, self._host, why, identity, moved=moved)
            if number != now.number:
                get_logger().error("the fleet's database may have lost positions", incident=number, reason=why)
                self._log.note("fleet-incident", result="ok", incident=number, reason=why)
        return self._standing(connection) if why else now

    async def _answer(self, number: int, compared: Compared) -> None:
        added, conflicts = 0, 0
        async for some, contradicted in self._put_all(compared.lacking, number):
            added += some
            conflicts += len(contradicted)
            for row, digest, holder in contradicted:
                where: dict[str, Any] = {"domain": row.domain, "position": row.position, "holder": holder}
                get_logger().error("two payloads were bound to one position", **where, incident=number)
                self._log.note("fleet-conflict", result="error", incident=number, sha256=digest, **where)
        closed = await self._run(partial(self._say_answered, number=number, compared=compared))
        get_logger().warning("the fleet's incident is answered", incident=number, put_back=added, closed=closed)
        state = "closed" if closed else "open"
        self._log.note("fleet-answer", result="ok", incident=number, count=added, failures=conflicts, state=state)

    async def _put_all(
        self, lacking: Sequence[BoundRow], number: int | None = None
    ) -> AsyncIterator[tuple[int, list[Conflict]]]:
        """Put rows back, the oldest first: a newer row that is there says that the older ones are. Yields the result of
        one transaction after the other."""
        rows = lacking[::-1]
        for begin in range(0, len(rows), _GROUP):
            yield await self._run(partial(self._put_back, number=number, rows=rows[begin : begin + _GROUP]))

    def _put_back(
        self, connection: Connection, *, number: int | None, rows: Sequence[BoundRow]
    ) -> tuple[int, list[Conflict]]:
        """Put rows back, unless there is another incident than this `number` by now. A position of which the database
        says another digest is refused for ever: which of the two was handed out, or whether both were, cannot be told
        any more."""
        if number is not None and self._standing(connection).number != number:
            raise BadArgument("another incident was opened")
        added, conflicts = positions.put_back(connection, self._store.vouch, rows)
        for row, _, holder in sorted(conflicts):
            why = f"position {row.position} was bound to two payloads, by {row.holder} and {holder}"
            positions.raise_floor(connection, row.domain, row.position, why)
        return added, conflicts

    def _say_answered(self, connection: Connection, *, number: int, compared: Compared) -> bool:
        self._require_same(compared)
        if compared.cut and compared.lacking:
            why = f"older positions were lost, and the audit log of {self._host} was not read so far back"
            for domain in sorted({row.domain for row in compared.lacking}):
                positions.raise_floor(connection, domain, self._highest[domain].position, why)
        one_by_one([FLOORS], lambda answers: (None, self._noted(answers[0])))(connection)
        now = now_ns(connection)
        domains.put_back(connection, compared.domains, now)
        return incident.answer(connection, self._name, self._host, self._instance, number, now)


def _key_of(record: Mapping[str, Any]) -> bytes:
    try:
        return bytes.fromhex(record["public_key"])
    except (KeyError, TypeError, ValueError):
        return b""


async def _next(blocks: Iterator[list[dict[str, Any]]]) -> list[dict[str, Any]] | None:
    try:
        return await asyncio.get_running_loop().run_in_executor(None, next, blocks, None)
    except (OSError, SegmentError) as error:
        raise AuditUnavailable(f"the audit log cannot be read: {error}", call="read") from None


def _floors(found: Iterable[Sequence[Any]]) -> list[BoundRow]:
    """Return the rows that hosts have noted, by the answer to FLOORS. Raises StoreError for a text of other writers."""
    rows = []
    for host, domain, position, digest in found:
        if not _DIGEST.match(word(digest)):
            raise not_ours()
        rows.append(BoundRow(word(domain), count(position, MOST_POSITION), digest, word(host), 0))
    return rows
