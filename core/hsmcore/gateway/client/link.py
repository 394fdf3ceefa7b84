"""A client's connection to a gateway: bytes in, answers out."""

from __future__ import annotations

import asyncio
from typing import Final, Protocol, cast

from hsmcore.errors import HsmError, PolicyRefused
from hsmcore.gateway.client.outbox import RequestOutbox
from hsmcore.gateway.client.request import ClientRequest, GatewaySession, error_of_refusal
from hsmcore.gateway.wire import messages as wire
from hsmcore.gateway.wire.frames import GATEWAY_TYPES, Frame, Splitter, Type, WireError, frame

_HIGH_WATER: Final = 1 << 18
_ANSWERS: Final = frozenset({Type.SIGNED, Type.SIGNED_MANY, Type.DONE, Type.BATCHED})


class LinkOwner(Protocol):
    """What has the list of addresses."""

    def refused(self, at: int, holder: str) -> bool:
        """As Channel.refused, of the gateway at this address."""

    def welcomes(self, at: int, session: GatewaySession) -> None:
        """Raise KeyMismatch for a gateway of another fleet; else say where the session is."""


class ClientLink(asyncio.Protocol):
    """One connection, from its first byte to its end; another one is another Link. Belongs to the event loop."""

    def __init__(self, outbox: RequestOutbox, key_manager: str, hello: bytes, at: int, owner: LinkOwner) -> None:
        """`hello`: the frame. `at`: the place of its address in the list."""
        self._outbox, self._key_manager, self._hello = outbox, key_manager, hello
        self.at, self._owner = at, owner
        self._splitter = Splitter(GATEWAY_TYPES)
        self._transport: asyncio.Transport | None = None
        self._session: GatewaySession | None = None
        self._paused = False
        self._heard = False
        self.open: dict[int, ClientRequest] = {}
        self.withdrawn: list[int] = []
        self.going = False
        self.left_ms = 0
        """Milliseconds in which the gateway answers what is open, from its GOAWAY on."""
        self.useful = False
        """Whether it has answered a request, other than by an error."""
        self.problem: Exception | None = None
        """Why it has ended, or cannot be used."""
        loop = asyncio.get_running_loop()
        self.welcomed: asyncio.Future[None] = loop.create_future()
        """Settled by WELCOME, or the end."""
        self.unusable: asyncio.Future[None] = loop.create_future()
        """Settled by GOAWAY, or the end."""
        self.ended: asyncio.Future[None] = loop.create_future()

    @property
    def session(self) -> GatewaySession:
        """What the gateway has said of itself."""
        assert self._session is not None, "used before WELCOME"  # noqa: S101
        return self._session

    @property
    def ready(self) -> bool:
        """Whether requests can be sent."""
        return self._session is not None and not self._paused and not self.going and not self.ended.done()

    def send(self, data: bytes) -> None:
        """Send frames."""
        if self._transport is not None and data:
            self._transport.write(data)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Say hello."""
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=_HIGH_WATER)
        self._transport.write(self._hello)

    def data_received(self, data: bytes) -> None:
        """Take the frames that are whole: all answers of a read settle their requests in one go."""
        self._heard = True
        splitter, outbox = self._splitter, self._outbox
        splitter.push(data)
        try:
            for one in splitter.cut(open=self.open):
                if one.type in _ANSWERS and self._session is not None:
                    outbox.answered(self, one)
                    self.useful = True
                else:
                    self._take(one)
        except WireError as error:
            self.fail(error)
        if splitter.settled:
            outbox.signed(splitter.settled)
            self.useful = True
        if self.going:
            self.leave()
        outbox.settled()

    def _take(self, one: Frame) -> None:
        if one.type is Type.ERROR:
            if one.request and self._session is not None:
                self._outbox.answered(self, one)
            else:
                self.fail(error_of_refusal(wire.read_error(one.body)))
        elif self._session is None:
            if one.type is not Type.WELCOME:
                raise WireError(f"{one.type.name} before WELCOME")
            self._welcome(wire.read_welcome(one.body))
        elif one.type is Type.KEYS:
            self._session.learn(wire.read_keys(one.body))
            self._outbox.keys_changed(self)
        elif one.type is Type.CREDIT:
            self._outbox.credits = wire.read_credit(one.body)
        elif one.type is Type.GOAWAY:
            self.left_ms, _ = wire.read_goaway(one.body)
            self.leave()
        elif one.type is Type.PONG:
            wire.read_bytes(one.body, wire.MOST_PING)
        else:
            raise WireError(f"a second {one.type.name}")

    def _welcome(self, said: wire.Welcome) -> None:
        if self._key_manager not in said.slots:
            self.fail(PolicyRefused(f"client {said.client!r} may not use a key manager {self._key_manager!r}"))
            return
        slot = said.slots.index(self._key_manager)
        session = GatewaySession(
            said.instance, slot, said.remember_ms / 1000, said.message_bytes, said.batch, said.client, said.slots
        )
        session.learn(said.keys)
        try:
            self._owner.welcomes(self.at, session)
        except HsmError as error:
            self.fail(error)
            return
        self._session = session
        self._outbox.credits = said.credits
        _settle(self.welcomed)
        self._outbox.keys_changed(self)

    def pause_writing(self) -> None:
        """Take no requests: the gateway does not read."""
        self._paused = True

    def resume_writing(self) -> None:
        """Take requests again."""
        self._paused = False
        self._outbox.wake()

    def connection_lost(self, error: Exception | None) -> None:
        """Give back what is open."""
        if self.problem is None:
            self.problem = error or ConnectionError("the gateway closed the connection")
        for future in (self.ended, self.unusable, self.welcomed):
            _settle(future)
        self._outbox.left(self)

    def refused(self, holder: str) -> bool:
        """As Channel."""
        return self._owner.refused(self.at, holder)

    def leave(self) -> None:
        """Send no requests here any more, and end when all are answered. Idempotent."""
        self.going = True
        _settle(self.unusable)
        if not self.open and self._transport is not None:
            self._transport.close()

    def silent(self) -> bool:
        """Whether nothing was heard since the last call."""
        silent, self._heard = not self._heard, False
        return silent

    def ping(self) -> None:
        """Have the gateway say something."""
        self.send(frame(Type.PING))

    def fail(self, error: Exception) -> None:
        """End the connection for this reason. Idempotent."""
        if self.problem is None:
            self.problem = error
        self.close()

    def close(self) -> None:
        """End the connection. Idempotent."""
        if self._transport is not None:
            self._transport.abort()


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
