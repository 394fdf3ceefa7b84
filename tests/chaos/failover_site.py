"""What a failover schedule runs on: up to four members on the no-op module, and watchers of all their calls.

Watched      the levels' state machine, each of whose transitions is compared with the reference model
Attempts     every attempt on a member: which message, under which key, how it ended
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from weakref import WeakSet

from tests.support.chaos import CHAOS, Chaos, copy_of, wrap_noop
from tests.support.levels_model import Reference

from hsmcore._native import Routes
from hsmcore.base.keyring import KeyVersion
from hsmcore.base.receipt import Receipt
from hsmcore.errors import HsmError
from hsmcore.failover import breaker, health, plan
from hsmcore.failover import router as router_module
from hsmcore.failover.endpoint import Endpoint
from hsmcore.failover.levels import Levels
from hsmcore.failover.router import Router

Fault = Callable[[str, str], None]

# Times are shortened so that a thousand outages fit into minutes.
TICK_S = 0.01
BACKOFF_MAX_NS = 200_000_000


class Watched(Levels[Any]):
    """Compares with the reference after each event."""

    fault: Fault

    def attach(self, fault: Fault) -> None:
        """Begin to compare."""
        self.fault = fault
        self.depth = 0
        self.reference = Reference(self.levels, [member.level for member in self.members], self.mode)
        self.reference.permitted = self.emergency_permitted
        self.moves: list[str | None] = []
        self.said: list[str | None] = []
        self.used: set[str] = set()

    def _told(self, name: str, arguments: tuple[Any, ...], tell: Callable[[Reference], None]) -> None:
        if self.depth == 0:
            tell(self.reference)
        self.depth += 1
        try:
            getattr(super(), name)(*arguments)
        finally:
            self.depth -= 1
        if self.depth == 0:
            self._compare(name)

    def _compare(self, after: str) -> None:
        for difference in self.reference.differences(self):
            self.fault("levels", f"after {after}: {difference}")
        active = None if self.active is None else self.levels[self.active].name
        if active is not None:
            self.used.add(active)
        if (self.moves or active is not None) and (not self.moves or self.moves[-1] != active):
            self.moves.append(active)

    def _number(self, member: Any) -> int:
        return self.members.index(member)

    def started(self, member: Any, key: bytes, now: int) -> None:
        self._told("started", (member, key, now), lambda r: r.started(self._number(member), key))

    def stopped(self, member: Any, now: int) -> None:
        self._told("stopped", (member, now), lambda r: r.stopped(self._number(member)))

    def failed(self, member: Any, kind: Any, reason: str, now: int) -> None:
        others = any(m is not member and m.key == member.key for m in self.ready)
        self._told("failed", (member, kind, reason, now), lambda r: r.failed(self._number(member), kind, others=others))

    def stalled(self, member: Any, now: int) -> None:
        self._told("stalled", (member, now), lambda r: r.stalled(self._number(member)))

    def given_up(self, level: int, now: int) -> None:
        self._told("given_up", (level, now), lambda r: r.given_up(level))

    def probed(self, member: Any, good: bool, reason: str, now: int, kind: Any = "down") -> None:
        self._told("probed", (member, good, reason, now, kind), lambda r: r.probed(self._number(member), good, kind))

    def progressed(self, member: Any) -> None:
        self._told("progressed", (member,), lambda r: r.progressed(self._number(member)))

    def drain(self, member: Any, on: bool, reason: str, now: int) -> None:
        self._told("drain", (member, on, reason, now), lambda r: r.drain(self._number(member), on))

    def readmit(self, member: Any, reason: str, now: int) -> None:
        self._told("readmit", (member, reason, now), lambda r: r.readmit(self._number(member)))

    def force(self, level: int | None, reason: str, now: int) -> None:
        self._told("force", (level, reason, now), lambda r: setattr(r, "forced", level))

    def permit_emergency(self, permitted: bool, reason: str, now: int) -> None:
        self._told(
            "permit_emergency",
            (permitted, reason, now),
            lambda r: r.restrict(permitted=permitted, spent=r.spent, fault=r.fault),
        )

    def emergency_used_up(self, spent: bool, reason: str, now: int) -> None:
        self._told(
            "emergency_used_up",
            (spent, reason, now),
            lambda r: r.restrict(permitted=r.permitted, spent=spent, fault=r.fault),
        )

    def emergency_failed(self, fault: str, now: int) -> None:
        self._told(
            "emergency_failed",
            (fault, now),
            lambda r: r.restrict(permitted=r.permitted, spent=r.spent, fault=fault),
        )


class Attempts:
    """What members were asked for, seen where the router hands it over."""

    def __init__(self, fault: Fault) -> None:
        self.fault = fault
        self.exempt: set[bytes] = set()
        """Messages whose callers allow another key."""
        self.count = 0
        # Attempts with an unknown outcome, each with its key; those that never began are struck out again.
        self._bound: defaultdict[bytes, dict[object, bytes]] = defaultdict(dict)
        self._never: set[object] = set()
        self._signed: defaultdict[bytes, set[bytes]] = defaultdict(set)

    def begun(self, message: bytes, key: bytes | None) -> None:
        """A member is about to sign."""
        self.count += 1
        if key is None or message in self.exempt:
            return
        for bound in set(self._bound[message].values()) - {key}:
            self.fault("second key", f"{message!r} may have a signature by {bound.hex()[:8]}")
        if self._signed[message] - {key}:
            self.fault("second key", f"{message!r} has a signature by another key")

    def ended(
        self, attempt: object, message: bytes, key: bytes | None, result: object, endpoint: Endpoint | None = None
    ) -> None:
        """It answered: a signature, an error, or None when no caller waits any more."""
        if key is None or attempt in self._never:
            return
        if isinstance(result, bytes):
            self._signed[message].add(key)
        elif not isinstance(result, HsmError) or unsure(result):
            self._bound[message][attempt] = key
            if endpoint is not None and isinstance(result, HsmError):
                # A back end may know that nothing was sent. It says so when it has ended the call, which comes later.
                asyncio.get_running_loop().call_later(0.02, self._look_again, attempt, message, key, result, endpoint)

    def _look_again(self, attempt: object, message: bytes, key: bytes, error: HsmError, endpoint: Endpoint) -> None:
        if endpoint.is_unsigned(key, message, error):
            self._bound[message].pop(attempt, None)

    def is_bound(self, message: bytes) -> bool:
        """Whether a signature of it may exist."""
        return bool(self._bound.get(message))

    def never(self, attempt: object) -> None:
        """The engine says that the abandoned request had not begun and never will."""
        self._never.add(attempt)
        for attempts in self._bound.values():
            attempts.pop(attempt, None)


def unsure(error: HsmError) -> bool:
    """Whether a signature may exist all the same: what PKCS#11 leaves open when a call ends so, or ends never."""
    if error.status == "DEADLINE_EXCEEDED":
        return error.maybe_signed  # the engine knows whether a worker had begun, as it does of what is abandoned
    if error.status in ("HOST_LOST", "SIGNATURE_MALFORMED", "SIGNATURE_INVALID"):
        return True
    return error.call == "C_Sign" and error.error_class == "MEMBER_DOWN"


