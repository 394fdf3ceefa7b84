"""This host in its fleet: it claims the epoch, renews its lease, and says what may be signed and handed out.

Two things keep a host that lost the epoch from harm. `fence` stands in each transaction that binds a position: it reads
the epoch there, so no clock matters. `lease` stands before each hand-out; it believes that the clocks of two hosts do
not run apart by more than a tenth (machine.py has the times).
"""

from __future__ import annotations

import asyncio
import math
import os
import secrets
from collections.abc import Mapping, Sequence
from typing import Any, Self, TypeVar

from hsmcore._native import Lease
from hsmcore.audit import AuditLog
from hsmcore.base.log import get_logger
from hsmcore.base.scope import Scope
from hsmcore.base.steady import boottime
from hsmcore.config.fleet import Fleet
from hsmcore.errors import BadArgument, FleetBehind, HsmError, NotHolder, error_of
from hsmcore.fleet import rows
from hsmcore.fleet.confirmations import Confirmations, EpochCheck
from hsmcore.fleet.duties import Duties
from hsmcore.fleet.entry import LOOKS, RENEWALS, SECOND, Tell, enter, position_of
from hsmcore.fleet.gate import ClaimGate
from hsmcore.fleet.machine import EpochRow, Machine, State
from hsmcore.fleet.placement import Placement
from hsmcore.recovery.hold import CLOSED
from hsmcore.recovery.witness import FLOORS, Witness
from hsmcore.state import DomainMismatch, Store, positions
from hsmcore.state.domains import ASK, NO_KEYS
from hsmcore.state.exchange import Answers, Change, Decide, Question
from hsmcore.state.mark import Mark
from hsmcore.state.seal import SealSecret

T = TypeVar("T")


