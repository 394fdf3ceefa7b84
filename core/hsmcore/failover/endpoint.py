"""An endpoint of a level: a member, started or not, with the attributes that the router needs for each request."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from time import monotonic_ns
from typing import Any

from hsmcore._native import Digest
from hsmcore.base.keyring import KeyVersion
from hsmcore.base.receipt import Receipt
from hsmcore.errors import HsmError, KeyNotFound, MemberDown, NotInitialized
from hsmcore.failover.breaker import SECOND
from hsmcore.failover.latency import LatencyWatch
from hsmcore.failover.member_state import Idle, MemberState
from hsmcore.members.base import Member, NonExportable, SigningEngine
from hsmcore.members.snapshot import MemberSnapshot

Submit = Callable[..., bytes | asyncio.Future[bytes]]
Ask = Callable[..., asyncio.Future[Receipt]]


Admits = Callable[[Iterable[bytes]], Awaitable[None]]


async def _any_key(_keys: Iterable[bytes]) -> None:
    pass


def _not_started(*_arguments: object) -> Any:
    raise NotInitialized("the member has not started")


class Endpoint(MemberState):
    """Belongs to the event loop. `make` returns a new member: a stopped member cannot start again."""

    __slots__ = (
        *(
            "_complete",
            "_stopping",
            "admits",
            "ask",
            "busy_since",
            "done",
            "gives_way",
            "index",
            "lacks_key",
            "level_name",
            "lost",
        ),
        *("make", "member", "patience", "probing", "refused", "renewed", "signed", "signs", "submit"),
        *("version", "versions", "watch", "where"),
    )

    def __init__(
        self,
        name: str,
        level: int,
        interval: int,
        level_name: str,
        make: Callable[[], Member],
        where: str = "$",
        complete: Callable[[], None] = lambda: None,
        patience: int = 0,
    ) -> None:
        super().__init__(name, level, interval)
        self.patience = patience
        """Nanoseconds without an answer that are usual for this kind of device."""
        self.level_name = level_name
        self.make = make
        self.where = where
        self._complete = complete
        self.member: Member | None = None
        self._stopping: list[Member] = []
        self.version: KeyVersion | None = None
        """The key that the member signs with now."""
        self.versions: dict[bytes, KeyVersion] = {}
        """The member's keys by public key; `index` is the index in the engine's key table."""
        self.index = 0
        self.submit: Submit = _not_started
        self.ask: Ask = _not_started
        self.watch = LatencyWatch()
        self.lost: Callable[[Endpoint], None] = lambda _endpoint: None
        """Called when the member's host process has ended."""
        self.refused: Callable[[Endpoint, HsmError], None] = lambda _endpoint, _error: None
        """Called with the error when the host process cannot restart because the login is refused."""
        self.renewed: Callable[[Endpoint], None] = lambda _endpoint: None
        """Called when the member has other credentials."""
        self.gives_way: Callable[[Endpoint, HsmError], bool] = lambda _endpoint, _error: False
        """Asked whether another member takes requests that this one could only wait with: see KmsMember."""
        self.signs: Callable[[Endpoint], None] = lambda _endpoint: None
        """Called when the member signs again after that."""
        self.admits: Admits = _any_key
        """Awaited with the key that the member starts with; raises if that must not sign."""
        self.lacks_key = False
        """Whether it could not start because its token lacks the key ring's current key, which it may be given."""
        self.probing = False
        self.signed = 0
        self.done = 0
        self.busy_since = 0

    @property
    def signing(self) -> SigningEngine:
        """The engine. Raises NotInitialized."""
        if self.member is None:
            raise NotInitialized("the member has not started", member=self.name)
        return self.member.engine

    @property
    def key_version(self) -> KeyVersion:
        """The key that the member signs with. Raises NotInitialized."""
        if self.version is None:
            raise NotInitialized("the member has not started", member=self.name)
        return self.version

    @property
    def has_signed(self) -> bool:
        """Whether it has signed since the last look: `busy_since` does not know of that yet."""
        return self.member is not None and self.signing.stats()["signatures"] != self.signed

    async def start(self) -> KeyVersion:
        """Make the member and start it. A failure leaves nothing open."""
        member = self.make()
        try:
            member.require_ready()  # software to install is reported before placeholders of an example
            self._complete()
            version = await member.start()
            await self.admits([version.public_key])
        except BaseException:
            await member.stop()
            raise
        self.member = member
        self.engine = engine = member.engine
        engine.place = self
        self.submit, self.ask = engine.submit, engine.ask
        supervisor = getattr(member, "supervisor", None)
        if supervisor is not None:
            supervisor.lost = lambda: self.lost(self)
            supervisor.refused = lambda error: self.refused(self, error)
            supervisor.renewed = lambda: self.renewed(self)
        if hasattr(member, "renewed"):
            member.renewed = lambda: self.renewed(self)
        if hasattr(member, "gives_way") and hasattr(member, "signs"):
            member.gives_way = lambda error: self.gives_way(self, error)
            member.signs = lambda: self.signs(self)
        self.signed = self.done = 0
        self.busy_since = monotonic_ns()
        self.watch = LatencyWatch()
        self.versions = {}
        self.use(version)
        return version

    def use(self, version: KeyVersion) -> None:
        """Sign with this key from now on."""
        self.knows(version)
        self.version = version
        self.index = version.index
        if self.key is not None:
            self.key = version.public_key

    def knows(self, version: KeyVersion) -> None:
        """Note a key that the member has loaded."""
        self.versions[version.public_key] = version
        self.signing.signs_as(version.index, version, self.name, self.level_name)

    def version_at(self, index: int) -> KeyVersion:
        """The key of an index at the time a request was submitted; by now another key may sign."""
        return next((version for version in self.versions.values() if version.index == index), self.key_version)

    def asked_for(self, answer: Any) -> tuple[int, bytes | Digest] | None:
        """As SigningEngine.asked_for, also of a member that is being stopped."""
        for engine in (self.engine, *(member.engine for member in self._stopping)):
            found = engine.asked_for(answer)
            if found is not None:
                return found
        return None

    def abandon(self, future: Any) -> bool:
        """Give up an answer that has no waiter. Returns whether a signature may exist."""
        return self.member is None or self.member.engine.abandon(future) is not False

    def is_unsigned(self, key: bytes, message: bytes | Digest, error: HsmError) -> bool:
        """Whether a request that ended with this error has certainly left no signature under a key, although the status
        leaves it open."""
        version = self.versions.get(key)
        if error.status != "DEADLINE_EXCEEDED" or version is None:
            return False
        unsigned = getattr(self.engine, "unsigned", None)
        return unsigned is not None and bool(unsigned(version.index, message))

    def snapshot(self, *, signs: bool) -> MemberSnapshot:
        """The present state. `signs`: whether requests are routed here. Any thread."""
        breakers, version = self.open_breakers, self.version
        waits = [breaker.retry_at - monotonic_ns() for breaker in breakers if breaker.rule.probed]
        return MemberSnapshot(
            name=self.name,
            level=self.level_name,
            condition=self.condition,
            reason=self.reason,
            signs=signs,
            public_key=self.key,
            key_id=None if self.key is None or version is None else version.id,
            in_flight=self.engine.in_flight + self.engine.waiting,
            breakers={breaker.kind: breaker.state for breaker in breakers},
            next_probe_seconds=round(max(0, *waits) / SECOND, 3) if waits else None,
            member=self.member,
        )

    async def stop(self) -> None:
        """Answer every request and stop the member. Idempotent; called again after an error, it stops the rest."""
        if self.member is not None:
            self._stopping.append(self.member)
        self.member = None
        self.submit = self.ask = _not_started
        self.engine = Idle()
        for member in tuple(self._stopping):
            await member.stop()
            with suppress(ValueError):  # another call was faster
                self._stopping.remove(member)

    async def deactivate(self, version: KeyVersion) -> bool:
        """Deactivate a key on the token, by its public key: another key may have its id. Returns whether the token
        enforces it, or does not hold it. Raises HsmError."""
        member, own, enforced = self.member, self.versions.get(version.public_key), True
        if member is None:
            raise MemberDown("the member is not running", member=self.name)
        if own is not None:
            names = [own.id.partition("@")[0]]  # what path.py puts behind an id, no token knows
        else:
            lists_none = isinstance(member.token, NonExportable)  # no public keys, and each id is used once
            names = [
                record.id
                for record in await member.control.list_keys()
                if record.public_key == version.public_key
                or (lists_none and record.public_key is None and record.id == version.id)
            ]
        for key_id in names:
            with suppress(KeyNotFound):  # a key that is gone signs nothing
                enforced &= (await member.control.deactivate(key_id)).enforced
        return enforced


async def require_ready(endpoints: Sequence[Endpoint]) -> None:
    """Raise now, not in the emergency, if software of these members is missing."""
    for endpoint in endpoints:
        member = endpoint.make()
        try:
            member.require_ready()
        finally:
            await member.stop()


async def start_all(endpoints: Sequence[Endpoint]) -> list[KeyVersion | BaseException]:
    """Start members at once; how each start ended. If none starts, those that may later on start once more, in turn:
    what failed all of them at one moment, such as other software at their token store, may be over."""
    done = await asyncio.gather(*(endpoint.start() for endpoint in endpoints), return_exceptions=True)
    if not any(isinstance(result, KeyVersion) for result in done):
        for number, result in enumerate(done):
            if isinstance(result, HsmError) and result.retryable:
                [done[number]] = await asyncio.gather(endpoints[number].start(), return_exceptions=True)
    return done