@contextmanager
def watching(fault: Fault) -> Iterator[tuple[list[Watched], Attempts]]:
    """Key managers that are made in here are watched: their levels appear in the list."""
    made: list[Watched] = []
    attempts = Attempts(fault)
    was = (plan.Levels, Endpoint.start, Router.begin_many, health.TICK_S, breaker.BACKOFF_MAX_NS, Endpoint.abandon)

    def levels(*arguments: Any, **named: Any) -> Watched:
        made.append(Watched(*arguments, **named))
        made[-1].attach(fault)
        return made[-1]

    async def start(endpoint: Endpoint) -> KeyVersion:
        version = await was[1](endpoint)
        endpoint.submit, endpoint.ask = (
            _watched(attempts, endpoint, endpoint.submit),
            _watched(attempts, endpoint, endpoint.ask),
        )
        return version

    def begin_many(router: Router, endpoint: Endpoint, batch: list[Any], *more: Any) -> asyncio.Future[list[Any]]:
        key = endpoint.key
        for message in batch:
            attempts.begun(message, key)
        future = was[2](router, endpoint, batch, *more)

        def ended(done: asyncio.Future[list[Any]]) -> None:
            results = _outcome(done)
            for number, message in enumerate(batch):
                attempts.ended(done, message, key, results[number] if isinstance(results, list) else results, endpoint)

        future.add_done_callback(ended)
        return future

    def abandon(endpoint: Endpoint, future: asyncio.Future[Any]) -> bool:
        if was[5](endpoint, future):
            return True
        attempts.never(future)
        return False

    changes: list[tuple[Any, str, Any]] = [
        (plan, "Levels", levels),
        (Endpoint, "start", start),
        (Router, "begin_many", begin_many),
        (health, "TICK_S", TICK_S),
        (breaker, "BACKOFF_MAX_NS", BACKOFF_MAX_NS),
        (Endpoint, "abandon", abandon),
    ]
    for owner, name, value in changes:
        setattr(owner, name, value)
    router_module.Routes = partial(WatchedRoutes, attempts)  # type: ignore[misc, assignment]
    try:
        yield made, attempts
    finally:
        router_module.Routes = Routes  # type: ignore[misc]
        for (owner, name, _), value in zip(changes, was, strict=True):
            setattr(owner, name, value)


