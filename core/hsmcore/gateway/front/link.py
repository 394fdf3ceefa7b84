"""What Vault's face asks the key managers: hsmcore-wire, one connection for each client that asks.

It is a short one, to the process that has started this one: it breaks only when that process wants it to, so nothing
is sent again.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import Any, Final, NamedTuple, cast

import orjson

from hsmcore.base.traceparent import TraceParent
from hsmcore.errors import HsmError, InternalError, KeyNotFound, MemberDown, PolicyRefused, QueueFull
from hsmcore.gateway.client.request import error_of_refusal
from hsmcore.gateway.front.core import Core
from hsmcore.gateway.version_number import Version, is_own, own_number
from hsmcore.gateway.wire import messages as wire
from hsmcore.gateway.wire.frames import GATEWAY_TYPES, Frame, Label, Splitter, Type, WireError, frame, labelled, traced

_ACK_EVERY: Final = 64
_HIGH_WATER: Final = 1 << 18
_CHANGE_SECONDS: Final = 0.1


class Trail(NamedTuple):
    """By what a request is found in the audit log."""

    parent: TraceParent | None
    label: Label

    def along(self, made: bytes) -> bytes:
        """Return a request's frame that says it."""
        made = labelled(made, self.label)
        return made if self.parent is None else traced(made, self.parent)


class CoreLink(asyncio.Protocol):
    """A connection to the key managers, as one client. Belongs to one event loop."""

    def __init__(self, generation: int) -> None:
        """`generation`: of the list of clients that it was made with."""
        self.generation = generation
        self._splitter = Splitter(GATEWAY_TYPES)
        self._transport: asyncio.Transport | None = None
        self._waiting: dict[int, asyncio.Future[Frame]] = {}
        self._number = self._answered = 0
        self._room = asyncio.Event()
        self._room.set()
        self.welcome: asyncio.Future[wire.Welcome] = asyncio.get_running_loop().create_future()
        self.keys: tuple[wire.Key, ...] = ()
        self.open: dict[int, int] = {}
        """Messages that are asked for and not answered, by slot."""
        self.problem: HsmError | None = None
        """Why nothing more can be asked."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Say hello."""
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=_HIGH_WATER)
        self._transport.write(wire.hello(os.urandom(wire.NONCE_BYTES), "vault"))

    def pause_writing(self) -> None:
        """The key managers' process does not read."""
        self._room.clear()

    def resume_writing(self) -> None:
        """It reads again."""
        self._room.set()

    def data_received(self, data: bytes) -> None:
        """Take the frames that are whole."""
        try:
            for one in self._splitter.feed(data):
                self._take(one)
        except WireError as error:
            self._fail(InternalError(str(error)))

    def _take(self, one: Frame) -> None:
        waiting = self._waiting.get(one.request)
        if waiting is not None:
            if not waiting.done():
                waiting.set_result(one)
        elif one.type is Type.WELCOME:
            said = wire.read_welcome(one.body)
            self.keys = said.keys
            self.welcome.set_result(said)
        elif one.type is Type.KEYS:
            self.keys = wire.read_keys(one.body)
        elif one.type is Type.GOAWAY:
            self.leave()
        elif one.type is Type.ERROR and not one.request:
            self._fail(error_of_refusal(wire.read_error(one.body)))

    def _fail(self, error: HsmError) -> None:
        if self.problem is None:
            self.problem = error
        if self._transport is not None:
            self._transport.abort()

    def connection_lost(self, _error: Exception | None) -> None:
        """What is open has no answer."""
        if self.problem is None:
            text = "the connection to the key managers broke"
            asked = self.welcome.done()
            self.problem = MemberDown(text, status="HOST_LOST", hint="", maybe_signed=asked)
        self._room.set()
        open_ones: list[asyncio.Future[Any]] = [self.welcome, *self._waiting.values()]
        for waiting in open_ones:
            if not waiting.done():
                waiting.set_exception(self.problem)
        self.welcome.exception()  # it may be that nobody waits for it

    @property
    def serves(self) -> bool:
        """Whether something may be asked."""
        return self.problem is None

    def leave(self) -> None:
        """Ask no more, and end when all is answered. Idempotent."""
        if self.problem is None:
            self.problem = MemberDown("the gateway's clients have changed", status="HOST_LOST", hint="Ask again.")
        if not self._waiting and self._transport is not None:
            self._transport.close()

    async def ask(self, make: Callable[[int], bytes], slot: int, count: int = 1) -> Frame:
        """Return the answer to a request. `make`: its frame, of its number; `count`: its messages. Raises the error
        that it is answered with, and QueueFull while as many are open as may be."""
        said = await self.welcome
        if self.open.get(slot, 0) + count > said.credits:
            raise _full(f"client {said.client!r} has {self.open[slot]} requests open and may have {said.credits}")
        self.open[slot] = self.open.get(slot, 0) + count
        try:
            await self._room.wait()
            if self.problem is not None:
                raise self.problem
            return await self._answer(make)
        finally:
            self.open[slot] -= count

    async def _answer(self, make: Callable[[int], bytes]) -> Frame:
        assert self._transport is not None  # noqa: S101  # for the type checker
        self._number += 1
        number = self._number
        waiting: asyncio.Future[Frame] = asyncio.get_running_loop().create_future()
        self._waiting[number] = waiting
        self._transport.write(make(number))
        try:
            found: Frame = await waiting
        except asyncio.CancelledError:
            self._transport.write(frame(Type.CANCEL, number))
            raise
        finally:
            del self._waiting[number]
            self._acknowledge()
        if found.type is Type.ERROR:
            refusal = wire.read_error(found.body)
            raise (
                InternalError(refusal.text, maybe_signed=refusal.maybe_signed)
                if (refusal.status == "OK")
                else error_of_refusal(refusal)
            )
        return found

    def _acknowledge(self) -> None:
        self._answered += 1
        if self._answered >= _ACK_EVERY and self._transport is not None:
            self._answered = 0
            self._transport.write(frame(Type.ACK, min(self._waiting, default=self._number + 1)))
        if self.problem is not None:
            self.leave()


