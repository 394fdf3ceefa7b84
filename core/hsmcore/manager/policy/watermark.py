"""One digest for a position: what is bound before it is signed.

A position takes the digest that comes first, for ever: the same one may be signed again, another one never. Nothing is
reclaimed by age; only a floor removes rows, an operator's or that of `keepPositions`, and nothing is signed at or below
it. The domain is the chain of positions and not a key, so each key that signs in a domain obeys what the others were
bound to.

All that wait are bound in one transaction, which is durable before the first of them is signed. In a fleet it is
fenced: it reads the epoch, and keeps it until its end. New positions of a chain that this process has bound in are
bound there without a question, on the condition that all is as it knows it (docs/decisions/0070).
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from copy import copy
from functools import partial
from typing import Any, Final, Self

from sqlalchemy import Connection

from hsmcore.audit import AuditLog
from hsmcore.base.log import get_logger
from hsmcore.base.receipt import Unfinished
from hsmcore.base.scope import Scope
from hsmcore.base.steady import SteadyClock
from hsmcore.config import Config, KeyManagerConfig, Policy
from hsmcore.errors import (
    BadArgument,
    ConfigFault,
    ConfigurationError,
    FleetBehind,
    HsmError,
    InternalError,
    NotHolder,
    PolicyRefused,
    RequestCancelled,
)
from hsmcore.manager.policy.rules import Rows, Rules
from hsmcore.manager.policy.wants import HOPES, Fence, PayloadPlace
from hsmcore.state import Store, StoreAway, StoreChanged, StoreNotGenuine, StoreUnknown, domains, positions, published
from hsmcore.state.domains import Binder
from hsmcore.state.exchange import Answers, Change, answered
from hsmcore.state.mark import Mark
from hsmcore.state.store import Tables

MOST: Final = 256
"""Requests in one transaction."""
_LOOK_SECONDS: Final = 60.0
_ANSWER_SECONDS: Final = 30.0
"""The longest wait for an answer, while the server confirms no others."""
_AGAIN_SECONDS: Final = 0.05  # after a transaction that did not reach the server

Outcome = Exception | bool | None
"""Why it is refused; or whether it is new; None: it was given up before."""


class Asked(asyncio.Future[None]):
    """A place that is to be bound. It ends once that is durable. To give it up, cancel it."""

    def __init__(self, want: PayloadPlace) -> None:
        super().__init__()
        self.want = want
        self.trouble = ""
        """Why the last transaction did not take it, if another one may."""
        self.begun = False
        """Whether a transaction has taken it up: if it is given up after that, it may be bound all the same."""

    def taken_up(self) -> bool:
        """Note that a transaction takes it up; False if it was given up before. In the store's thread: who gives it up
        does so before looking at `begun`."""
        was, self.begun = self.begun, True
        if self.done():
            self.begun = was
            return False
        return True


class Watermark(Tables):
    """Binds positions. Belongs to one event loop. `holder`: who binds, for those who come later. `fence`:
    None without a fleet. `most_ahead`: how far beyond the highest position, or the floor, a new one may lie; None: no
    matter how far. `binder`: of the keys that sign."""

    def __init__(
        self,
        store: Store,
        holder: str,
        fence: Fence | None = None,
        most_ahead: int | None = None,
        binder: Binder = domains.NO_KEYS,
    ) -> None:
        super().__init__(store)
        self._rules, self._binder = Rules(most_ahead, store.vouch), binder
        self._holder, self._fence, self._clock = holder, fence, SteadyClock()
        self._line = None if fence is None else store.binding()
        self._marks: dict[str, Mark] = {}
        """The watermarks as this process has read or written them last."""
        self._waiting: list[Asked] = []
        self._writing, self._background = Scope(), Scope()
        self._closing = asyncio.Event()
        self.bound = 0
        """Count of positions that were bound here."""
        self.on_bound: Callable[[], object] = lambda: None
        """Called after each transaction: the public log goes on."""

    @classmethod
    async def open(cls, config: Config, policy: Policy, fence: Fence | None, audit: AuditLog, binder: Binder) -> Self:
        """Open what a policy binds in; give up what it does not keep, and remove what lies behind the floors, also what
        earlier processes left there, from now on. Raises StoreError, ConfigurationError."""
        rules = config.key_manager
        store = await Store.open(rules.state_place, config.state_secret)
        try:
            await _require_no_other_spelling(rules, policy, store)
        except BaseException:
            await store.close()
            raise
        holder = f"{socket.gethostname() if fence is None else fence.host}:{os.getpid()}"
        made = cls(store, holder, fence, policy.max_ahead, binder)
        made.begin(policy, audit)
        return made

    def require(self, want: PayloadPlace) -> Asked:
        """Bind a position; it is durable when the future ends. Its errors: DoubleSign, PolicyRefused, StoreNotGenuine,
        StoreError, NotHolder, FleetBehind and RequestCancelled. While the store's server is away, or the holder of the
        epoch in doubt, it waits: the caller has the deadline. What is given up before a transaction takes it up is not
        bound. Raises NotHolder and FleetBehind."""
        self._require_fence()
        asked = Asked(want)
        self._waiting.append(asked)
        if not self._writing.is_open:
            self._writing.start(self._write())
        return asked

    def _require_fence(self) -> None:
        """Raise NotHolder or FleetBehind unless the fence may be asked. A holder in doubt may ask it."""
        if self._fence is not None:
            try:
                self._fence.require()
            except (NotHolder, FleetBehind) as error:
                if not self._passes(error):
                    raise

    def _passes(self, error: HsmError) -> bool:
        """Whether time may mend an error: the server is away, has just been started, or has done what had no answer;
        and no other process is known to hold the epoch."""
        if error.told_retryable or (self._fence and (self._fence.state not in HOPES or self._fence.incident)):
            return False
        mends = StoreAway | StoreChanged | StoreUnknown | NotHolder | FleetBehind
        return isinstance(error, mends) and not self._closing.is_set()

    async def _write(self) -> None:
        try:
            while self._waiting:
                group, self._waiting = self._waiting[:MOST], self._waiting[MOST:]
                group = [asked for asked in group if not asked.done()]
                if group:
                    await self._write_group(group)
        except BaseException as error:
            waiting, self._waiting = self._waiting, []
            _answer(waiting, [_given_up(error, asked) for asked in waiting])
            raise

    async def _write_group(self, group: Sequence[Asked]) -> None:
        outcomes: Sequence[Outcome]
        try:
            try:
                self._require_fence()
                outcomes = await self._taken(group, self._clock.now())
            except (StoreAway, StoreUnknown):
                self._require_fence()  # another process may hold the epoch by now
                raise
        except HsmError as error:
            if self._passes(error):
                for asked in group:
                    asked.trouble = str(error.args[0])
                self._waiting[:0] = group
                with suppress(TimeoutError):
                    async with asyncio.timeout(_AGAIN_SECONDS):
                        await self._closing.wait()
                return
            outcomes = [copy(error) for _ in group]
        except Exception as error:  # noqa: BLE001  # whatever it is, the next group has its turn
            get_logger().exception("positions were not bound")
            outcomes = [InternalError(f"the position was not bound: {type(error).__name__}") for _ in group]
        except BaseException as error:
            _answer(group, [_given_up(error, asked) for asked in group])
            raise
        for outcome, asked in zip(outcomes, group, strict=True):
            self.bound += outcome is True
            if self._fence is not None and isinstance(outcome, bool):
                self._fence.has_bound(*asked.want[:3], new=outcome)
        _answer(group, outcomes)
        self.on_bound()

    async def _taken(self, group: Sequence[Asked], now: int) -> list[Outcome]:
        chains: dict[str, list[int]] = {}  # nearly always one
        for asked in group:
            chains.setdefault(asked.want.domain, []).append(asked.want.position)
        unsure = self._binder.unsure(0 if self._fence is None else self._fence.epoch)
        marks, self._marks = self._marks, {}
        if not unsure and marks.keys() >= chains.keys():
            with suppress(HsmError):  # whatever it is, it is read
                if (bound := await self._taken_as_known(marks, group, now)) is not None:
                    return bound
        questions = [positions.question(chain, places) for chain, places in chains.items()]
        if self._fence is not None:
            questions.insert(0, self._fence.asks)
        if unsure:
            questions.append(domains.ASK)

        def decide(answers: Answers) -> tuple[tuple[list[Outcome], dict[str, Mark]], list[Change]]:
            keys = self._binder.changes(answers[-1], unsure, now) if unsure else []
            with positions.of_our_making("positions"):
                outcomes, changes, after = self._take(*self._read(iter(answers), chains), group, now)
            return (outcomes, after), [*keys, *changes] if _signs(outcomes) else changes

        # In a fleet, positions are bound without taking turns with the other hosts' transactions. That is safe: each
        # one that binds has locked the fleet's row to share it before it reads, so it is of the one process that holds
        # the epoch, and what that one has sent before changes the watermark; and whatever else changes rows of a
        # domain, such as `raise_floor`, locks the fleet's row for itself before it reads.
        turn = self._fence is None
        try:
            done, after = await self._store.exchange(questions, decide, turn=turn)
        except StoreUnknown:
            # Read again before anything is answered. A row that is there with its digest goes on: this transaction
            # locks rows, which is a write, so its end confirms to the synchronous standby all that came before.
            done, after = await self._store.exchange(questions, decide, turn=turn)
        if _signs(done):
            self._binder.sure(unsure)
        self._marks = {**marks, **after}
        return done

    async def _taken_as_known(
        self, marks: Mapping[str, Mark], group: Sequence[Asked], now: int
    ) -> list[Outcome] | None:
        """Bind new positions in one message, on the condition that all that the rules look at is what is known here.
        None: somebody asks for another thing, or it may not be; nothing was done. Raises HsmError: whether it was is
        to be read."""
        if self._fence is None or self._line is None:
            return None
        for mark, place in ((marks[asked.want.domain], asked.want.position) for asked in group):
            if mark.has(place) or not mark.knows(place):
                return None  # its row says what is bound there
        keeps, here = self._fence.keeps, {asked.want.domain: marks[asked.want.domain] for asked in group}
        outcomes, changes, after = self._take(self._fence.epoch, here, {}, group, now)
        if any(isinstance(outcome, Exception) for outcome in outcomes):
            return None
        if changes:
            await self._line.ask([keeps, *changes], _ANSWER_SECONDS)
        self._marks = {**marks, **after}
        return outcomes

    def _read(
        self, answers: Iterator[Sequence[Sequence[Any]]], chains: Iterable[str]
    ) -> tuple[int | None, dict[str, Mark | None], Rows]:
        """Return the epoch, the watermarks and the rows that there are. `answers`: of the fence, if there is one, and
        of the chains."""
        epoch = self._fence.fence(next(answers)) if self._fence is not None else None
        marks: dict[str, Mark | None] = {}
        known: Rows = {}
        for domain in chains:
            marks[domain], rows = positions.read(next(answers), self._store.is_mark)
            known |= {(domain, at): row for at, row in rows.items()}
        return epoch, marks, known

    def _take(
        self, epoch: int | None, were: Mapping[str, Mark | None], known: Rows, group: Sequence[Asked], now: int
    ) -> tuple[list[Outcome], list[Change], dict[str, Mark]]:
        """Return for each one the reason to refuse it, or whether a row is added, or None if it was given up; what is
        to be written; and the watermarks that there are then."""
        holder = self._holder if epoch is None else f"{self._holder}#{epoch}"
        marks = {domain: Mark() if mark is None else copy(mark) for domain, mark in were.items()}
        for asked in group:
            if self._fence is not None:
                self._fence.require_kept(*asked.want[:2], marks[asked.want.domain], known.get(asked.want[:2]))
        added: list[dict[str, Any]] = []
        changed: set[str] = set()
        kept: dict[str, str] = {}  # the message of the highest position, where that is a new one
        outcomes: list[Outcome] = []
        for asked in group:
            want = asked.want
            if not asked.taken_up():
                outcomes.append(None)
                continue
            mark, row = marks[want.domain], known.get(want[:2])
            refusal = self._rules.refusal(mark, row, want, epoch or 0) or (
                self._behind(mark, want) if row is None and want.domain not in changed else None
            )
            outcomes.append(refusal or row is None)
            if refusal is None and row is None:
                columns = (*want[:3], holder, now)
                values = dict(zip(positions.COLUMNS, (*columns, self._store.vouch(*columns)), strict=True))
                known[want[:2]] = values
                added.append(values)
                if want.position > mark.high:
                    kept[want.domain] = want.message.hex()
                mark.add(want.position)
                changed.add(want.domain)
        changes = [Change(positions.BIND, added)] if added else []
        changes += [
            positions.change_of(name, marks[name], were[name], vouch=self._store.mark, message=kept.get(name))
            for name in sorted(changed)
        ]
        return outcomes, changes, {name: mark for name, mark in marks.items() if name in changed or were[name]}

    def _behind(self, mark: Mark, want: PayloadPlace) -> PolicyRefused | None:
        """Why a payload is refused that would be the first one after a claim."""
        if self._fence is None or not self._fence.is_behind(want.domain, want.position, mark.high):
            return None
        return PolicyRefused(
            f"position {want.position} of {want.domain} is behind the fleet's {mark.high}: this host has not caught up",
            hint="Follow the chain, and say so with `fleet.caught_up`.",
        )

    def shown(self, kind: str, place: PayloadPlace) -> dict[str, object]:
        """Return what the audit record of a payload says of the place that it was bound to."""
        said: dict[str, object] = {"kind": kind, "domain": place.domain, "position": place.position}
        mac = self._store.attest(*place[:3])
        return {**said, "mac": mac} if mac else said

    async def look(self, place: PayloadPlace) -> tuple[dict[str, Any] | None, Exception | None]:
        """Return the row of a place, and why `require` would refuse it now; None: it would not. Binds nothing."""

        def work(connection: Connection) -> tuple[dict[str, Any] | None, Exception | None]:
            asked = positions.question(place.domain, [place.position])
            mark, rows = positions.read(connection.execute(asked.statement, asked.values))
            row = rows.get(place.position)
            return row, self._rules.refusal(mark or Mark(), row, place, 0)

        return await self._store.run(work)

    async def newest(self, domain: str) -> Unfinished | None:
        """Return what is bound to the highest position of a domain: positions.newest."""

        def work(connection: Connection) -> Unfinished | None:
            with positions.of_our_making("positions"):
                return positions.newest(connection, domain, self._store.vouch)

        return await self._store.run(work)

    async def raise_floor(self, domain: str, floor: int, reason: str) -> int:
        """Sign nothing at or below `floor` from now on, and `remove` the rows there. Returns their number. Raises
        BadArgument for a floor below the present one."""
        raised = partial(positions.raise_floor, domain=domain, floor=floor, reason=reason)
        before = await self._store.run(raised)
        if floor <= before:
            raise BadArgument(f"the floor of {domain} is {before} already", hint="A floor only rises.")
        return await self.remove()

    def begin(self, policy: Policy, audit: AuditLog) -> None:
        """Give up what the policy does not keep, and remove what lies behind the floors: now, and each minute."""

        async def look() -> None:
            if policy.keep_positions is not None:
                for kind in sorted(policy.ordered):
                    await self._give_up(policy.chain(kind), policy.keep_positions, audit)
            await self.remove()

        self._background.every(_LOOK_SECONDS, look, "rows behind the floors stay for now")

    async def _give_up(self, domain: str, kept: int, audit: AuditLog) -> None:
        reason = f"keepPositions {kept}"

        def work(connection: Connection) -> int | None:
            if self._fence is not None:
                positions.keep_holders_out(connection)
                self._fence.fence(answered(connection, [self._fence.asks])[0])
            return positions.let_go(connection, domain, kept, reason)

        try:
            if self._fence is not None:
                self._fence.require()
            floor = await self._store.run(work)
        except (NotHolder, FleetBehind):
            return  # the process that holds the epoch does it
        if floor is not None:
            fields: dict[str, Any] = {"domain": domain, "position": floor, "reason": reason}
            get_logger().info("positions were given up", **fields)
            audit.note("command", command="policy floor set", result="ok", **fields)

    async def remove(self) -> int:
        """Remove the rows behind the floors, a portion after the other, if this process may. Returns their number."""
        if self._store.identity[0] and not await self._store.run(positions.may_remove, turn=False):
            return 0
        floors = await self._store.run(published.removable)
        return sum([await self._store.run_out(positions.Removal(*one)) for one in floors.items()])

    async def close(self) -> None:
        """Wait until everything that was asked for is written, or refused where the server is away."""
        await self._background.close()
        self._closing.set()
        if self._line is not None:
            self._line.ends()
        await self._writing.finish()
        if self._line is not None:
            await self._line.close()

    async def leave(self) -> None:
        """`close`, and close the store, of what `open` has returned. Idempotent."""
        await self.close()
        await self._store.close()


async def _require_no_other_spelling(rules: KeyManagerConfig, policy: Policy, store: Store) -> None:
    """Raise ConfigurationError if the store has positions of a domain that no configuration can name any more: the
    domain of today would begin without them."""
    try:
        with positions.of_our_making("positions"):
            marks = await marks_of(store)
    except StoreNotGenuine:
        return  # nothing is bound until it is, and other payloads are signed meanwhile
    for name, mark in sorted(marks.items()):
        kind, newest = policy.former_kind(name), max(mark.high, mark.floor)
        if kind not in policy.ordered or newest < 0:
            continue
        if marks.get(policy.chain(kind), Mark()).floor < newest:
            problem = f"does not know what is bound to the positions of {name!r}, of which {newest} is the highest"
            raise ConfigurationError.of(
                [ConfigFault(f"{rules.where}.policy.domain", problem)],
                hint=f"Have it begin behind them: `hsmcore policy floor set {kind} {newest} --reason TEXT`.",
            )


async def marks_of(store: Store) -> dict[str, Mark]:
    """Return the watermark of each domain that has one."""
    return await store.run(positions.marks)


def _signs(outcomes: Iterable[Outcome]) -> bool:
    """Return whether any payload may be signed."""
    return any(isinstance(outcome, bool) for outcome in outcomes)


def _answer(group: Iterable[Asked], outcomes: Iterable[Outcome]) -> None:
    for asked, outcome in zip(group, outcomes, strict=True):
        if asked.done():
            continue
        if isinstance(outcome, Exception):
            asked.set_exception(outcome)
        else:
            asked.set_result(None)


def _given_up(error: BaseException, asked: Asked) -> RequestCancelled:
    known = "it may be bound all the same" if asked.begun else "nothing was bound"
    return RequestCancelled(f"what binds positions was ended ({type(error).__name__}); {known}", maybe_signed=False)
