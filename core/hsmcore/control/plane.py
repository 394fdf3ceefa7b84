"""The control plane: rare, slow work on one token, for an event loop that must not wait."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import TYPE_CHECKING, Final, ParamSpec, Protocol, Self, TypeVar

from hsmcore.control.admin import PinSource, TokenAdmin
from hsmcore.control.backup import WRAPPING_KEY_LABEL
from hsmcore.control.curves import Algorithm
from hsmcore.control.records import Deactivation, KeyRecord, TokenRecord, TokenSelector
from hsmcore.control.remote import CALL_SECONDS, RemoteAdmin
from hsmcore.control.tokens import none_or_several
from hsmcore.errors import EngineClosed, EngineForked, PinIncorrect

if TYPE_CHECKING:
    from hsmcore.config import Pkcs11Settings

P = ParamSpec("P")
T = TypeVar("T")

IDLE_SECONDS: Final = 5.0
"""How long a child process with nothing to do is kept."""
CLOSE_SECONDS: Final = 5.0
"""How long closing lets an isolated module go on with what it is doing."""


class Admin(Protocol):
    """What does the work, blocking: TokenAdmin or RemoteAdmin."""

    def open(self) -> Self: ...
    def close(self) -> None: ...
    def list_tokens(self) -> list[TokenRecord]: ...
    def list_keys(self) -> list[KeyRecord]: ...
    def generate_key(
        self, algorithm: Algorithm, label: str, key_id: bytes | None = None, *, extractable: bool = False
    ) -> KeyRecord: ...
    def deactivate(self, key_id: str) -> Deactivation: ...
    def destroy(self, key_id: str) -> None: ...
    def export_wrapped(self, key_id: str, wrapping_label: str = WRAPPING_KEY_LABEL) -> bytes: ...
    def import_wrapped(self, blob: bytes, key_id: str | None = None, label: str | None = None) -> KeyRecord: ...
    def sweep(self, key_id: str, *, nameless: bool) -> int: ...
    def new_key_id(self) -> bytes: ...
    def prove(self, key_id: str, message: bytes) -> bytes: ...
    def why_no_backup(self, algorithm: str) -> str | None: ...
    def generate_sealed(self, label: str, key_id: bytes, seal_to: Sequence[bytes]) -> tuple[KeyRecord, list[bytes]]: ...
    def transport_key(self) -> bytes: ...
    def import_transported(self, label: str, key_id: bytes, blob: bytes) -> KeyRecord: ...
    def import_sealed(self, label: str, key_id: bytes, sealed: bytes, recovery: bytearray) -> KeyRecord: ...


class ControlPlane:
    """Key search, generation, deactivation and backup on one token.

    Every call runs on one thread of the plane's own, one after the other; python-pkcs11 lets the event loop go on
    meanwhile. The token is opened by the first call. Cancelling an await does not take back what the token is doing:
    a key that was being generated exists afterwards.

    `quirks` is a name from the native core's table, `pin` fetches the PIN if the process is not logged in yet (see
    TokenAdmin), `member` goes into errors. With `isolated`, the module is loaded by a child process and not by this
    one (see RemoteAdmin): `hidden` names the environment variables that it must not inherit, and a call ends after
    `timeout` seconds even if the module hangs. `secret` says where the PIN is, for whoever is refused. All errors are
    HsmError. Not usable in a forked child.
    """

    makes_whole_keys = False  # two objects, one after the other

    def __init__(
        self,
        module_path: str,
        token: TokenSelector,
        quirks: str | None = None,
        *,
        pin: PinSource | None = None,
        module_args: str | None = None,
        member: str | None = None,
        isolated: bool = False,
        hidden: frozenset[str] = frozenset(),
        timeout: float = CALL_SECONDS,
        mechanisms: Mapping[str, int] | None = None,
        secret: str | None = None,
    ) -> None:
        self._secret = secret
        self._selector = token
        self._member = member
        self._remote: RemoteAdmin | None = None
        self._resting: asyncio.TimerHandle | None = None
        self._admin: Admin
        if isolated:
            self._admin = self._remote = RemoteAdmin(
                module_path,
                token,
                quirks=quirks,
                pin=pin,
                module_args=module_args,
                member=member,
                hidden=hidden,
                timeout=timeout,
                mechanisms=mechanisms,
            )
        else:
            self._admin = TokenAdmin(
                module_path,
                token,
                quirks=quirks,
                pin=pin,
                module_args=module_args,
                member=member,
                mechanisms=mechanisms,
            )
        self._thread: ThreadPoolExecutor | None = ThreadPoolExecutor(
            max_workers=1, thread_name_prefix=f"hsmcore-control-{member or 'token'}"
        )
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
    ) -> Self:
        """A plane for the token that a configuration names. `log_in` if no engine of this process has logged in; an
        `isolated` one always does, in its child. With credentials of its own it is always isolated: a process has one
        login on a token, and the engine's must not be able to do what an administrator can."""
        admin = settings.admin_credentials
        isolated = isolated or admin is not None
        pin: PinSource | None = settings.resolve_pin if log_in or isolated else None
        secret = settings.pin_secret if admin is None else admin.secret
        return cls(
            settings.module_path,
            TokenSelector.of(settings),
            settings.quirks,
            pin=pin if admin is None else admin.resolve_pin,
            module_args=settings.initialize_args,
            member=member,
            isolated=isolated,
            hidden=hidden,
            timeout=timeout,
            mechanisms=settings.vendor_mechanisms,
            secret=None if secret is None else secret.describe(),
        )

    async def __aenter__(self) -> Self:
        try:
            await self._run(self._admin.open)
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Wait for calls under way, close the token, end the thread. Doing it twice is no error.

        In a child process, calls get CLOSE_SECONDS to end; then it is killed and they fail."""
        thread, self._thread = self._thread, None
        if thread is None or os.getpid() != self._process:
            return
        if self._resting is not None:
            self._resting.cancel()
        loop = asyncio.get_running_loop()
        overdue = loop.call_later(CLOSE_SECONDS, self._remote.abandon) if self._remote is not None else None
        try:
            await loop.run_in_executor(thread, self._admin.close)
        except BaseException:
            if self._remote is not None:
                self._remote.abandon()
            thread.shutdown(wait=False)
            raise
        finally:
            if overdue is not None:
                overdue.cancel()
        thread.shutdown()  # it is idle: this takes microseconds

    async def list_tokens(self) -> list[TokenRecord]:
        """Every token that the module shows. Nobody logs in for that."""
        return await self._run(self._admin.list_tokens)

    async def find_token(self) -> TokenRecord:
        """The one token that is meant. Raises TokenNotFound and TokenAmbiguous, which list the candidates."""
        tokens = await self.list_tokens()
        found = self._selector.choose(tokens)
        if len(found) != 1:
            raise none_or_several(found, tokens, self._selector, self._member)
        return found[0]

    async def list_keys(self) -> list[KeyRecord]:
        """Every private key on the token, by label, then id."""
        return await self._run(self._admin.list_keys)

    async def generate_key(
        self, algorithm: Algorithm, label: str, key_id: bytes | None = None, *, extractable: bool = False
    ) -> KeyRecord:
        """Make a key pair that can only sign. Its CKA_ID is random unless given. `extractable` lets the HSM wrap the
        key for a backup; it can't be changed afterwards."""
        return await self._run(self._admin.generate_key, algorithm, label, key_id, extractable=extractable)

    async def deactivate(self, key_id: str) -> Deactivation:
        """Take CKA_SIGN away from a key; the result says whether the token enforces that from now on."""
        return await self._run(self._admin.deactivate, key_id)

    async def destroy(self, key_id: str) -> None:
        """Erase a key pair for good."""
        await self._run(self._admin.destroy, key_id)

    async def export_wrapped(self, key_id: str, wrapping_label: str = WRAPPING_KEY_LABEL) -> bytes:
        """A backup of a key, wrapped inside the HSM; KeyNotExportable when the key or the token doesn't allow it."""
        return await self._run(self._admin.export_wrapped, key_id, wrapping_label)

    async def import_wrapped(self, backup: bytes, key_id: str | None = None, label: str | None = None) -> KeyRecord:
        """Put a key back from a backup, on the token that made it or one that holds the same wrapping key. `key_id` and
        `label` replace its own; ControlError where the token does not allow that (YubiHSM)."""
        return await self._run(self._admin.import_wrapped, backup, key_id, label)

    async def sweep(self, key_id: str, *, nameless: bool = False) -> int:
        """Erase what a killed process left of a key; with `nameless` also halves that nobody can name (keys.sweep)."""
        return await self._run(self._admin.sweep, key_id, nameless=nameless)

    async def new_key_id(self) -> bytes | None:
        """A CKA_ID that no key has yet; None where the token chooses ids by itself."""
        return await self._run(self._admin.new_key_id)

    async def prove(self, key_id: str, message: bytes) -> bytes:
        """One signature outside of the signing engine, to try a key: Ed25519 of `message`, or ECDSA of its SHA-256."""
        return await self._run(self._admin.prove, key_id, message)

    async def why_no_backup(self, algorithm: str) -> str | None:
        """Why the token cannot wrap keys of an algorithm; None if it can."""
        return await self._run(self._admin.why_no_backup, algorithm)

    async def generate_sealed(
        self, label: str, key_id: bytes, seal_to: Sequence[bytes]
    ) -> tuple[KeyRecord, list[bytes]]:
        """A key ceremony: an Ed25519 key made in locked memory, sealed to X25519 public keys (32 bytes each) and
        imported so that it cannot leave the token. Returns the key and what it was sealed into, for each of them."""
        return await self._run(self._admin.generate_sealed, label, key_id, seal_to)

    async def transport_key(self) -> bytes:
        """An X25519 public key to which another token's key ceremony can seal a copy for this token. The private half
        is in the locked memory of whoever talks to the module (the child, where that is isolated), good for one
        import."""
        return await self._run(self._admin.transport_key)

    async def import_transported(self, label: str, key_id: bytes, sealed: bytes) -> KeyRecord:
        """Import a key that was sealed to the last `transport_key`, so that it cannot leave the token. EngineClosed if
        that key is gone meanwhile."""
        return await self._run(self._admin.import_transported, label, key_id, sealed)

    async def import_sealed(self, label: str, key_id: bytes, sealed: bytes, recovery: bytearray) -> KeyRecord:
        """Put a key back that a ceremony sealed. `recovery` is the X25519 private key (32 bytes): the caller wipes
        it."""
        return await self._run(self._admin.import_sealed, label, key_id, sealed, recovery)

    async def _run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        if os.getpid() != self._process:
            raise EngineForked("this control plane belongs to the parent process")
        if self._thread is None:
            raise EngineClosed("the control plane is closed")
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._thread, lambda: work(*args, **kwargs))
        except PinIncorrect as error:
            if self._secret is not None:
                error.hint = f"Check {self._secret} before you try again: the token counts wrong attempts."
            raise
        finally:
            if self._remote is not None:
                self._rest_later(loop)

    def _rest_later(self, loop: asyncio.AbstractEventLoop) -> None:
        """End an isolated module's child once nothing has been asked of it for a while."""
        if self._resting is not None:
            self._resting.cancel()
        self._resting = loop.call_later(IDLE_SECONDS, self._rest)

    def _rest(self) -> None:
        self._resting = None
        if self._thread is not None:
            self._thread.submit(self._admin.close)
