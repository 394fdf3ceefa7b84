"""The policy of one key: what stands between a caller and the way of a signature."""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, Self

from hsmcore._native import PROGRAMS, Gate, freeze, timeout_ns
from hsmcore.audit.record import extra as audit_extra
from hsmcore.base.base58 import from_base58
from hsmcore.config import Config, PayloadFormat, Policy, TransactionRules
from hsmcore.config.policy import BATCH_ROOT, PREHASHED, Batching
from hsmcore.errors import (
    BadArgument,
    DeadlineExceeded,
    DoubleSign,
    HsmError,
    InvalidMessageType,
    PolicyRefused,
    QueueFull,
)
from hsmcore.errors.batch import each, of_batch
from hsmcore.manager.policy.callers import CallerAccount, Callers, Outflow
from hsmcore.manager.policy.wants import Fence, NotNext, PayloadPlace

if TYPE_CHECKING:
    from hsmcore._native import Look
    from hsmcore.audit import AuditLog
    from hsmcore.base.receipt import Unfinished
    from hsmcore.failover.path import SigningPath
    from hsmcore.manager.policy.watermark import Watermark

_SECOND: Final = 1_000_000_000
Signers = Callable[[], Sequence[bytes]]
"""Returns the public keys that sign now."""


def signers(path: SigningPath) -> list[bytes]:
    """Return the Ed25519 public keys that sign now."""
    return [version.public_key for version in path.signing() if version.algorithm == "ed25519"]


def gate_of(policy: Policy, formats: Sequence[PayloadFormat] = ()) -> Gate:
    """Return what decides about payloads by their bytes alone. `formats`: instead of the policy's."""
    rules = policy.transactions or TransactionRules()
    listed = (rules.programs or {}).items()
    whole = [address for program, allowed in listed if isinstance(allowed, str) for address in _addresses_of(program)]
    return Gate(
        kinds=policy.kinds,
        domain=policy.domain,
        formats=_formats(formats or policy.formats),
        programs=None if rules.programs is None else whole,
        instructions=[(program, name) for program, allowed in listed if isinstance(allowed, tuple) for name in allowed],
        recipients=None if rules.recipients is None else [from_base58(address) for address in rules.recipients],
        owned=[from_base58(address) for address in rules.owned or ()],
        max_fee=rules.max_fee_lamports or 0,
        role=rules.role,
        callers=policy.callers is not None,
    )


def leaves_of(policy: Policy, batching: Batching | None, formats: Sequence[PayloadFormat] = ()) -> Gate:
    """Return what decides about the leaves of batches. `formats`: as gate_of."""
    kinds = None if batching is None else batching.kinds
    formats = formats or policy.formats
    return Gate(kinds=kinds, domain=policy.domain, formats=_formats(formats), callers=policy.callers is not None)


def kinds_of(formats: Sequence[PayloadFormat]) -> Gate:
    """Return what tells the kind of any message."""
    return Gate(kinds=(), domain="", formats=_formats(formats))


def _formats(formats: Sequence[PayloadFormat]) -> list[tuple[str, bytes, int, int, int, bool]]:
    return [
        (form.kind, bytes.fromhex(form.prefix), form.length, at.offset, at.bytes, at.order == "big")
        for form in formats
        for at in (form.position,)
    ]


def _addresses_of(program: str) -> Sequence[bytes]:
    return PROGRAMS[program][0] if program in PROGRAMS else [from_base58(program)]


def place_of(policy: Policy, look: Look, message: bytes, position: int | None) -> PayloadPlace | None:
    """Return where a payload that may be signed stands; None for one that has no position. `position`: what its caller
    says. Raises PolicyRefused."""
    if look.refusal is not None:
        raise PolicyRefused(look.refusal)
    if position is not None and (type(position) is not int or position != look.position):
        found = "no position" if look.position is None else f"position {look.position}"
        raise PolicyRefused(f"the payload, of kind {look.kind}, says {found}, its caller {position!r:.40}")
    if look.position is None:
        return None
    kept = message if len(message) <= policy.keep_message_bytes else b""
    return PayloadPlace(policy.chain(look.kind), look.position, hashlib.sha256(message).hexdigest(), message=kept)


