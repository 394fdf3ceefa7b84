"""A key manager at the other end of a gateway: signing for processes that must not hold the HSM."""

from __future__ import annotations

import asyncio
import sys
from base64 import b64decode
from collections.abc import Callable, Coroutine, Iterable, Sequence
from threading import get_ident
from time import monotonic_ns
from types import TracebackType
from typing import Any, Final, Literal, Self, overload

from hsmcore.base.events import Callback, EventName, Events
from hsmcore.base.keyring import KeyVersion, address_of, any_good
from hsmcore.base.receipt import Receipt, Unfinished, signature_bytes
from hsmcore.base.traceparent import TraceParent
from hsmcore.errors import (
    BadArgument,
    EmptyMessage,
    EngineClosed,
    HsmError,
    InternalError,
    KeyNotFound,
    MessageTooLarge,
    NotInitialized,
    WrongEventLoop,
)
from hsmcore.errors.batch import batch_of, each
from hsmcore.gateway.client.arguments import (
    as_bytes,
    cut,
    domain_of,
    key_id_of,
    kind_of,
    position_of,
    seconds_of,
    whole,
)
from hsmcore.gateway.client.connections import Connections
from hsmcore.gateway.client.dialing import ClientTls, GatewayAddress
from hsmcore.gateway.client.outbox import RequestOutbox
from hsmcore.gateway.client.request import ClientRequest, GatewayMember, GatewaySession, outcomes_of
from hsmcore.gateway.wire import batched, unfinished
from hsmcore.gateway.wire import messages as wire
from hsmcore.gateway.wire.batched import ClientBatchedSignature, SignBatched
from hsmcore.gateway.wire.frames import Type, WireError

Message = bytes | bytearray | memoryview

_new: Any = tuple.__new__  # a named tuple's own takes twice as long
_SIGN: Final = Type.SIGN  # to look up a member takes as long as a call

DEFAULT_ADDRESS: Final = "unix:/run/hsmcore/sign.sock"


