"""The connections of a client to a gateway: each is made again when it breaks, at the next address of the list."""

from __future__ import annotations

import asyncio
import os
import random
from typing import Final

from hsmcore.base.events import Events
from hsmcore.base.log import get_logger
from hsmcore.base.scope import Scope
from hsmcore.errors import HsmError, KeyMismatch, MemberDown
from hsmcore.gateway.client.dialing import ClientTls, GatewayAddress
from hsmcore.gateway.client.link import ClientLink
from hsmcore.gateway.client.outbox import RequestOutbox
from hsmcore.gateway.client.request import GatewaySession
from hsmcore.gateway.wire import messages as wire

_CONNECT_SECONDS: Final = 10.0
_TRY_SECONDS: Final = 1.0
"""As _CONNECT_SECONDS, where there are other addresses: at first, and twice as long each time when all were tried."""
_FIRST_WAIT, _LONGEST_WAIT = 0.02, 2.0
"""Seconds before a connection is made when all addresses were tried: at first, and after many failures; in truth a
random part."""
_NEAR_WAIT: Final = 0.05
"""The longest one at a Unix socket that is the only address: to connect there costs microseconds. Not after a refusal,
which the gateway records."""
_SEEKING_WAIT: Final = 0.5
"""The longest one while gateways answer, of which none holds the epoch."""
_SOUND_SECONDS: Final = 1.0
"""A connection that has lasted for so long was no failure, or one that has answered anything."""
_PING_SECONDS: Final = 15.0
_ENDING_SECONDS: Final = 1.0
_CHECK: Final = "Check that it runs, and who may connect."
_CHECK_TLS: Final = (
    "Check that it runs, and the files of ClientTls: whether they can be read, are in time, and come from authorities "
    "that the two sides trust. A gateway says in its audit log whom it refused, and why."
)