class Guard:
    """Admits requests. Belongs to one event loop."""

    def __init__(
        self,
        policy: Policy,
        formats: Sequence[PayloadFormat],
        watermark: Watermark | None,
        signers: Signers,
        default_timeout: float,
        batching: Batching | None = None,
    ) -> None:
        self._policy, self.watermark, self._signers = policy, watermark, signers
        self.batches = BATCH_ROOT in policy.kinds
        self.domain = policy.domain
        self._default = default_timeout
        self.gate, self.leaves = gate_of(policy, formats), leaves_of(policy, batching, formats)
        self.passes = self.gate.passes
        """Whether a message may be signed without `admit`: the fast way."""
        self._callers = None if policy.callers is None else Callers(policy.callers)
        owned = (policy.transactions and policy.transactions.owned) or {}
        self._released: dict[str, int] = {}
        self._outflow = Outflow({address: rules.per_minute for address, rules in owned.items()})
        self.refused: Counter[str] = Counter()
        """Count of refusals by kind of payload; "double-sign" for another payload at a bound position, "state" for what
        else the state store said, "limit" for what the limits of a caller or an owned account did not let pass."""

    @classmethod
    async def open(
        cls,
        config: Config,
        formats: Sequence[PayloadFormat],
        path: SigningPath,
        fence: Fence | None,
        audit: AuditLog,
    ) -> Self | None:
        """Open what a configuration's policy needs; None: it has no policy. `formats`: as gate_of. `path`: whose keys
        sign. `fence`: of the fleet. `audit`: where a floor that is raised by itself is recorded. Raises StoreError,
        ConfigurationError."""
        rules, watermark = config.key_manager, None
        if fence is not None or (rules.policy is not None and rules.policy.needs_store):
            from hsmcore.recovery.key_domains import wanted_of
            from hsmcore.state.domains import Binder

            binder = Binder(wanted_of(rules), lambda: [version.public_key for version in path.signing()])
            if fence is not None:
                fence.binder = binder
            if rules.policy is not None and rules.policy.needs_store:
                from hsmcore.manager.policy.watermark import Watermark

                watermark = await Watermark.open(config, rules.policy, fence, audit, binder)
        if rules.policy is None:
            return None
        timeout = rules.request_timeout_ms / 1e3
        made = cls(rules.policy, formats, watermark, partial(signers, path), timeout, rules.batching)
        if fence is not None:
            fence.unfinished = made.unfinished
        return made

    async def close(self) -> None:
        """Write what is under way, and close the store. Idempotent."""
        if self.watermark is not None:
            await self.watermark.leave()

    def admit(self, message: Any, kind: str | None, position: int | None) -> Permit:
        """Judge a message, and count it. It may be signed after `begin` of what is returned. Raises PolicyRefused,
        BadArgument, InvalidMessageType, QueueFull."""
        permit = self.judge(message, kind, position)
        self._count([permit])
        return permit

    def judge(self, message: Any, kind: str | None, position: int | None) -> Permit:
        """As `admit`, for a message that `counted` counts."""
        data = _frozen(message)
        look = self.gate.look(data, kind, self._signers())
        return self._permit(data, look, position, look.kind)

    def judge_leaf(self, message: Any, kind: str | None) -> Permit:
        """As `judge`, for a message of a batch. Raises BadArgument for a kind that has a position."""
        if kind in ("block", "state-root"):
            raise BadArgument(
                f"a payload of kind {kind} has a position, so it needs a signature of its own",
                hint="Sign it with `sign`.",
            )
        data = _frozen(message)
        look = self.leaves.look(data, kind)
        if look.refusal is not None:
            look = look._replace(refusal=f"it is no leaf of a batch, by batching: {look.refusal}")
        return self._permit(data, look, None, None)

    @contextmanager
    def counted(self, permits: Sequence[Permit]) -> Iterator[None]:
        """Count requests of one caller, all or none; they end with the block. Raises QueueFull, BadArgument."""
        self._count(permits)
        try:
            yield
        finally:
            for one in permits:
                one.end()

    def _count(self, permits: Sequence[Permit]) -> None:
        account = permits[0].account if permits else None
        if account is not None:
            try:
                account.begin(len(permits))
            except HsmError:
                self.refused["limit"] += 1
                raise

    async def bind_own(
        self, kind: str, text: bytes, first: int, last: int, epoch: int, timeout: float
    ) -> tuple[PayloadPlace, float]:
        """Bind a text of one of config.policy.OWN to the positions `first` to `last`, which are the next ones. Returns
        its place, and the seconds that are left. Raises NotNext, and the errors of `require`."""
        place = PayloadPlace(self._policy.chain(kind), last, hashlib.sha256(text).hexdigest(), first, epoch)
        return place, await self.require(place, timeout)

    def _permit(self, message: bytes, look: Look, position: int | None, kind: str | None) -> Permit:
        """Let through what was looked at, or count a refusal. `kind`: as CallerAccount.refusal."""
        try:
            place = place_of(self._policy, look, message, position)
            self._outflow.require(look.moves)
            return Permit(self, message, look.kind, place, self._account(kind), look.moves)
        except PolicyRefused:
            self.refused[look.kind] += 1
            raise

    def count_moves(self, permit: Permit) -> None:
        """Count what leaves owned accounts, once for each message. Raises QueueFull."""
        try:
            self._outflow.count(permit.message, permit.moves)
        except QueueFull:
            self.refused["limit"] += 1
            raise

    def _account(self, kind: str | None) -> CallerAccount | None:
        """Return the account of the present caller. Raises PolicyRefused for what it may not have signed."""
        account = None if self._callers is None else self._callers.present()
        if account is not None and (refusal := account.refusal(kind)) is not None:
            raise refusal
        return account

    def judge_digest(self) -> Permit:
        """As `judge`, for a digest that is to be signed as it is."""
        if PREHASHED not in self._policy.kinds:
            self.refused[PREHASHED] += 1
            raise PolicyRefused(f'the policy does not list "{PREHASHED}": this key signs no digest as it is')
        return Permit(self, b"", PREHASHED, None, self._account(PREHASHED))

    def shown(self, kind: str, place: PayloadPlace) -> dict[str, object]:
        """As Watermark.shown: once the place is bound."""
        assert self.watermark is not None  # noqa: S101  # for the type checker: `needs_store`
        return self.watermark.shown(kind, place)

    async def unfinished(self, domain: str, handed_out: bool = False) -> Unfinished | None:
        """As KeyManager.unfinished."""
        if self.watermark is None or (found := await self.watermark.newest(domain)) is None:
            return None
        if not handed_out and self._released.get(domain) == found.position:
            return None
        if found.message is not None:
            look, place = self.gate.look(found.message, found.kind, self._signers()), None
            with suppress(PolicyRefused):
                place = place_of(self._policy, look, found.message, found.position)
            if place is None or place[:2] != (domain, found.position):
                return found._replace(message=None)
        return found

    def released(self, place: PayloadPlace) -> None:
        """A signature of this place was handed out."""
        self._released[place.domain] = place.position

    async def require(self, place: PayloadPlace, timeout: float | None) -> float:
        """Have a place bound. Returns the seconds that are left."""
        assert self.watermark is not None  # noqa: S101  # for the type checker: `needs_store`
        most = timeout_ns(self._default if timeout is None else timeout) / _SECOND
        begun, asked = monotonic(), self.watermark.require(place)
        try:
            async with asyncio.timeout(most):
                await asked
        except TimeoutError:
            problem = "the state store did not take the position in time" + (asked.trouble and f" ({asked.trouble})")
            if asked.begun:
                hint = "The position may be bound: ask for the same payload again, and for no other one."
                raise DeadlineExceeded(f"{problem}, and may still", hint=hint, maybe_signed=False) from None
            raise DeadlineExceeded(f"{problem}; it is not bound", maybe_signed=False) from None
        except HsmError as error:
            if not isinstance(error, NotNext):
                self.refused["double-sign" if isinstance(error, DoubleSign) else "state"] += 1
            raise
        return max(most - (monotonic() - begun), 1e-3)