class WatchedRoutes:
    """The short way, whose attempts are noted. Members that share requests have one key."""

    def __init__(self, attempts: Attempts, long: Callable[..., Any], ask: Callable[..., Any], fall: Callable[..., Any]):
        self._attempts = attempts
        self._native = Routes(long, ask, self._fell)
        self._fall = fall
        self._fallen: WeakSet[Any] = WeakSet()
        """Futures whose attempt has failed: what they end with is another one's."""
        self._key: bytes | None = None
        self._only: Endpoint | None = None
        self.pick = self._native.pick

    def aim(self, ramping: Sequence[Any], steady: Sequence[Any], **how: Any) -> None:
        places = [engine.place for engine, _, _ in (*ramping, *steady)]
        keys = {place.key for place in places}
        self._only = places[0] if len(places) == 1 else None
        if len(keys) > 1:
            self._attempts.fault("second key", "members with different keys share the requests")
        self._key = next(iter(keys), None)
        self._native.aim(ramping, steady, **how)

    def submit(self, message: Any, timeout: float | None = None, key: int = 0, extra: bytes | None = None) -> Any:
        return self._noted(message, self._native.submit(message, timeout, key, extra))

    def ask(self, message: Any, *arguments: Any) -> Any:
        return self._noted(message, self._native.ask(message, *arguments))

    def _noted(self, message: Any, asked: Any) -> Any:
        if asyncio.iscoroutine(asked):
            return asked  # the long way goes to the endpoints
        if asked not in self._fallen:
            self._attempts.begun(message, self._key)
            self._to_be_noted(message, self._key, asked)
        return asked

    def _to_be_noted(self, message: Any, key: bytes | None, asked: Any) -> None:
        only = self._only

        def ended(done: asyncio.Future[Any]) -> None:
            if done not in self._fallen:
                self._attempts.ended(done, message, key, _outcome(done), only)

        if isinstance(asked, bytes):
            self._attempts.ended(None, message, key, asked)
        else:
            asked.add_done_callback(ended)

    def _fell(
        self, asked: Any, place: Any, index: int, deadline: int, message: Any, error: HsmError, *more: Any
    ) -> Any:
        key = place.version_at(index).public_key
        if asked is None:
            self._attempts.begun(message, key)
        self._attempts.ended(object(), message, key, error, place)
        if asked is not None:
            self._fallen.add(asked)
        found = self._fall(asked, place, index, deadline, message, error, *more)
        if found is not None:
            self._fallen.add(found)
        return found


def _to_be_noted(attempts: Attempts, endpoint: Endpoint, message: Any, key: bytes | None, asked: Any) -> Any:
    if isinstance(asked, bytes):
        attempts.ended(None, message, key, asked)
    else:
        asked.add_done_callback(lambda done: attempts.ended(done, message, key, _outcome(done), endpoint))
    return asked


def _watched(attempts: Attempts, endpoint: Endpoint, inner: Callable[..., Any]) -> Callable[..., Any]:
    """A member's submit whose attempts are noted."""

    def submit(message: Any, *more: Any) -> Any:
        key = endpoint.key or endpoint.key_version.public_key
        attempts.begun(message, key)
        return _to_be_noted(attempts, endpoint, message, key, inner(message, *more))

    return submit


def _outcome(future: asyncio.Future[Any]) -> object:
    if future.cancelled():
        return None
    result = future.exception() or future.result()
    return result.signature if isinstance(result, Receipt) else result


class Modules:
    """Copies of the chaos and the no-op module: a process holds one instance of each file."""

    def __init__(self, folder: Path, count: int) -> None:
        self.members: list[Chaos] = []
        for number in range(count):
            place = folder / f"member-{number}"
            place.mkdir()
            wrapped = wrap_noop()
            wrapped = replace(wrapped, module=str(copy_of(Path(wrapped.module), place)))
            self.members.append(Chaos(place, wrapped, module=copy_of(CHAOS, place)))

    def provider(self, number: int, *, key: str | None = None, **settings: Any) -> dict[str, Any]:
        """The provider of a member; with `key`, one that holds another key."""
        member = self.members[number]
        config = member.config(settings={"verifySignatures": "always", **settings})["sequencer"]["keyManager"]
        if key is not None:
            config["config"]["moduleArgs"] = f"{member.args} args=key={key}"
        return {"name": f"member-{number}", "type": config["type"], "config": config["config"]}