class Connections:
    """So many connections, under one nonce, to one gateway of the list at a time. Emits "member-down", when none
    answers, and "member-up". Belongs to one event loop."""

    def __init__(
        self,
        addresses: tuple[GatewayAddress, ...],
        tls: ClientTls | None,
        key_manager: str,
        program: str,
        count: int,
        events: Events,
    ) -> None:
        self._addresses, self._tls, self._key_manager = addresses, tls, key_manager
        self._count, self._events = count, events
        self._hello = wire.hello(os.urandom(wire.NONCE_BYTES), program)
        self.links: list[ClientLink] = []
        """Live ones."""
        self._at = 0
        """Where connections are made now."""
        self._tried: set[int] = set()
        """Addresses that were of no use since a gateway was."""
        self._rounds = 0
        """How often all were."""
        self._not_before = 0.0
        """When the next round begins, as the event loop's time."""
        self._problems: dict[int, Exception] = {}
        """Why there is no connection, by address."""
        self._last: GatewaySession | None = None
        """At the last gateway."""
        self._scope = Scope()
        self._outbox: RequestOutbox | None = None
        self._opened = self._down = False

    @property
    def address(self) -> str:
        """Of the gateway that is used now."""
        return self._addresses[self._at].text

    async def open(self, outbox: RequestOutbox) -> None:
        """Connect. Raises why no address of the list is of use, when all were tried; the call may be repeated then."""
        self._outbox = outbox
        first: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        for _ in range(self._count):
            self._scope.start(self._keep(outbox, first), failed="a connection is not kept")
        try:
            await first
        except BaseException:
            await self.close()
            raise
        self._opened = True

    async def close(self) -> None:
        """Disconnect; what is open fails. Idempotent."""
        await self._scope.close()
        ready = next((link for link in self.links if link.ready), None)
        if ready is not None and self._outbox is not None:
            ready.send(self._outbox.acknowledgement())  # so that the gateway need not keep the last answers
            await asyncio.sleep(0)
        for link in self.links:
            link.close()
        if self._outbox is not None:
            self._outbox.end()
        if self.links:
            await asyncio.wait([link.ended for link in self.links], timeout=_ENDING_SECONDS)
        self.links.clear()
        self._problems.clear()
        self._begin_again()

    async def _keep(self, outbox: RequestOutbox, first: asyncio.Future[None]) -> None:
        """Keep one connection. `first`: of all connections, the first to have an outcome settles it."""
        loop = asyncio.get_running_loop()
        while True:
            begun = loop.time()
            link = ClientLink(outbox, self._key_manager, self._hello, self._at, self)
            problem = await self._connect(link)
            if problem is None:
                outbox.problem = ""
                self._problems.pop(link.at, None)
                if not first.done():
                    first.set_result(None)
                await self._watch(link)
                problem = link.problem
                sound = link.useful or (loop.time() - begun > _SOUND_SECONDS and link.unusable.done())
                if sound and not outbox.seeking:
                    self._begin_again()
                if link.going or not sound:
                    self._next(link.at, problem=problem)
            else:
                self._fails(link.at, problem)
                self._next(link.at, problem=problem)
                outbox.problem = str(problem)
                if self._rounds and not first.done():
                    first.set_exception(self._failed())
            self._tell_state(problem)
            await asyncio.sleep(self._pause(loop.time()))

    def _pause(self, now: float) -> float:
        """How long to wait before the next connection is made."""
        return max(random.uniform(_FIRST_WAIT / 2, _FIRST_WAIT), self._not_before - now)  # noqa: S311

    async def _connect(self, link: ClientLink) -> Exception | None:
        """Connect and wait for WELCOME. Returns why that failed."""
        seconds = _CONNECT_SECONDS
        if len(self._addresses) > 1:
            seconds = min(_TRY_SECONDS * 2.0**self._rounds, seconds)
        try:
            async with asyncio.timeout(seconds):
                await self._addresses[link.at].dial(self._tls, lambda: link)
                self.links.append(link)
                link.ended.add_done_callback(lambda _: self._forget(link))
                await link.welcomed
        except TimeoutError:
            link.fail(TimeoutError(f"no answer within {seconds:g} s"))
        except (OSError, HsmError) as error:
            link.fail(error)
        return link.problem

    def _forget(self, link: ClientLink) -> None:
        if link in self.links:
            self.links.remove(link)

    async def _watch(self, link: ClientLink) -> None:
        """Wait until no more can be sent on a connection. One that is silent for long ends."""
        self._tell_state(None)
        pinged = False
        while not link.unusable.done():
            await asyncio.wait([link.unusable], timeout=_PING_SECONDS)
            if not link.silent():
                pinged = False
            elif pinged:
                link.fail(TimeoutError("the gateway is silent"))
            else:
                link.ping()
                pinged = True
        if link.going and not link.ended.done():
            self._scope.start(self._end(link), failed="a connection did not end")

    async def _end(self, link: ClientLink) -> None:
        """Give a gateway time to answer what is open, then disconnect."""
        get_logger().info("the gateway is left", address=self._addresses[link.at].text, left_ms=link.left_ms)
        await asyncio.wait([link.ended], timeout=link.left_ms / 1000 + _ENDING_SECONDS)
        link.close()

    # Which address is next.

    def refused(self, at: int, holder: str) -> bool:
        """As Channel.refused, of the gateway at this address."""
        if len(self._addresses) == 1:
            return False
        if self._named(holder) == [at]:
            return True  # it is the holder, and not sure of it
        if at == self._at:
            if self._outbox is not None and not self._outbox.seeking:
                self._begin_again()
            self._next(at, holder)
        # Also where another connection has gone on before: this one would be refused again and again.
        for link in self.links:
            if link.at == at:
                link.leave()
        return True

    def _named(self, host: str) -> list[int]:
        return [at for at, one in enumerate(self._addresses) if host and one.is_of(host)]

    def _begin_again(self) -> None:
        self._tried.clear()
        self._rounds = 0

    def _next(self, at: int, holder: str | None = None, problem: Exception | None = None) -> None:
        """Go on to the next address that was not tried, unless another connection has, or has no trouble here. When all
        were tried, the next round begins some time later. `holder`: goes first; None: it was no host that refused.
        `problem`: why the connection is of no use."""
        now = asyncio.get_running_loop().time()
        if at != self._at or now < self._not_before:
            return
        self._tried.add(at)
        count = len(self._addresses)
        if holder is None and any(link.ready and link.at == at for link in self.links):
            count = 1
        others = [(at + step) % len(self._addresses) for step in range(1, count)] or [at]
        left = [one for one in others if one not in self._tried]
        if not left:
            self._tried.clear()
            left = others
            most = _LONGEST_WAIT if self._is_down else _SEEKING_WAIT
            if len(self._addresses) == 1 and self._addresses[0].path and not isinstance(problem, HsmError):
                most = _NEAR_WAIT
            wait = min(_FIRST_WAIT * 2.0**self._rounds, most)
            self._not_before = now + random.uniform(wait / 2, wait)  # noqa: S311
            self._rounds += 1
        self._at = next((one for one in self._named(holder or "") if one in left), left[0])

    def welcomes(self, at: int, session: GatewaySession) -> None:
        """As LinkOwner."""
        session.address = self._addresses[at].text
        last = self._last
        if last is not None and last.address != session.address:
            known, listed = last.by_public_key.keys(), session.by_public_key.keys()
            if known and listed and known.isdisjoint(listed):
                text = f"the gateway at {session.address} has none of the keys of that at {last.address}"
                raise KeyMismatch(text, hint="It belongs to another fleet: take it off the list.")
        self._last = session

    def _fails(self, at: int, problem: Exception) -> None:
        """No connection can be made there. That is told once."""
        before, self._problems[at] = self._problems.get(at), problem
        if len(self._addresses) > 1 and type(before) is not type(problem):
            get_logger().warning("a gateway cannot be used", address=self._addresses[at].text, problem=str(problem))

    def _failed(self) -> HsmError:
        """Return why no gateway can be used."""
        own = [problem for problem in self._problems.values() if isinstance(problem, HsmError)]
        if len(own) == len(self._problems):
            return own[0]
        texts = [
            f"the gateway at {self._addresses[at].text} cannot be reached: {why}" for at, why in self._problems.items()
        ]
        hint = _CHECK if self._tls is None else _CHECK_TLS
        return MemberDown("; ".join(texts), status="HOST_LOST", hint=hint, maybe_signed=False)

    @property
    def _is_down(self) -> bool:
        """Whether no gateway answers. That of several is known when all were tried."""
        ready = any(link.ready for link in self.links)
        return not ready and (len(self._addresses) == 1 or len(self._problems) == len(self._addresses))

    def _tell_state(self, problem: Exception | None) -> None:
        down = self._is_down
        if down != self._down and self._opened:
            self._down = down
            kind, log = ("member-down", get_logger().warning) if down else ("member-up", get_logger().info)
            log(kind, member=self.address, problem=str(problem or ""))
            self._events.emit(kind, member=self.address)