class Client:
    """Signs with the current key of a key manager that `hsmcore gateway` serves. Holds no key and no PIN, and needs no
    PKCS#11 module; the native core for `verify` and `sign_batched`, and to be fast.

    As hsmcore.KeyManager, whose errors it raises: a failure behind the gateway is the same exception here. Belongs to
    the event loop that runs `initialize()`. A broken connection is made again and costs no request: what was open is
    sent again where that can give no second signature, else it fails and `.maybe_signed` of its error is true.
    A message is never signed under two keys.
    """

    def __init__(
        self,
        address: str | Sequence[str] = DEFAULT_ADDRESS,
        key_manager: str = "default",
        *,
        tls: ClientTls | None = None,
        connections: int = 1,
        timeout: float = 10.0,
        max_waiting: int = 65_536,
        program: str = "",
    ) -> None:
        """`address`: "unix:/path" or "tls:host:port", the second with `tls`; of several gateways, such as a fleet's, a
        list or a string with commas: one is used at a time. `key_manager`: its name at the gateway.
        `timeout`: that of requests without their own, in seconds. `max_waiting`: requests beyond those that the gateway
        allows to be open at a time. `program`: what the gateway's log calls this one. Raises BadArgument."""
        addresses = GatewayAddress.parse_all(address)
        if (tls is None) != all(one.path for one in addresses):
            raise BadArgument('tls belongs to a "tls:" address, and only to one')
        connections = whole(connections, "connections", 1, 64)
        self._timeout = seconds_of(timeout)
        self._most_waiting = whole(max_waiting, "max_waiting", 1, 1 << 24)
        program = (program or sys.argv[0].rpartition("/")[2]).encode()[:64].decode(errors="ignore")
        self._events = Events()
        self._connections = Connections(addresses, tls, key_manager, program, connections, self._events)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = 0
        """That of the event loop."""
        self._outbox: RequestOutbox | None = None
        self._session: GatewaySession | None = None
        self._told_id: str | None = None
        self._opening = asyncio.Lock()
        self._opened = self._closed = self._verifies = False

    async def initialize(self) -> None:
        """Connect. Raises MemberDown if no gateway answers, PolicyRefused and others if it refuses this client; the
        call may be repeated then. Idempotent."""
        async with self._opening:
            await self._open()

    async def _open(self) -> None:
        if self._closed:
            raise EngineClosed("the client is closed", hint="Make a new client.")
        if self._opened:
            return
        self._loop, self._thread = asyncio.get_running_loop(), get_ident()
        self._outbox = RequestOutbox(self._loop, self._most_waiting, self._connections.links, self._keys_changed)
        await self._connections.open(self._outbox)
        self._opened = True
        self._events.emit("initialized", member=self._connections.address, key_id=self._current_id())

    async def close(self) -> None:
        """Refuse new requests, wait until each open one has its answer or error, then disconnect. Idempotent."""
        already, self._closed = self._closed, True
        if already or self._outbox is None:
            return
        self._outbox.refuse()
        try:
            open_ones = list(self._outbox.unsettled())
            if open_ones:
                await asyncio.wait(open_ones)
        finally:
            await self._connections.close()
        if self._opened:
            self._events.emit("closed", member=self._connections.address)

    async def __aenter__(self) -> Self:
        await self.initialize()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def _keys_changed(self, session: GatewaySession) -> None:
        first, previous = self._session is None, self._told_id
        self._session = session
        current = self._told_id = self._current_id()
        if not first and current != previous:
            self._events.emit("key-changed", key_id=current, previous=previous)

    def _current_id(self) -> str | None:
        current = self._session.current if self._session is not None else None
        return current.id if current is not None else None

    def _require_open(self) -> RequestOutbox:
        if self._outbox is None:
            raise NotInitialized("used before initialize()")
        return self._outbox

    def _told(self) -> GatewaySession:
        if self._session is None:
            raise NotInitialized("used before initialize()")
        return self._session

    def _ready(self) -> tuple[RequestOutbox, asyncio.AbstractEventLoop]:
        outbox, loop = self._outbox, self._loop
        if outbox is None or loop is None:
            raise NotInitialized("used before initialize()")
        # The running loop is the only one of its thread. To ask asyncio for it is a system call in Python 3.11.
        if get_ident() != self._thread or not loop.is_running():
            raise WrongEventLoop("this client belongs to another event loop", hint="Make one for each event loop.")
        return outbox, loop

    def _submit(
        self, kind: Type, value: Any, timeout: float | None, key_id: str | None = None, full: bool = False
    ) -> ClientRequest:
        outbox, loop = self._ready()
        seconds = self._timeout if timeout is None else seconds_of(timeout)
        asked = None if key_id is None else key_id_of(key_id)
        count = 1 if kind is not Type.SIGN_MANY else len(value.messages)
        request = ClientRequest(kind, value, loop.create_future(), loop.time() + seconds, count, asked, full)
        if "opentelemetry.trace" in sys.modules:
            request.parent = TraceParent.current()
        outbox.submit(request)
        return request

    async def _sign(self, message: Message, timeout: float | None) -> Any:
        """As `_ask`, for what is asked most: bytes, and nothing else is said of them. With the fewest calls."""
        outbox, loop, session = self._outbox, self._loop, self._session
        here = loop is not None and get_ident() == self._thread and loop.is_running()
        good = session is not None and type(message) is bytes and 0 < len(message) <= session.message_bytes
        if not (here and good) or timeout is not None or "opentelemetry.trace" in sys.modules:
            return await self._ask(_SIGN, (message, None, None), timeout)
        assert outbox is not None  # noqa: S101  # for the type checker, as the next one
        assert loop is not None  # noqa: S101
        value, future = _new(wire.Sign, ("", 0, None, 0, message)), loop.create_future()
        request = ClientRequest(_SIGN, value, future, loop.time() + self._timeout)
        try:
            outbox.submit(request)
        except HsmError:
            await asyncio.sleep(0)  # as in `_ask`
            raise
        try:
            return await future
        except asyncio.CancelledError:
            outbox.withdraw(request)
            raise

    async def _ask(
        self, kind: Type, value: Any, timeout: float | None, key_id: str | None = None, full: bool = False
    ) -> Any:
        """`value`: of SIGN, message, kind and position as they were given."""
        if kind is _SIGN:
            value = self._sign_value(*value)
        request = None
        try:
            request = self._submit(kind, value, timeout, key_id, full)
            return await request.future
        except asyncio.CancelledError:
            if request is not None:
                self._require_open().withdraw(request)
            raise
        except HsmError:
            if request is None:
                await asyncio.sleep(0)  # who asks again and again leaves others a turn
            raise

    def _sign_value(self, message: Message, kind: str | None, position: int | None) -> wire.Sign:
        return wire.Sign(kind_of(kind), 0, position_of(position), 0, self._checked(message))

    def _checked(self, message: Message) -> bytes:
        data, session = message if type(message) is bytes else as_bytes(message), self._session
        if not data:
            raise EmptyMessage
        if session is not None and len(data) > session.message_bytes:
            raise MessageTooLarge(f"the message has {len(data)} bytes; at most {session.message_bytes} are signed")
        return data

    def sign(
        self,
        message: Message,
        timeout: float | None = None,
        *,
        kind: str | None = None,
        position: int | None = None,
        key_id: str | None = None,
    ) -> Coroutine[Any, Any, bytes]:
        """Sign one message with the current key; as KeyManager.sign.

        `timeout` in seconds; None: that of the client. `key_id`: this version of the key or not at all: else
        KeyNotCurrent. While as many requests are open as the gateway allows, the request waits within its timeout.
        """
        if kind is None and position is None and key_id is None:
            return self._sign(message, timeout)
        return self._ask(_SIGN, (message, kind, position), timeout, key_id)

    async def sign_with_receipt(
        self,
        message: Message,
        timeout: float | None = None,
        *,
        kind: str | None = None,
        position: int | None = None,
        key_id: str | None = None,
    ) -> Receipt:
        """Sign one message; as `sign`. Of the receipt, `member` is the gateway's address and `cached` is False:
        neither is told."""
        begun = monotonic_ns()
        asked = self._ask(_SIGN, (message, kind, position), timeout, key_id, full=True)
        signature, level, seq, key, address = await asked
        signed_by, public_key = ("", b"") if key is None else (key.id, key.public_key)
        return Receipt(signature, signed_by, public_key, address, level, False, monotonic_ns() - begun, seq)

    async def sign_batched(
        self, message: Message, timeout: float | None = None, kind: str | None = None
    ) -> ClientBatchedSignature:
        """Sign a message with others; as KeyManager.sign_batched. The proof is verified here, under the key that the
        gateway names. Another gateway process would give the message another place, so none is asked again. Raises
        BadArgument where no batches are signed, SignatureInvalid for a proof that shows nothing."""
        if not self._verifies:  # without it, nothing is sent
            await asyncio.to_thread(batched.prepare)
            self._verifies = True
        value = SignBatched(kind_of(kind), 0, self._checked(message))
        return await self._ask(Type.SIGN_BATCHED, value, timeout)  # type: ignore[no-any-return]

    @overload
    async def sign_many(
        self,
        messages: Iterable[Message],
        timeout: float | None = None,
        return_exceptions: Literal[False] = False,
        *,
        kind: str | None = None,
        key_id: str | None = None,
    ) -> list[bytes]: ...
    @overload
    async def sign_many(
        self,
        messages: Iterable[Message],
        timeout: float | None = None,
        return_exceptions: bool = False,
        *,
        kind: str | None = None,
        key_id: str | None = None,
    ) -> list[bytes | HsmError]: ...
    async def sign_many(
        self,
        messages: Iterable[Message],
        timeout: float | None = None,
        return_exceptions: bool = False,
        *,
        kind: str | None = None,
        key_id: str | None = None,
    ) -> Any:
        """Sign a batch; as KeyManager.sign_many. One beyond the gateway's limits goes in several frames."""
        outbox, _ = self._ready()
        named = kind_of(kind)
        batch = each(self._checked, batch_of(messages))
        most = min(self._session.batch if self._session is not None else 1, max(outbox.credits, 1))
        parts = [wire.SignMany(named, 0, 0, part) for part in cut(batch, most)]
        requests: list[ClientRequest] = []
        try:
            requests.extend(self._submit(Type.SIGN_MANY, part, timeout, key_id=key_id) for part in parts)
            found: list[bytes | HsmError] = []
            for request in requests:
                found += await outcomes_of(request, return_exceptions, len(found))
        finally:
            for request in requests:
                request.future.cancel()
                if request.future.cancelled():  # also the one that was awaited when the caller left
                    outbox.withdraw(request)
                else:
                    request.future.exception()  # it is known that there is one, or not
        return found

    async def verify(self, message: Message, signature: bytes, key_id: str | None = None) -> bool:
        """Whether `signature` is valid for `message` under the given key, or under any version that the gateway has
        told; as KeyManager.verify, whose native core it needs: here, in a thread. The gateway is not asked. Raises
        KeyNotFound, InvalidMessage."""
        session, wanted = self._told(), key_id_of(key_id)
        self._require_open().require_open()
        data, given = as_bytes(message), signature_bytes(signature)
        named = session.for_verification() if wanted is None else [session.by_id(wanted)]
        return await asyncio.to_thread(any_good, named, data, given)

    @property
    def public_key(self) -> bytes:
        """The current key's public key: 32 bytes (Ed25519) or 65 (0x04 || X || Y)."""
        return self._current().public_key

    @property
    def address(self) -> str:
        """As KeyManager.address."""
        return address_of(self.public_key)

    def keys(self) -> list[KeyVersion]:
        """The versions that the gateway has told, oldest first. `index` is the gateway's number of the version; a label
        is not told."""
        self._require_open()
        listed = self._session.keys if self._session is not None else ()
        return [KeyVersion(key.id, "", key.algorithm, key.public_key, key.version) for key in listed]

    def members(self) -> tuple[GatewayMember, ...]:
        """The gateway itself, with the key that signs now: its own members are not told. Empty before
        `initialize()`."""
        if self._session is None:
            return ()
        current, ready = self._session.current, any(link.ready for link in self._connections.links)
        signs = current is not None and not self._closed
        key, key_id = (current.public_key, current.id) if current is not None else (None, "")
        return (GatewayMember(self._connections.address, "ready" if ready else "open", signs, key, key_id),)

    def describe(self) -> dict[str, Any]:
        """What the gateway has told, as data for JSON. `client`: as which it knows this one; `inFlight`: messages that
        this client may have open. Raises NotInitialized."""
        outbox, said = self._require_open(), self._told()
        told = {"address": said.address, "client": said.client, "keyManagers": list(said.slots)}
        limits = {"inFlight": outbox.credits, "messageBytes": said.message_bytes, "batch": said.batch}
        return {**told, "instance": said.instance.hex(), **limits, "currentKeyId": self._current_id()}

    async def get_current_key_id(self) -> str:
        """The id of the key that signs."""
        return self._current().id

    async def set_current_key_id(self, key_id: str) -> None:
        """As KeyManager.set_current_key_id, for a client that may manage keys; else PolicyRefused."""
        await self._manage("set-current", key_id)

    async def generate_key(self) -> str:
        """As KeyManager.generate_key, for a client that may manage keys; else PolicyRefused."""
        return await self._manage("generate", "")

    async def deactivate_key(self, key_id: str) -> None:
        """As KeyManager.deactivate_key, for a client that may manage keys; else PolicyRefused."""
        await self._manage("deactivate", key_id)

    async def export_key_backup(self, key_id: str) -> bytes:
        """As KeyManager.export_key_backup, for a client that may manage keys; else PolicyRefused. A gateway of an
        earlier release closes the connection: what was open on it is sent again, and this raises HsmError."""
        text = await self._manage("export", key_id)
        try:
            return b64decode(text, validate=True)
        except ValueError:
            raise InternalError("the gateway's answer is no wrapped key") from None

    async def unfinished(self, domain: str) -> Unfinished | None:
        """As KeyManager.unfinished, for a client that may have the kind signed; also what the gateway has signed for
        this process. A gateway of an earlier release closes the connection: what was open on it is sent again, and
        this raises HsmError."""
        text = await self._ask(Type.MANAGE, wire.Manage(unfinished.OPERATION, domain_of(domain)), None)
        try:
            return unfinished.read(text)
        except WireError as error:
            raise InternalError(f"the gateway's answer: {error}") from None

    async def get_cache_stats(self) -> dict[str, Any]:
        """Counters of the gateway's signature cache."""
        import json

        return json.loads(await self._manage("cache-stats", ""))  # type: ignore[no-any-return]

    async def _manage(self, operation: str, key_id: str) -> str:
        value = wire.Manage(operation, key_id_of(key_id) or "")
        return await self._ask(Type.MANAGE, value, None)  # type: ignore[no-any-return]

    def _current(self) -> wire.Key:
        self._require_open()
        current = self._session.current if self._session is not None else None
        if current is None:
            raise KeyNotFound("the gateway has no current key")
        return current

    def on(self, event: EventName, callback: Callback) -> Callable[[], None]:
        """Call `callback(details)` in the event loop for each `event`: "key-changed", "member-down" and "member-up" of
        the gateway itself, "initialized", "closed". Returns how to unsubscribe."""
        return self._events.on(event, callback)