class Permit:
    """A request that may be signed once it is counted and `begin` has returned. Call `end` after its answer."""

    __slots__ = ("_guard", "account", "kind", "message", "moves", "place")

    def __init__(
        self,
        guard: Guard,
        message: bytes,
        kind: str,
        place: PayloadPlace | None,
        account: CallerAccount | None,
        moves: Sequence[tuple[str, int]] = (),
    ) -> None:
        """`account`: of its caller; None: callers have no limits, or it has ended. `moves`: as of Look."""
        self.moves = moves
        self._guard, self.message, self.kind, self.place, self.account = guard, message, kind, place, account

    @property
    def waits(self) -> bool:
        """Whether `begin` has anything to bind or to count."""
        return self.place is not None or bool(self.moves)

    async def begin(self, timeout: float | None) -> float | None:
        """Bind what has to be, and count what leaves owned accounts. Returns the timeout that is left. Raises
        QueueFull, DoubleSign, PolicyRefused, StoreError, StoreNotGenuine, DeadlineExceeded, InvalidTimeout."""
        if self.moves:
            self._guard.count_moves(self)
        return timeout if self.place is None else await self._guard.require(self.place, timeout)

    def extra(self) -> bytes | None:
        """Return what goes into the audit record."""
        if self.place is None:
            return audit_extra()
        return audit_extra(**self._guard.shown(self.kind, self.place))

    def released(self) -> None:
        """Its signature is handed out."""
        if self.place is not None:
            self._guard.released(self.place)

    def end(self) -> None:
        """The request is answered, or was given up. Idempotent."""
        account, self.account = self.account, None
        if account is not None:
            account.end()