class Membership:
    """One process of a fleet. Belongs to the event loop that opens it, but for `fence`."""

    def __init__(self, rules: Fleet, store: Store) -> None:
        self.name, self.host, self.unordered = rules.name, rules.host, rules.unordered
        self.lease = Lease()
        """Until when signatures may be handed out."""
        self.claims = self.renewals_failed = 0
        self.binder = NO_KEYS
        """Of the keys that sign: no epoch is claimed while they must not bind."""
        self.drained = False
        """Whether this host claims no epoch by itself, on an operator's word."""
        self._rules, self._store = rules, store
        self._host_row = [rows.of_host(self.host)]
        instance = f"{self.host}:{os.getpid()}:{secrets.token_hex(4)}"
        self._machine = Machine(instance, rules.ttl_ms * 1_000_000)
        self._witness: Witness | None = None
        self.duties: Duties | None = None
        self._gate, self._placement = ClaimGate(self._machine.ttl), Placement(rules)
        self._superseded = self._leaving = False
        self._acting, self._wake = asyncio.Lock(), asyncio.Event()
        self._scope = Scope()
        self._check = EpochCheck(store, rules.name, self._machine, self._wake.set, single_node=rules.single_node)
        self._confirmations = Confirmations(self._check, self._refusal)
        self._spoke_at = 0
        self._tell: Tell = lambda *_, **__: None
        self._told: tuple[State, int] = ("follower", 0)

    @classmethod
    async def open(cls, rules: Fleet, state_secret: SealSecret | None = None, where: str = "$.keyManager") -> Self:
        """Enter the fleet. A process that was killed lately and had this host's name is waited for. Raises StoreError;
        ConfigurationError for a name that another live process has, and for a lease shorter than the database takes to
        answer."""
        store = await Store.open(rules, state_secret)
        try:
            membership = cls(rules, store)
            await enter(store, rules, membership._machine, f"{where}.fleet")
        except BaseException:
            await store.close()
            raise
        return membership

    async def watch_over(self, log: AuditLog) -> None:
        """Before `begin`: compare the database with this host's audit log, and follow operators' orders."""
        self._witness = Witness(self._store, self.name, self.host, self._machine.instance, log)
        self.duties = Duties(self, self._store, self._witness, self._rules.ttl_ms)
        await self.duties.begin()

    def begin(self, tell: Tell) -> None:
        """The members can sign: follow the epoch, claim it if that is to be done, renew it."""
        self._tell = tell
        seconds = self._rules.ttl_ms / 1e3 / LOOKS
        self._scope.every(seconds, self._look, "the fleet's database is not understood", wake=self._wake)

    async def close(self) -> None:
        """Give the epoch up, and leave. Idempotent."""
        if self._leaving:
            return
        self._leaving = True
        await self._scope.close()
        await self._confirmations.close()
        await self._check.close()
        if self.duties is not None:
            await self.duties.close()
        try:
            if self._machine.state == "claiming":
                await self._see()  # it may have been written
            if self._machine.epoch:
                await self.release("closed")
            if not self._superseded:
                await self._store.exchange(self._host_row, lambda found: (None, self._spoken(found, CLOSED)[1]))
        except HsmError as error:
            get_logger().warning("the fleet is not told that this host closes", error=str(error.args[0]))
        finally:
            await self._store.close()

    # What is known.

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
        """Why the state is "doubtful", or the epoch was lost."""
        return self._machine.reason

    @property
    def lease_seconds(self) -> float:
        """Seconds that are left of the lease. Any thread."""
        return max(self._machine.until - boottime(), 0) / SECOND

    def describe(self) -> dict[str, Any]:
        """The state as data for JSON."""
        said: dict[str, Any] = {"name": self.name, "host": self.host, "unordered": self.unordered, "state": self.state}
        said |= {"epoch": self.epoch, "holder": self.holder, "incident": self.incident, "reason": self.reason}
        said |= {"leaseSeconds": round(self.lease_seconds, 3), "claims": self.claims}
        return said | {"renewalsFailed": self.renewals_failed, "held": self._machine.row.held}

    # What may be signed.

    def require(self) -> None:
        """Raise NotHolder or FleetBehind unless payloads with a position may be tried now."""
        self._require(self._machine.row)
        if not self._machine.binds:
            raise self._refusal()

    @property
    def asks(self) -> Question:
        """What a transaction that binds asks first: the row of the epoch, which it keeps as it is until its end."""
        return rows.sharing(self.name)

    def fence(self, found: Sequence[Sequence[Any]]) -> int:
        """Raise NotHolder or FleetBehind unless this process holds the epoch by what `asks` has found. Returns the
        epoch. In the store's thread."""
        row = rows.shared(found)
        self._compare(row)
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
        """Whether a new payload of this domain shows that this host has not caught up with the fleet. In the store's
        thread."""
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
        error = error_of("NOT_HOLDER", detail=self._why(row))
        assert isinstance(error, NotHolder)  # noqa: S101  # for the type checker
        error.holder, error.epoch = "" if row.is_free else row.holder, row.epoch
        return error

    def _why(self, row: EpochRow) -> str:
        """Why this process may not sign."""
        if row.is_free:
            return "nobody holds the epoch"
        if row.holder != self._machine.instance:
            return f"epoch {row.epoch} is held by {row.holder}"
        return self._machine.reason or "its renewal is late"

    # What an operator or the application does.

    async def claim(self, at_least: Mapping[str, int] | None = None, force: bool = False, reason: str = "") -> None:
        """Hold the epoch when this returns. Waits at most for the end of a lease that is not renewed.

        `at_least`: the newest position that the application knows of each domain, such as "default/block"; default:
        those of `caught_up`. `force`, which needs a `reason`: whoever holds it, and however far behind this host is.
        Raises NotHolder if the holder lives; BadArgument if the fleet is ahead; DomainMismatch, StoreError.
        """
        if force and not reason:
            raise BadArgument("a forced claim needs a reason")
        if at_least is not None:
            at_least = {domain: position_of(position) for domain, position in at_least.items()}
        self._machine.wakes()
        if not force:
            await self._until_free()
        await self._claim(self._gate.words if at_least is None else at_least, force=force, reason=reason)
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
            machine.saw(machine.row._replace(released=True), boottime())
            self._settle()

    def drain(self, on: bool) -> None:
        """Claim no epoch by itself, on an operator's word; or end that, and claim the next one if nobody holds it."""
        if self.drained and not on:
            self._machine.wakes()
        self.drained = on

    def caught_up(self, domain: str, position: int) -> None:
        """Say how far the application has followed a domain, for claims that this host makes by itself."""
        self._gate.follows(domain, position_of(position))
        self._wake.set()

    def confirm(self, until: float = math.inf, others: int = 0) -> asyncio.Future[None]:
        """Return what ends when the database has confirmed that the epoch is this host's: Confirmations.wait, whose
        refusal is NotHolder."""
        return self._confirmations.wait(until, others)

    # What goes on by itself.

    async def _look(self) -> float:
        begun = boottime()
        try:
            if self._machine.epoch:
                await self._renew()
            else:
                await self._follow()
                self._machine.looked()
        except HsmError as error:
            self._doubt(str(error.args[0]))
        except Exception:  # rows may hold anything
            self._doubt("the database is not understood")
            raise
        return max(self._next(begun) - boottime(), 0) / SECOND

    def _next(self, begun: int) -> int:
        machine = self._machine
        if machine.state == "holder":
            return begun + machine.ttl // RENEWALS
        soon = begun + machine.ttl // LOOKS
        turn = self._placement.turn(machine, boottime())
        return soon if not self._claims_itself or not turn else min(soon, max(turn, begun + machine.ttl // 100))

    @property
    def _claims_itself(self) -> bool:
        return self._rules.claim == "auto" and not (self._superseded or self.drained or self._machine.rests(boottime()))

    async def _renew(self) -> None:
        async with self._acting:
            machine, began, epoch = self._machine, boottime(), self._machine.epoch
            if not epoch:
                return
            try:
                good, row = await self._looked(began, epoch)
            except HsmError:
                self.renewals_failed += 1
                raise
            if good:
                machine.renewed(row, began, boottime())
                if self._witness is not None and not self._witness.settled:
                    machine.doubt("the audit log is being compared with the database")
            else:
                machine.saw(row, boottime())
            self._settle()

    async def _looked(self, began: int, epoch: int = 0) -> tuple[bool, EpochRow]:
        """Read the row, and renew it if this process holds that epoch by it; say now and then that the host lives.
        Returns whether it was renewed, and the row as it is then."""
        machine = self._machine
        speaks = began >= self._spoke_at + machine.ttl // RENEWALS // (2 if epoch else 1)

        def decide(answers: Answers) -> tuple[tuple[bool, bool, EpochRow], list[Change]]:
            row, (spoke, changes) = rows.shared(answers[0]), self._spoken(answers[1:], machine.state)
            good = epoch > 0 and row.is_held_by(machine.instance, epoch)
            if good:
                row, renewed = rows.renew(self.name, row)
                changes = [renewed, *changes]
            return (good, spoke, row), changes

        asked = [(rows.locking if epoch else rows.looking)(self.name), *(self._host_row if speaks else ())]
        good, spoke, row = await self._answered(asked, decide)
        self._heard(spoke, began if speaks else self._spoke_at)
        self._compare(row)
        return good, row

    async def _follow(self) -> None:
        await self._see()
        turn = self._placement.turn(self._machine, boottime())
        if self._claims_itself and not self._machine.epoch and turn is not None and boottime() >= turn:
            patient = self._gate.is_patient(self._machine.row, boottime())
            try:
                await self._claim(self._gate.words, force=False, reason="", patient=patient)
            except (BadArgument, DomainMismatch) as error:
                self._machine.reason = str(error.args[0])
                self._gate.waits(self._machine.row, boottime(), self._machine.reason)

    async def _see(self) -> None:
        async with self._acting:
            _, row = await self._looked(boottime())
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

    async def _claim(self, at_least: Mapping[str, int], *, force: bool, reason: str, patient: bool = True) -> None:
        """`patient`: raise BadArgument where this host is behind, instead of holding the epoch all the same."""
        machine = self._machine
        async with self._acting:
            if machine.epoch or self._superseded or self._leaving:
                return
            machine.claims()
            self._settle()
            self._gate.begins(at_least, self.binder)
            began = boottime()

            def decide(answers: Answers) -> tuple[tuple[EpochRow, HsmError | None], list[Change]]:
                row, server = rows.shared(answers[0]), self._store.identity
                self._compare(row)
                if not force and not machine.may_claim(row, began, server):
                    return (row, None), []
                refusal = self._gate.refusal({} if force else at_least, *answers[1:3], patient=patient)
                if refusal is not None:
                    return (row, refusal), []
                noted = [] if self._witness is None else self._witness.before_claim(row.server, answers[3])
                row, claimed = rows.claim(self.name, row, machine.instance, self.host, reason, server)
                return (row, None), [*noted, claimed]

            row, refusal = await self._answered([rows.locking(self.name), rows.HIGHS, ASK, FLOORS], decide)
            if row.holder == machine.instance and not row.released:
                machine.claimed(row, began, boottime())
                self.claims += 1
                self._settle("fleet-claim", reason=reason, forced=force)
            else:
                machine.saw(row, boottime())
                self._settle()
        if refusal is not None:
            raise refusal

    def _compare(self, row: EpochRow) -> None:
        """Have a loss answered that the row shows. In the loop, or in a transaction."""
        if self._witness is not None and self._machine.went_back(row):
            was, now = (f"epoch {one.epoch}, renewal {one.renewals}" for one in (self._machine.row, row))
            self._witness.lost(f"{was} is {now} now")

    def _spoken(self, answers: Answers, state: str) -> tuple[bool, list[Change]]:
        return rows.speak(answers, self.host, self._machine.instance, state)

    def _heard(self, spoke: bool, at: int) -> None:
        self._spoke_at = at
        if not spoke and not self._superseded:
            self._superseded = True
            get_logger().error("another process speaks for this host, or it was retired: it holds no epoch any more")
        if self._superseded and self._machine.epoch:
            self._machine.gives_up("another process speaks for this host")

    async def _answered(self, questions: Sequence[Question], decide: Decide[T]) -> T:
        """Run a transaction; a holder that waits for it longer than between two renewals is in doubt."""

        def noted(answers: Answers) -> tuple[tuple[T, tuple[str, str]], Sequence[Change]]:
            result, changes = decide(answers)
            return (result, self._store.identity), changes

        asked = asyncio.ensure_future(self._store.exchange(questions, noted, turn=False))
        asked.add_done_callback(lambda done: done.cancelled() or done.exception())
        if not (await asyncio.wait({asked}, timeout=self._machine.ttl / RENEWALS / SECOND))[0]:
            self._doubt("the database does not answer")
        result, server = await asked
        self._machine.answered(server, boottime())
        return result

    def _doubt(self, reason: str) -> None:
        if self._machine.fails(reason):
            get_logger().warning("the fleet is not followed", reason=reason)
        self._settle()

    def _settle(self, record: str = "", **details: Any) -> None:
        """Pass the machine's state on. `record`: what led to it, if this host did it."""
        machine, lease = self._machine, self.lease
        lease.until, lease.epoch, lease.holder = machine.until, machine.row.epoch, self.holder
        lease.reason = "" if machine.holds(boottime()) else self._why(machine.row)
        before, self._told = self._told, (machine.state, machine.epoch)
        if before == self._told and not record:
            return
        epoch = self.epoch
        if not record and before[1] and machine.epoch != before[1]:
            record, epoch = "fleet-lost", before[1]
        known = {"state": machine.state, "epoch": epoch, "holder": self.holder, "reason": machine.reason}
        self._tell(record, **known | details)