class RemoteKey(NamedTuple):
    """A key manager, as one client has it."""

    link: CoreLink
    slot: int

    @property
    def credits(self) -> int:
        """Messages that the client may have open."""
        return self.link.welcome.result().credits

    @property
    def batch(self) -> int:
        """Messages of a batch."""
        return self.link.welcome.result().batch

    @property
    def keys(self) -> list[wire.Key]:
        """Its versions, as far as they were told."""
        return [key for key in self.link.keys if key.slot == self.slot]

    @property
    def current(self) -> wire.Key:
        """The version that signs. Raises MemberDown."""
        for key in self.keys:
            if key.current:
                return key
        raise MemberDown("no key signs at present")

    def algorithm(self, version: int) -> str:
        """Return that of a version which has signed."""
        return next((key for key in self.keys if key.version == version), self.keys[0]).algorithm

    async def ask(self, make: Callable[[int], bytes], count: int = 1) -> Frame:
        """As CoreLink.ask."""
        return await self.link.ask(make, self.slot, count)

    async def number(self, version: int) -> int:
        """Return the number of a version that has signed. One that has just become the current one may have signed
        before the key managers' process had read its number."""
        if is_own(version) and not any(key.version == version for key in self.keys):
            for one in await self.versions():
                if own_number(one.key.public_key) == version:
                    return one.number
        return version

    async def versions(self) -> list[Version]:
        """Return the versions that sign or verify, the one that signs first."""
        asked = wire.Manage("versions", "")
        answer = await self.ask(lambda number: wire.manage(number, asked, slot=self.slot), 0)
        return [Version.of_json(one) for one in orjson.loads(answer.body)]

    async def version(self, number: int) -> Version:
        """Return a version by its number. Raises KeyNotFound."""
        known: Any = [Version(key.version, key, None) for key in self.keys]
        for versions in (known, None):
            listed = await self.versions() if versions is None else versions
            # A number made of the public key holds, also when the key ring has given the key another one since.
            for own in (False, True):
                for one in listed:
                    if number == (own_number(one.key.public_key) if own else one.number):
                        return cast("Version", one)
        raise KeyNotFound(f"the key has no version {number}", hint="")


def _full(text: str) -> QueueFull:
    error = QueueFull(text, hint="Send the request again later.")
    error.retry_after_ms = 100
    return error


class Links:
    """The connections of a front to the key managers. Belongs to one event loop."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._links: dict[str, CoreLink] = {}

    async def key(self, client: str, name: str, peer: str) -> RemoteKey:
        """Return a key manager, as a client that may use it has it. Raises HsmError."""
        try:
            link = await self._link(client, peer)
        except MemberDown:  # the clients have just changed there, and are about to change here
            await asyncio.sleep(_CHANGE_SECONDS)
            link = await self._link(client, peer)
        slots = link.welcome.result().slots
        if name not in slots:
            raise PolicyRefused(f"client {client!r} may not use a key manager {name!r:.40}", hint="")
        return RemoteKey(link, slots.index(name))

    async def _link(self, client: str, peer: str) -> CoreLink:
        link = self._links.get(client)
        if link is None or not link.serves or link.generation != self._core.clients.generation:
            if link is not None:
                link.leave()
            link = self._links[client] = CoreLink(self._core.clients.generation)
            own = self._core.connection("vault", client, peer)
            await asyncio.get_running_loop().connect_accepted_socket(lambda: link, own)
        await asyncio.shield(link.welcome)
        return link

    def close(self) -> None:
        """End them all, when what is open is answered."""
        for link in self._links.values():
            link.leave()