def _frozen(message: object) -> bytes:
    data = freeze(message)
    if type(data) is not bytes:
        raise InvalidMessageType("a digest is signed by sign_digest")
    return data


def refuse_claims(kind: str | None, position: int | None) -> None:
    """Raise BadArgument if a kind or a position was given: there is no policy that would look at them."""
    if kind is not None or position is not None:
        raise BadArgument(
            "kind and position need a policy, and the configuration has none",
            hint="Add keyManager.policy, with the kinds that this key may sign.",
        )


SubmitMany = Callable[[Sequence[Any], float | None, bool, bytes | None], Awaitable[list[Any]]]


async def submit_batch(
    guard: Guard,
    submit: SubmitMany,
    batch: list[Any],
    kind: str | None,
    timeout: float | None,
    return_exceptions: bool,
    extra: bytes | None,
    admitted: ExitStack,
    record: Callable[[str, Any, HsmError], object],
) -> Awaitable[list[Any]]:
    """Admit a batch, each message as `kind` unless that is None, and submit it; the result is what
    SigningPath.submit_many returns. Without `return_exceptions`, a refusal is raised before anything is signed; else
    `record` gets each. What is admitted counts as open until `admitted` ends, what is refused does not."""
    if guard.gate.passes_all(batch, kind):
        return submit(batch, timeout, return_exceptions, extra)
    judged = each(lambda message: _judge(guard, message, kind, return_exceptions), batch)
    try:
        admitted.enter_context(guard.counted([one for one in judged if isinstance(one, Permit)]))
    except HsmError as error:
        if not return_exceptions:
            raise
        judged = [error if isinstance(one, Permit) else one for one in judged]
    waiting = [one for one in judged if isinstance(one, Permit) and one.waits]
    begun = await asyncio.gather(*(one.begin(timeout) for one in waiting), return_exceptions=True)
    ready: dict[Any, Any] = dict(zip(waiting, begun, strict=True))
    outcomes: list[bytes | HsmError] = []
    for index, (one, message) in enumerate(zip(judged, batch, strict=True)):
        result = ready.get(one) if isinstance(one, Permit) else one
        if isinstance(result, BaseException):
            if not (return_exceptions and isinstance(result, HsmError)):
                raise of_batch(result, index)
            if isinstance(one, Permit):
                one.end()
            record("sign", message, result)
            outcomes.append(result)
        else:
            outcomes.append(one.message if isinstance(one, Permit) else message)
    good = [one for one in outcomes if not isinstance(one, HsmError)]
    left = min((left for left in begun if isinstance(left, float)), default=timeout)
    return _in_order(outcomes, submit(good, left, return_exceptions, extra) if good else None)


async def _in_order(outcomes: Sequence[bytes | HsmError], answer: Awaitable[list[Any]] | None) -> list[Any]:
    answers = iter([] if answer is None else await answer)
    return [one if isinstance(one, HsmError) else next(answers) for one in outcomes]


def _judge(guard: Guard, message: Any, kind: str | None, return_exceptions: bool) -> Permit | HsmError | None:
    """Return None for a message that the gate passes."""
    if guard.passes(message, kind):
        return None
    try:
        return guard.judge(message, kind, None)
    except HsmError as error:
        if not return_exceptions:
            raise
        return error
