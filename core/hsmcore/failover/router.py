"""The way of a request through the levels.

Without a failure, a signature costs a pick and the member's own submit. Everything else runs after an exception: the
levels count the failure, the policy decides, and the request tries another member, waits, or ends with one error that
names each level's cause. A request is answered once: with the first good signature, or with an error.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from contextlib import suppress
from time import monotonic_ns
from typing import Any, Final

from hsmcore._native import Digest, Routes, freeze, timeout_ns
from hsmcore.base.keyring import KeyVersion
from hsmcore.base.receipt import Receipt
from hsmcore.errors import AlgorithmUnsupported, EngineClosed, HsmError, QueueFull
from hsmcore.failover.bindings import KeyBindings
from hsmcore.failover.breaker import SECOND, WITHHELD, Kind, kind_of
from hsmcore.failover.budget import Emergency
from hsmcore.failover.endpoint import Endpoint
from hsmcore.failover.errors import EmergencyRefused
from hsmcore.failover.events import Event
from hsmcore.failover.hedge import hedged
from hsmcore.failover.levels import EMERGENCY, Levels
from hsmcore.failover.policy import Attempts, GiveUp, Try, Wait, next_step
from hsmcore.failover.request import Request, by_module, failure_of
from hsmcore.failover.resumed import Resumed

LATE_NS: Final = SECOND // 10
"""A member that answered any request within this time is not late, even if deadlines have passed."""
Sink = Callable[[Event], None]


class Router:
    """Routes requests. Belongs to the event loop. After every change of the levels, call `settle` before the next
    await: `routes` go on as they were until then."""

    def __init__(
        self,
        levels: Levels[Endpoint],
        *,
        default_timeout: float,
        sink: Sink,
        budget: Emergency,
        operations: frozenset[str],
        hedging: bool,
        on_emergency: Callable[[str, Endpoint], None],
        bindings: KeyBindings,
    ) -> None:
        self.levels = levels
        self.budget = budget
        self.operations = operations
        self._sink = sink
        self._on_emergency = on_emergency
        self._default = default_timeout
        self._hedging = hedging
        self.bindings = bindings
        self._halve = False
        self._version = -1
        self._elsewhere = False
        """Whether a message is bound to another key than that of the members that sign now."""
        self.resumed = Resumed(levels, self.bind, self._failed, self._route)
        self.routes = Routes(self.sign, self.ask, self.resumed.fall_back)
        """What the key manager submits to: the way of a request while all is well."""
        self._changed = asyncio.Event()
        """Set at the next change of the levels, and replaced then."""
        self.version: KeyVersion | None = None
        """The key that signs now, or that signed last while no member can."""
        self.current: KeyVersion | None = None
        """The key that all members should sign with."""
        self.retired: set[bytes] = set()
        """Public keys that were deactivated."""
        self.on_key: Callable[[Endpoint], object] = lambda _endpoint: None
        """Called with each member that starts later."""
        self.closing = False
        self.check: Callable[[], object] = lambda: None
        """Raises in the wrong state, process or event loop; engines check that themselves."""
        self.hedges = 0
        self.unsigned = 0
        """Count of requests that no level signed."""

    async def sign(
        self, message: Any, timeout: float | None = None, extra: bytes | None = None, allow_other_key: bool = False
    ) -> bytes:
        """Sign with a decision for this message: whose turn it is, which key it is bound to."""
        return (await self.ask(message, timeout, extra, None, allow_other_key)).signature

    async def ask(
        self,
        message: Any,
        timeout: float | None = None,
        extra: bytes | None = None,
        only: bytes | None = None,
        allow_other_key: bool = False,
    ) -> Receipt:
        """As `sign`; the receipt names member and key. `extra` goes into the audit records. `only`: the public key that
        signs it, or none does. Raises KeyNotCurrent."""
        self.check()
        if type(message) is not bytes:
            message = freeze(message)
        request = Request(message, self.deadline(timeout), allow_other_key, extra, attempts=Attempts(only=only))
        self._look_up(request)
        endpoint = self.pick()
        if endpoint is not None:
            request.require_key(endpoint.key)
            if request.attempts.key in (None, endpoint.key):
                receipt = await self._attempt(endpoint, request)
                if receipt is not None:
                    return request.answered(receipt)
        return await self._route(request)

    def deadline(self, timeout: float | None) -> int:
        """When a request of now is over, in monotonic ns. Raises InvalidTimeout."""
        return monotonic_ns() + timeout_ns(self._default if timeout is None else timeout)

    def pick(self) -> Endpoint | None:
        """The member that takes the next request."""
        if self.levels.version != self._version:
            self.settle()
        endpoint: Endpoint | None = self.routes.pick()
        return endpoint

    def begin_many(
        self, endpoint: Endpoint, batch: list[Any], deadline: int, extra: bytes | None
    ) -> asyncio.Future[list[Any]]:
        """Submit a batch to one member."""
        seconds = self.share(max(deadline - monotonic_ns(), 1) / SECOND)
        return endpoint.signing.submit_many(batch, seconds, True, endpoint.index, extra)

    async def resume(
        self, request: Request, endpoint: Endpoint, key: bytes, error: HsmError, *, taken: bool = True
    ) -> Receipt:
        """Go on with a request whose attempt on `endpoint` with this public key failed. `taken`: the member had taken
        it."""
        if taken and isinstance(error, WITHHELD):
            self.bind((request.message,), key)
        self._failed(endpoint, key, error, request)
        return await self._route(request)

    def bind(self, messages: Iterable[bytes | Digest], key: bytes) -> None:
        """Let no other key sign these messages for BINDING_NS: a signature may exist that no caller got."""
        now = monotonic_ns()
        for message in messages:
            self.bindings.add(message, key, now)
        self._look_elsewhere()

    def is_request_s_own(self, error: HsmError) -> bool:
        """Whether the error is the request's own, so that no other member helps."""
        return kind_of(error) is None and not self._left(error)

    async def _route(self, request: Request) -> Receipt:
        try:
            while True:
                if self.closing:
                    raise EngineClosed("the key manager is closed")
                now = monotonic_ns()
                if now >= request.deadline:
                    raise failure_of(request, self.levels, late=True)
                self._look_up(request)
                step = next_step(self.levels, request.attempts, now)
                self.settle()
                if not isinstance(step, Try):
                    picked = self.pick()
                    request.require_key(None if picked is None else picked.key)
                if isinstance(step, Try):
                    receipt = await self._attempt(step.member, request)
                    if receipt is not None:
                        return request.answered(receipt)
                elif isinstance(step, Wait):
                    await self._wait(min(step.until, request.deadline), step.eager)
                elif isinstance(step, GiveUp):
                    raise failure_of(request, self.levels, late=False)
        except (HsmError, asyncio.CancelledError) as error:
            if isinstance(error, HsmError):
                self.unsigned += 1
                error.maybe_signed |= request.unsure
            bound = request.attempts.bound_to
            if bound is not None and not request.allow_other_key:
                self.bind((request.message,), bound)
            raise

    def _look_up(self, request: Request) -> None:
        """Bind a request to the key of an earlier request for the same message. Raises KeyNotCurrent."""
        if self.bindings and not request.allow_other_key and request.attempts.bound_to is None:
            request.attempts.bound_to = self.bindings.get(request.message)
            request.require_key(None)

    async def _attempt(self, endpoint: Endpoint, request: Request) -> Receipt | None:
        """Try one member. None: the attempt failed, and the levels have counted it."""
        version = endpoint.key_version
        episode = 0
        # An answer to a request from before the failure is no evidence that the member works again.
        suspect = not endpoint.trusted
        try:
            if not request.fits(version):
                raise AlgorithmUnsupported("an Ed25519 key signs no digest", member=endpoint.name)
            if endpoint.level_name == EMERGENCY:
                episode = await self._spend(endpoint, request)
                if endpoint.key != version.public_key:
                    raise EngineClosed("the emergency key was destroyed meanwhile", member=endpoint.name)
            left = max(request.deadline - monotonic_ns(), 1) / SECOND
            share = self.share(left)
            if self._hedging and version.algorithm == "ed25519":
                signed = endpoint.submit(request.message, share, version.index, request.extra)
                if isinstance(signed, bytes):
                    return self._answered(endpoint, Receipt.of(signed, version, endpoint, cached=True), episode)
                try:
                    signature, endpoint, version = await hedged(self, endpoint, version, signed, request, share)
                    receipt = Receipt.of(signature, version, endpoint)
                except WITHHELD:
                    self.bind(request.bindable, version.public_key)
                    raise
            else:
                asked = endpoint.ask(request.message, share, version.index, request.extra)
                receipt = await self._answered_by(endpoint, asked, request.bindable, version.public_key)
        except HsmError as error:
            if episode and not error.maybe_signed:
                self.budget.give_back(episode)
            self._failed(endpoint, version.public_key, error, request)
            return None
        if suspect and not endpoint.trusted:
            self.levels.succeeded(endpoint, monotonic_ns())
            self.settle()
        if request.refused is not None and request.refused[0] is not endpoint:
            refuser, refusal = request.refused
            self.report(refuser, "session", refusal)  # the request was valid: the refusal counts against the member
        return self._answered(endpoint, receipt, episode)

    def _answered(self, endpoint: Endpoint, receipt: Receipt, episode: int) -> Receipt:
        if episode:
            self._on_emergency("sign", endpoint)
        return receipt

    async def _spend(self, endpoint: Endpoint, request: Request) -> int:
        self.check_operation("sign")
        if episode := self.budget.try_spend():
            return episode
        try:
            async with asyncio.timeout((request.deadline - monotonic_ns()) / SECOND):
                return await self.budget.spend()
        except TimeoutError:
            request.deadline = monotonic_ns()  # the loop's timer may be early; try no level afterwards
            raise EmergencyRefused("its budget was not reserved in time", member=endpoint.name, hint="") from None
        except EmergencyRefused as error:
            self.levels.emergency_used_up(True, str(error.args[0]), monotonic_ns())
            self.settle()
            raise

    async def _answered_by(
        self, endpoint: Endpoint, future: asyncio.Future[Receipt], messages: Iterable[bytes | Digest], key: bytes
    ) -> Receipt:
        try:
            return await future
        except asyncio.CancelledError:
            if endpoint.abandon(future):
                self.bind(messages, key)
            raise
        except WITHHELD:
            self.bind(messages, key)
            raise

    def _failed(self, endpoint: Endpoint, key: bytes, error: HsmError, request: Request) -> None:
        """Count a failed attempt with this public key. Raises the error again if no other member helps."""
        left = self._left(error)
        if isinstance(error, QueueFull) and self._has_room(endpoint, error, request):
            return
        if error.maybe_signed and endpoint.is_unsigned(key, request.message, error):
            error.maybe_signed = False
        request.maybe_signed |= error.maybe_signed
        if error.maybe_signed and not request.allow_other_key and request.attempts.bound_to is None:
            request.attempts.bound_to = key
        if isinstance(error, AlgorithmUnsupported) and isinstance(request.message, Digest):
            request.failed_at(endpoint, error)  # a key of another level may be of another algorithm
            return
        if self.is_request_s_own(error):
            if request.refused is not None or not by_module(error):
                error.maybe_signed |= request.unsure
                if request.attempts.bound_to is not None:
                    self.bind(request.bindable, request.attempts.bound_to)
                raise error
            request.refused = endpoint, error  # another member decides whether the request is at fault, if there is one
            request.failed_at(endpoint, error)
            return
        request.failed_at(endpoint, error)
        kind = kind_of(error)
        if kind is not None and not left:
            self.report(endpoint, kind, error)

    def _has_room(self, endpoint: Endpoint, error: QueueFull, request: Request) -> bool:
        """Whether another member of the same level can take the request of a full member. Other levels are for failures
        only."""
        if self.levels.mode != "smart":
            return False
        request.failed_at(endpoint, error)
        other = self.levels.pick_for(request.attempts.bound_to, request.attempts.tried)
        return other is not None and other.level == endpoint.level

    def report(self, endpoint: Endpoint, kind: Kind, error: HsmError) -> None:
        """Count a failure in the levels."""
        now = monotonic_ns()
        if kind == "late" and (now - endpoint.busy_since < LATE_NS or endpoint.has_signed):
            return  # the caller's timeout was too short: the member signs other requests
        self.levels.failed(endpoint, kind, str(error.args[0]), now)
        self.settle()

    def _left(self, error: HsmError) -> bool:
        """Whether the member closed during the request, and not this router."""
        return (isinstance(error, EngineClosed) and not self.closing) or isinstance(error, EmergencyRefused)

    async def _wait(self, until: int, eager: bool) -> None:
        """Wait until `until` (monotonic ns) or the end; `eager`: or until the levels change."""
        seconds = (until - monotonic_ns()) / SECOND
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not self.closing:
                    await self._changed.wait()
                    if eager:
                        break

    def settle(self) -> None:
        """Pass on the levels' events, and wake waiting requests if the levels changed."""
        levels = self.levels
        if levels.events:
            events, levels.events = levels.events, []
            for event in events:
                self._sink(event)
        if levels.version == self._version:
            return
        self._version = levels.version
        ready = levels.ready
        if ready and ready[0].version is not None:
            self.version = ready[0].version
        self._halve = (
            levels.mode == "smart"
            and bool(ready)
            and sum(endpoint.trusted and endpoint.key == ready[0].key for endpoint in levels.members) > 1
        )
        self._aim()
        self.wake()

    def _aim(self) -> None:
        """Tell the short way who shares the requests; the long way decides while that takes a decision for each."""
        levels = self.levels
        self._elsewhere = self._any_elsewhere()
        closed = self._hedging or self.in_emergency
        self.routes.aim(
            [(one.signing, one.index, one.weight) for one in levels.ramping if one.member is not None],
            [(one.signing, one.index, one.weight) for one in levels.steady if one.member is not None],
            round=levels.round,
            halve=self._halve,
            decide=closed or (self._is_bound_elsewhere if self._elsewhere else None),
        )

    def _is_bound_elsewhere(self, message: Any) -> bool:
        ready = self.levels.ready
        return not ready or self.bindings.any_elsewhere((message,), ready[0].key)

    def _any_elsewhere(self) -> bool:
        ready = self.levels.ready
        return bool(ready) and self.bindings.elsewhere(ready[0].key)

    def _look_elsewhere(self) -> None:
        """Messages were bound, or are no longer."""
        if self._any_elsewhere() != self._elsewhere:
            self._aim()

    def use(self, version: KeyVersion) -> None:
        """Change the current key; the next `settle` recomputes the routing."""
        self.current = version
        self._version = -1

    def wake(self) -> None:
        """Wake every waiting request."""
        self._changed.set()
        self._changed = asyncio.Event()

    def forget_bindings(self, now: int) -> None:
        """Remove old bindings."""
        if self.bindings:
            self.bindings.forget(now)
            self._look_elsewhere()

    @property
    def in_emergency(self) -> bool:
        """Whether the emergency level signs."""
        active = self.levels.active
        return active is not None and self.levels.levels[active].name == EMERGENCY

    def check_operation(self, operation: str) -> None:
        """Raise EmergencyRefused if the emergency level is active and does not allow the operation."""
        if self.in_emergency and operation not in self.operations:
            raise EmergencyRefused(
                f"{operation} is not among the emergency level's allowedOperations",
                hint="Wait until a primary or secondary member is back.",
            )

    def share(self, seconds: float) -> float:
        """The time of an attempt: half of what is left, if another member could sign afterwards."""
        return seconds / 2 if self._halve else seconds
