"""The connections of a client to a gateway: each is made again when it breaks."""

from __future__ import annotations

import asyncio
import os
import random
from typing import Final

from hsmcore.base.events import Events
from hsmcore.base.log import get_logger
from hsmcore.base.scope import Scope
from hsmcore.errors import HsmError, MemberDown
from hsmcore.gateway.client.dialing import ClientTls, GatewayAddress
from hsmcore.gateway.client.link import ClientLink
from hsmcore.gateway.client.outbox import RequestOutbox
from hsmcore.gateway.wire import messages as wire

_CONNECT_SECONDS: Final = 10.0
_FIRST_WAIT, _LONGEST_WAIT = 0.02, 2.0
"""Seconds before a broken connection is made again: at first, and after many failures; in truth a random part."""
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
    """So many connections, under one nonce. Emits "member-down" and "member-up" of the gateway. Belongs to one event
    loop."""

    def __init__(
        self, address: GatewayAddress, tls: ClientTls | None, key_manager: str, program: str, count: int, events: Events
    ) -> None:
        self._address, self._tls, self._key_manager, self._program = address, tls, key_manager, program
        self._count, self._events = count, events
        self._nonce = os.urandom(wire.NONCE_BYTES)
        self.links: list[ClientLink] = []
        """Live ones."""
        self._scope = Scope()
        self._outbox: RequestOutbox | None = None
        self._opened = self._down = False

    async def open(self, outbox: RequestOutbox) -> None:
        """Connect. Raises the error of the first connection that has an outcome, if that is one; the call may be
        repeated then."""
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

    async def _keep(self, outbox: RequestOutbox, first: asyncio.Future[None]) -> None:
        """Keep one connection. `first`: of all connections, the first to have an outcome settles it."""
        wait = _FIRST_WAIT
        while True:
            begun = asyncio.get_running_loop().time()
            link = ClientLink(outbox, self._key_manager, self._nonce, self._program)
            problem = await self._connect(link)
            if problem is None:
                outbox.problem = ""
                if not first.done():
                    first.set_result(None)
                await self._watch(link)
                problem = link.problem
            else:
                outbox.problem = str(problem)
                if not first.done():
                    first.set_exception(problem if isinstance(problem, HsmError) else self._unreachable(problem))
            self._tell_state(problem)
            lasted = asyncio.get_running_loop().time() - begun > _SOUND_SECONDS
            if link.useful or (lasted and link.unusable.done()):
                wait = _FIRST_WAIT
            await asyncio.sleep(random.uniform(wait / 2, wait))  # noqa: S311
            wait = min(wait * 2, _LONGEST_WAIT)

    async def _connect(self, link: ClientLink) -> Exception | None:
        """Connect and wait for WELCOME. Returns why that failed."""
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                await self._address.dial(self._tls, lambda: link)
                self.links.append(link)
                link.ended.add_done_callback(lambda _: self._forget(link))
                await link.welcomed
        except TimeoutError:
            link.fail(TimeoutError(f"no answer within {_CONNECT_SECONDS:g} s"))
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
            get_logger().info("the gateway ends", address=self._address.text, left_ms=link.left_ms)
            asyncio.get_running_loop().call_later(link.left_ms / 1000 + _ENDING_SECONDS, link.close)

    def _unreachable(self, problem: Exception) -> HsmError:
        text = f"the gateway at {self._address.text} cannot be reached: {problem}"
        hint = _CHECK if self._tls is None else _CHECK_TLS
        return MemberDown(text, status="HOST_LOST", hint=hint, maybe_signed=False)

    def _tell_state(self, problem: Exception | None) -> None:
        down = not any(link.ready for link in self.links)
        if down != self._down and self._opened:
            self._down = down
            kind, log = ("member-down", get_logger().warning) if down else ("member-up", get_logger().info)
            log(kind, member=self._address.text, problem=str(problem or ""))
            self._events.emit(kind, member=self._address.text)
