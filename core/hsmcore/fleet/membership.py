"""This host in its fleet: it claims the epoch, renews its lease, and says what may be signed and handed out.

Two things keep a host that lost the epoch from harm. `fence` stands in each transaction that binds a position: it reads
the epoch there, so no clock matters. `lease` stands before each hand-out; it believes that the clocks of two hosts do
not run apart by more than a tenth (machine.py has the times), and is renewed on a connection of its own.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, Self

from hsmcore._native import Lease
from hsmcore.audit import AuditLog
from hsmcore.base.log import get_logger
from hsmcore.base.receipt import Unfinished
from hsmcore.base.scope import Scope
from hsmcore.base.steady import boottime
from hsmcore.config.fleet import Fleet
from hsmcore.errors import BadArgument, FleetBehind, HsmError, NotHolder, error_of
from hsmcore.fleet import rows
from hsmcore.fleet.confirmations import Confirmations
from hsmcore.fleet.duties import Duties
from hsmcore.fleet.entry import LOOKS, RENEWALS, SECOND, Tell, enter, position_of
from hsmcore.fleet.gate import ClaimGate
from hsmcore.fleet.line import HostLine
from hsmcore.fleet.machine import EpochRow, Machine, State
from hsmcore.fleet.placement import Placement
from hsmcore.recovery.witness import FLOORS, Witness
from hsmcore.state import DomainMismatch, Store, positions
from hsmcore.state.domains import ASK, NO_KEYS
from hsmcore.state.exchange import Question
from hsmcore.state.mark import Mark
from hsmcore.state.seal import SealSecret

_PATIENCE_NS: Final = SECOND // 2
"""Between two looks of a host that waits, unless a lease is very long, or near its end."""
_CLAIM_SECONDS: Final = 1.5
"""The least time for a claim: it waits for binds, of which the server ends one that is idle for a second."""
_GOODBYE_SECONDS: Final = 1.5
"""The longest time for telling the fleet that this host closes."""


class Membership:
    """One process of a fleet. Belongs to the event loop that opens it, but for `fence`."""

    def __init__(self, rules: Fleet, store: Store) -> None:
        self.name, self.host, self.unordered = rules.name, rules.host, rules.unordered
        self.lease = Lease()
        """Until when signatures may be handed out."""
        self.claims = self.renewals_failed = 0
        self.binder = NO_KEYS
        """Of the keys that sign: no epoch is claimed while they must not bind."""
        self.unfinished: Callable[[str], Awaitable[Unfinished | None]]
        """As KeyManager.unfinished."""
        self.drained = False
        """Whether this host claims no epoch by itself, on an operator's word."""
        self._rules, self._store = rules, store
        instance = f"{self.host}:{os.getpid()}:{secrets.token_hex(4)}"
        self._machine = Machine(instance, rules.ttl_ms * 1_000_000)
        self._line = HostLine(store.asking(), self.name, self.host, self._machine, self._compare)
        self._witness: Witness | None = None
        self._gate, self._placement = ClaimGate(self._machine.ttl), Placement(rules)
        self._acting, self._wake, self._scope = asyncio.Lock(), asyncio.Event(), Scope()
        asks, leads = self.unordered == "strict", lambda: self._machine.epoch != 0
        self._confirmations = Confirmations(self.lease, self._confirm, leads) if asks else None
        self._renewed_at, self._before = 0, self._machine.row
        """The row that was known when the last bind began."""
        self._tell: Tell = lambda *_, **__: None
        self._told: tuple[State, int] = ("follower", 0)

    @classmethod
    async def open(cls, rules: Fleet, state_secret: SealSecret | None = None, where: str = "$.keyManager") -> Self:
        """Enter the fleet. A process that was killed lately and had this host's name is waited for. Raises StoreError;
        ConfigurationError for a name that another live process has, and for a lease shorter than the database takes to
        answer."""
        store = await Store.open(rules, state_secret)
        membership = cls(rules, store)
        try:
            await enter(membership._line.asking, rules, membership._machine, f"{where}.fleet")
        except BaseException:
            await membership._line.asking.close()
            await store.close()
            raise
        return membership

    async def watch_over(self, log: AuditLog) -> None:
        """Before `begin`: compare the database with this host's audit log, and follow operators' orders."""
        self._witness = Witness(self._store, self.name, self.host, self._machine.instance, log)
        self._line.duties = Duties(self, self._store, self._witness, self._rules.ttl_ms)
        await self._line.duties.begin()

    def begin(self, tell: Tell) -> None:
        """The members can sign: follow the epoch, claim it if that is to be done, renew it."""
        self._tell = tell
        self._scope.every(self._line.limit, self._look, "the fleet's database is not understood", wake=self._wake)

    async def close(self) -> None:
        """Give the epoch up, and leave. Idempotent."""
        if self._line.closes:
            return
        self._line.closes = True
        await self._scope.close()
        try:
            async with asyncio.timeout(_GOODBYE_SECONDS):
                if self._machine.state == "claiming":
                    await self._see()  # it may have been written
                if self._machine.epoch:
                    await self.release("closed")
                elif not self._line.superseded:
                    await self._line.ask()
                await self._end_duties()
        except (HsmError, TimeoutError) as error:
            get_logger().warning("the fleet is not told that this host closes", error=str(error) or "no answer")
            self._store.hurry()
        finally:
            if self._confirmations is not None:
                await self._confirmations.close()
            await self._end_duties()
            await self._line.asking.close()
            await self._store.close()

    async def _end_duties(self) -> None:
        if self.duties is not None:
            await self.duties.close()

    @property
    def duties(self) -> Duties | None:
        """What this host does beside its lease, from `watch_over` on."""
        return self._line.duties

    @property
    def state(self) -> State:
        """ "follower", "claiming", "holder", or "doubtful": a holder that cannot prove it any more."""
        return self._machine.state

    @property
    def epoch(self) -> int:
        """The fleet's epoch as far as is known."""
        return self._machine.row.epoch

    @property
    def holder(self) -> str:
        """The process that holds the epoch as far as is known: "host:pid:number"; "": none."""
        return "" if self._machine.row.is_free else self._machine.row.holder

    @property
    def incident(self) -> int:
        """The number of the loss that is being answered, or 0."""
        return self._machine.row.incident

    @property
    def reason(self) -> str:
        """Why the state is "doubtful", the epoch was lost, or nothing with a position is bound."""
        problems = (f"the state store is not genuine: {scope}: {why}" for scope, why in self._store.problems.items())
        return next(problems, self._machine.reason)

    @property
    def lease_seconds(self) -> float:
        """Seconds that are left of the lease. Any thread."""
        return max(self._machine.until - boottime(), 0) / SECOND

    def describe(self) -> dict[str, Any]:
        """The state as data for JSON."""
        said: dict[str, Any] = {"name": self.name, "host": self.host, "unordered": self.unordered, "state": self.state}
        said |= {"epoch": self.epoch, "holder": self.holder, "incident": self.incident, "reason": self.reason}
        said |= {"claims": self.claims, "renewalsFailed": self.renewals_failed, "held": self._machine.row.held}
        return said | {"leaseSeconds": round(self.lease_seconds, 3)}

    def require(self) -> None:
        """Raise NotHolder or FleetBehind unless payloads with a position may be tried now: a holder that is in doubt
        asks the fence."""
        self._require(self._machine.row)
        if not self._machine.epoch:
            raise self._refusal()

    @property
    def asks(self) -> Question:
        """What a transaction that binds asks first: the row of the epoch, which no claim changes until its end."""
        self._before = self._machine.row
        return rows.sharing(self.name)

    @property
    def keeps(self) -> Question:
        """As `asks` and `fence`, where what is known now has to be so: it finds a row then. Raises as `fence`."""
        self.require()
        row = self._machine.row
        if self._witness is not None:
            self._witness.require_server(row.server, row.held)
        return rows.keeping(self.name, row, self._machine.instance)

    def fence(self, found: rows.Rows) -> int:
        """Raise NotHolder or FleetBehind unless this process holds the epoch by what `asks` has found. Returns the
        epoch. In the store's thread."""
        row = rows.shared(found)
        self._compare(row, self._before)
        self._require(row)
        if not row.is_held_by(self._machine.instance, self._machine.epoch):
            raise self._refusal(row)
        if self._witness is not None:
            self._witness.require_server(row.server, row.held)
        return row.epoch

    def require_kept(self, domain: str, position: int, mark: Mark, row: Mapping[str, Any] | None) -> None:
        """Raise FleetBehind where the database lacks what this process knows to be bound. In the store's thread."""
        if self._witness is not None:
            self._witness.require_kept(domain, position, mark, row)

    def is_behind(self, domain: str, position: int, high: int) -> bool:
        """Whether a new payload of this domain shows that this host has not caught up. In the store's thread."""
        return domain not in self._gate.caught and position < high

    def has_bound(self, domain: str, position: int, digest: str, *, new: bool) -> None:
        """A payload may be signed at a position. `new`: it was bound now."""
        if new:
            self._gate.caught.add(domain)
        if self._witness is not None:
            self._witness.bound([positions.BoundRow(domain, position, digest, self._machine.instance, 0)])

    def _require(self, row: EpochRow) -> None:
        if row.incident:
            raise FleetBehind(f"incident {row.incident} of fleet {self.name} is open: bound positions were lost")

    def _refusal(self, row: EpochRow | None = None) -> NotHolder:
        row = self._machine.row if row is None else row
        error = error_of("NOT_HOLDER", detail=self._machine.why(row))
        assert isinstance(error, NotHolder)  # noqa: S101  # for the type checker
        error.holder, error.epoch = "" if row.is_free else row.holder, row.epoch
        return error

    async def claim(self, at_least: Mapping[str, int] | None = None, force: bool = False, reason: str = "") -> None:
        """Hold the epoch when this returns. Waits at most for the end of a lease that is not renewed.

        `at_least`: as `caught_up`, of each domain, such as "default/block". `force`, which needs a `reason`: whoever
        holds it, and however far behind this host is. Raises NotHolder if the holder lives; BadArgument if the fleet is
        ahead; DomainMismatch, StoreError.
        """
        if force and not reason:
            raise BadArgument("a forced claim needs a reason")
        for domain, position in (at_least or {}).items():
            self._gate.follows(domain, position_of(position))
        self._machine.wakes()
        if not force:
            await self._until_free()
        await self._claim(force=force, reason=reason)
        self._wake.set()
        if not self._machine.epoch:
            raise self._refusal()

    async def release(self, reason: str = "") -> None:
        """Give the epoch up at once: another host need not wait. This one claims none by itself before another one has,
        or four ttl have passed. What is under way is refused with NotHolder. Raises NotHolder, StoreError."""
        machine = self._machine
        async with self._acting:
            epoch = machine.epoch
            if not epoch:
                raise self._refusal()
            machine.releases(reason or "released", boottime())  # before the database says so
            self._settle("fleet-release", epoch=epoch, reason=reason)
            given_up = rows.release(self.name, epoch, machine.instance, reason, self._store)
            await self._store.exchange([], given_up, turn=False)
            await self._see_now()

    def drain(self, on: bool) -> None:
        """Claim no epoch by itself, on an operator's word; or end that, and claim the next one if nobody holds it."""
        if self.drained and not on:
            self._machine.wakes()
        self.drained = on

    def caught_up(self, domain: str, position: int) -> None:
        """Say how far the application has followed a domain, for claims that this host makes by itself."""
        self._gate.follows(domain, position_of(position))
        if self._machine.row.is_free:
            self._wake.set()

    async def _look(self) -> float:
        begun, failed = boottime(), True
        try:
            if not self._machine.epoch:
                await self._follow()
            elif begun >= self._renewed_at + self._machine.ttl // RENEWALS or self._machine.state != "holder":
                await self._renew()
            self._machine.looked()
            failed = False
        except HsmError as error:
            self._doubt(str(error.args[0]))
        except Exception:  # rows may hold anything
            self._doubt("the database is not understood")
            raise
        return max(self._next(begun, failed=failed) - boottime(), 0) / SECOND

    def _next(self, begun: int, *, failed: bool) -> int:
        machine = self._machine
        if failed or machine.row.incident:
            return begun + machine.ttl // LOOKS
        if machine.epoch:
            due = self._renewed_at + machine.ttl // RENEWALS
            return due if machine.state == "holder" and due > begun else begun + machine.ttl // LOOKS
        soon = begun + max(machine.ttl // LOOKS, min(machine.ttl // RENEWALS, _PATIENCE_NS))
        turn = self._placement.turn(machine, boottime())
        return soon if not self._claims_itself or not turn else min(soon, max(turn, begun + machine.ttl // 100))

    @property
    def _claims_itself(self) -> bool:
        return self._rules.claim == "auto" and not (
            self._line.superseded or self.drained or self._machine.rests(boottime())
        )

    async def _renew(self) -> bool:
        """Renew the lease. Returns whether that is confirmed, and the lease is still good: another host may have
        claimed behind an answer that was held up. Raises StoreError."""
        machine, done = self._machine, False
        async with self._acting:
            epoch = machine.epoch
            for _ in range(2):  # the first one may find that one before it was done
                began = boottime()
                if not machine.epoch:
                    break
                renewal = rows.renew(self.name, machine.row, machine.marks(secrets.token_hex(8)))
                try:
                    row, [answer] = await self._line.ask(renewal, writes=0)
                except HsmError:
                    self.renewals_failed += 1
                    raise
                if done := bool(answer):
                    self._renewed_at = began
                    self._store.hasten()
                    machine.renewed(row, began, boottime())
                    if self._witness is not None and not self._witness.settled:
                        machine.doubt("the audit log is being compared with the database")
                    break
                machine.saw(row, boottime())
            self._settle()
            return done and machine.epoch == epoch != 0 and machine.holds(boottime())

    async def _confirm(self) -> bool:
        """Return whether the database says, asked from now on, that this process holds it. Raises StoreError. One
        server alone confirms a write whenever it answers a question, which costs it less. With a synchronous standby it
        is a renewal: what waits for the standby, a primary that was cut off does not confirm."""
        machine = self._machine
        async with self._acting:
            epoch = machine.epoch
            if epoch and await self._line.confirm(writes=not self._rules.single_node):
                self._settle()
                return machine.epoch == epoch and machine.holds(boottime())
        return await self._renew()  # which finds out why

    async def _follow(self) -> None:
        await self._see()
        turn = self._placement.turn(self._machine, boottime())
        if self._claims_itself and not self._machine.epoch and turn is not None and boottime() >= turn:
            patient = self._gate.is_patient(self._machine.row, boottime())
            try:
                await self._claim(force=False, reason="", patient=patient)
            except (BadArgument, DomainMismatch) as error:
                self._machine.reason = str(error.args[0])
                self._gate.waits(self._machine.row, boottime(), self._machine.reason)

    async def _see(self) -> None:
        async with self._acting:
            await self._see_now()

    async def _see_now(self) -> None:
        row, _ = await self._line.ask()
        self._machine.saw(row, boottime())
        self._settle()

    async def _until_free(self) -> None:
        machine, seen = self._machine, None
        while not machine.epoch:
            await self._see()
            free_at, life = machine.free_at(), (machine.row.epoch, machine.row.renewals)
            if free_at is None or boottime() >= free_at:
                return
            if seen not in (None, life):
                raise self._refusal()
            seen = life
            await asyncio.sleep(min(free_at - boottime(), machine.ttl // LOOKS) / SECOND)

    async def _claim(self, *, force: bool, reason: str, patient: bool = True) -> None:
        """`patient`: raise BadArgument where this host is behind, instead of holding the epoch all the same."""
        machine = self._machine
        async with self._acting:
            if machine.epoch or self._line.superseded or self._line.closes:
                return
            last, (highs, known, floors) = await self._line.ask(rows.HIGHS, ASK, FLOORS)
            began, row, refusal, claimed = boottime(), last, None, False
            if force or machine.may_claim(last, began, self._line.server):
                refusal = self._gate.refusal(highs, known, self.binder, patient=patient and not force)
                if refusal is None and not self._line.superseded:
                    row, claimed = await self._take(last, floors, reason, force=force)
            if claimed:
                machine.claimed(row, began, boottime())
                self.claims += 1
                self._settle("fleet-claim", reason=reason, forced=force)
            else:
                machine.saw(row, boottime())
                self._settle()
        if refusal is not None:
            raise refusal

    async def _take(self, last: EpochRow, floors: rows.Rows, reason: str, *, force: bool) -> tuple[EpochRow, bool]:
        """Send a claim, which waits for the binds that are under way. Returns the row as it is then, and whether that
        made it this process's."""
        noted = [] if self._witness is None else self._witness.before_claim(last.server, self._line.server, floors)
        self._machine.claims()
        self._settle()
        mark = self._machine.marks(secrets.token_hex(8))
        claim = rows.claim(self.name, last, self._machine.instance, self.host, mark, reason, forced=force)
        seconds = max(self._line.limit, _CLAIM_SECONDS)
        row, (_, done, highs) = await self._line.ask(
            rows.locking(self.name), claim, *noted, rows.HIGHS, writes=1, seconds=seconds
        )
        if done:
            self._renewed_at = boottime()
            self._gate.claimed(highs)
        return row, bool(done)

    def _compare(self, row: EpochRow, before: EpochRow | None = None) -> None:
        """Have a loss answered that the row shows. In the loop, or in a transaction."""
        before = self._machine.row if before is None else before
        if self._witness is not None and self._machine.went_back(row, before):
            was, now = (f"epoch {one.epoch}, renewal {one.renewals}" for one in (before, row))
            self._witness.lost(f"{was} is {now} now")

    def _doubt(self, reason: str) -> None:
        """A look or a renewal has failed. A holder is in doubt when half of its lease is over: till then, the next
        renewal may come in time."""
        if self._machine.epoch and self._machine.holds(boottime() + self._machine.ttl // 2):
            return
        if self._machine.fails(reason):
            get_logger().warning("the fleet is not followed", reason=reason)
        self._settle()

    def _settle(self, record: str = "", **details: Any) -> None:
        """Pass the machine's state on. `record`: what led to it, if this host did it."""
        machine, lease = self._machine, self.lease
        lease.until, lease.epoch, lease.holder = machine.until, machine.row.epoch, self.holder
        lease.reason = "" if machine.holds(boottime()) else machine.why(machine.row)
        before, self._told = self._told, (machine.state, machine.epoch)
        if before == self._told and not record:
            return
        epoch = self.epoch
        if not record and before[1] and machine.epoch != before[1]:
            record, epoch = "fleet-lost", before[1]
        known = {"state": machine.state, "epoch": epoch, "holder": self.holder, "reason": machine.reason}
        self._tell(record, **known | details)
