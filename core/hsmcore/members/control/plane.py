"""The control plane: rare, slow work on one token, for an event loop that must not wait."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self, TypeVar

from hsmcore.base.log import get_logger
from hsmcore.base.waiting import CallThread
from hsmcore.errors import EngineClosed, EngineForked, PinIncorrect
from hsmcore.members.control.admin import PinSource, TokenAdmin
from hsmcore.members.control.curves import Algorithm
from hsmcore.members.control.keys import Deactivate, Destroy, GenerateKey, ListKeys
from hsmcore.members.control.quirks import KeyForm, quirks_for
from hsmcore.members.control.records import Deactivation, KeyRecord, TokenAccess, TokenRecord
from hsmcore.members.control.remote import CALL_SECONDS, RemoteAdmin
from hsmcore.members.control.tokens import choose_one
from hsmcore.members.control.verb import ListTokens, Verb

if TYPE_CHECKING:
    from hsmcore.config import Pkcs11Settings

T = TypeVar("T")

IDLE_SECONDS: Final = 5.0
"""How long an idle child process is kept."""
CLOSE_SECONDS: Final = 1.5
"""How long closing waits for calls inside a module."""


class ControlPlane:
    """Runs verbs (verb.py) on one token.

    Verbs run one after the other on one thread of the plane's own; the event loop goes on while the module works. The
    first one opens the token. Cancelling an await does not stop the token: a key that was being generated exists
    afterwards.

    `pin` fetches the PIN if the process is not logged in yet (see TokenAdmin). With `isolated`, a child process loads
    the module and this one does not (see RemoteAdmin): of the environment it gets what `child_environment` says of
    `hidden` and `variables`, and a call ends after `timeout` seconds even if the module hangs. `secret` says where the
    PIN is, for the hint of a refused login. All errors are HsmError. Not usable in a forked child.
    """

    def __init__(
        self,
        access: TokenAccess,
        *,
        pin: PinSource | None = None,
        isolated: bool = False,
        hidden: frozenset[str] = frozenset(),
        variables: frozenset[str] = frozenset(),
        timeout: float = CALL_SECONDS,
        secret: str | None = None,
    ) -> None:
        self._access = access
        self._secret = secret
        self._forms: dict[str, KeyForm] = {}  # by algorithm: what the token accepted
        self._resting: asyncio.TimerHandle | None = None
        self._remote: RemoteAdmin | None = None
        if isolated:
            self._remote = RemoteAdmin(access, pin=pin, hidden=hidden, variables=variables, timeout=timeout)
        self._admin = self._remote or TokenAdmin(access, pin=pin)
        self._thread: CallThread | None = CallThread(f"hsmcore-control-{access.member or 'token'}")
        self._process = os.getpid()

    @classmethod
    def for_settings(
        cls,
        settings: Pkcs11Settings,
        *,
        log_in: bool = False,
        member: str | None = None,
        isolated: bool = False,
        hidden: frozenset[str] = frozenset(),
        timeout: float = CALL_SECONDS,
        refused: Path | None = None,
    ) -> Self:
        """A plane for the token that a configuration names. `log_in` if no engine of this process has logged in; an
        `isolated` plane always logs in, in its child. With administrator credentials it is always isolated: a process
        has one login on a token, and the engine must not get an administrator's rights. `refused`: the file that
        remembers refused PINs (`KeyManagerConfig.refused_logins`)."""
        admin = settings.admin_credentials
        isolated = isolated or admin is not None
        pin: PinSource | None = settings.resolve_pin if log_in or isolated else None
        secret = settings.pin_secret if admin is None else admin.secret
        return cls(
            TokenAccess.of(settings, member, None if refused is None else str(refused)),
            pin=pin if admin is None else admin.resolve_pin,
            isolated=isolated,
            hidden=hidden,
            variables=settings.module_variables,
            timeout=timeout,
            secret=None if secret is None else secret.describe(),
        )

    async def __aenter__(self) -> Self:
        try:
            await self._run(self._admin.open)
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Wait for calls under way, close the token, end the thread. Idempotent.

        Calls get CLOSE_SECONDS to end. Then those in a child process fail, for it is killed; one in this process is
        left behind with its thread, which closes the token if the call ever returns."""
        thread, self._thread = self._thread, None
        if thread is None or os.getpid() != self._process:
            return
        if self._resting is not None:
            self._resting.cancel()
        closing = asyncio.wrap_future(thread.submit(self._admin.close))
        thread.end()
        try:
            if not (await asyncio.wait({closing}, timeout=CLOSE_SECONDS))[0]:
                if self._remote is None:  # the interpreter does not wait for it either
                    closing.add_done_callback(_closed_late)
                    get_logger().error("a call hangs in the module: its thread is left", member=self._access.member)
                    return
                self._remote.abandon()
            await closing
        except BaseException:
            if self._remote is not None:
                self._remote.abandon()
            raise
        thread.join()  # it is idle: this takes microseconds

    async def do(self, verb: Verb[T]) -> T:
        """Run a verb (verb.py). Raises HsmError."""
        return await self._run(lambda: self._do(verb))

    def _do(self, verb: Verb[T]) -> T:
        return self._admin.do(verb) if isinstance(self._admin, RemoteAdmin) else verb.perform(self._admin)

    async def find_token(self) -> TokenRecord:
        """The one token that is meant, found without a login. Raises TokenNotFound and TokenAmbiguous, which list the
        candidates."""
        return choose_one(self._access, await self.list_tokens())

    async def list_tokens(self) -> list[TokenRecord]:
        """As ListTokens, for this plane's module."""
        return await self.do(ListTokens(self._access.module_path, self._access.module_args))

    async def list_keys(self) -> list[KeyRecord]:
        return await self.do(ListKeys())

    async def generate_key(
        self, algorithm: Algorithm, label: str, key_id: bytes | None = None, *, extractable: bool = False
    ) -> KeyRecord:
        """As GenerateKey, in the form that the token accepted before."""
        form = self._forms.get(algorithm)
        record, self._forms[algorithm] = await self.do(GenerateKey(algorithm, label, key_id, extractable, form))
        return record

    async def deactivate(self, key_id: str) -> Deactivation:
        return await self.do(Deactivate(key_id))

    async def destroy(self, key_id: str) -> None:
        await self.do(Destroy(key_id))

    async def _run(self, work: Callable[[], T]) -> T:
        if os.getpid() != self._process:
            raise EngineForked("this control plane belongs to the parent process")
        if self._thread is None:
            raise EngineClosed("the control plane is closed")
        loop = asyncio.get_running_loop()
        try:
            return await self._thread.run(work)
        except PinIncorrect as error:
            if self._secret is not None and error.ckr is not None:
                error.hint = quirks_for(self._access.quirks).wrong_pin_hint(self._secret)
            raise
        finally:
            if self._remote is not None:
                self._rest_later(loop)

    def _rest_later(self, loop: asyncio.AbstractEventLoop) -> None:
        """End an isolated module's child when no verb has run for IDLE_SECONDS."""
        if self._resting is not None:
            self._resting.cancel()
        self._resting = loop.call_later(IDLE_SECONDS, self._rest)

    async def rest(self) -> None:
        """End an isolated module's child now, after the verbs under way. The next verb starts another."""
        if self._thread is not None and self._remote is not None:
            await self._thread.run(self._admin.close)

    def _rest(self) -> None:
        self._resting = None
        if self._thread is not None:
            self._thread.submit(self._admin.close)


def _closed_late(closing: asyncio.Future[None]) -> None:
    error = None if closing.cancelled() else closing.exception()
    if error is not None:
        get_logger().error("the token was not closed", error=str(error))


def find_token(settings: Pkcs11Settings, member: str, hidden: frozenset[str]) -> TokenRecord:
    """The one token that matches all of a configuration's selectors. Blocks: a child process loads the module, without
    a login and without the environment variables `hidden`. Raises HsmError."""
    access = TokenAccess.of(settings, member)
    admin = RemoteAdmin(access, hidden=hidden, variables=settings.module_variables)
    return choose_one(access, admin.do(ListTokens(access.module_path, access.module_args)))
