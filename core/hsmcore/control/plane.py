"""The control plane: rare, slow work on one token, for an event loop that must not wait."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import TYPE_CHECKING, ParamSpec, Self, TypeVar

from hsmcore.control.admin import PinSource, TokenAdmin
from hsmcore.control.backup import WRAPPING_KEY_LABEL
from hsmcore.control.curves import Algorithm
from hsmcore.control.records import Deactivation, KeyRecord, TokenSelector
from hsmcore.errors import EngineClosed, EngineForked

if TYPE_CHECKING:
    from hsmcore.config import Pkcs11Settings

P = ParamSpec("P")
T = TypeVar("T")


class ControlPlane:
    """Key search, generation, deactivation and backup on one token.

    Every call runs on one thread of the plane's own, one after the other; python-pkcs11 lets the event loop go on
    meanwhile. The token is opened by the first call. Cancelling an await does not take back what the token is doing:
    a key that was being generated exists afterwards.

    `quirks` is a name from the native core's table, `pin` fetches the PIN if the process is not logged in yet (see
    TokenAdmin), `member` goes into errors. All errors are HsmError. Not usable in a forked child.
    """

    def __init__(
        self,
        module_path: str,
        token: TokenSelector,
        quirks: str | None = None,
        *,
        pin: PinSource | None = None,
        module_args: str | None = None,
        member: str | None = None,
    ) -> None:
        self._admin = TokenAdmin(module_path, token, quirks=quirks, pin=pin, module_args=module_args, member=member)
        self._thread: ThreadPoolExecutor | None = ThreadPoolExecutor(
            max_workers=1, thread_name_prefix=f"hsmcore-control-{member or 'token'}"
        )
        self._process = os.getpid()

    @classmethod
    def for_settings(cls, settings: Pkcs11Settings, *, log_in: bool = False, member: str | None = None) -> Self:
        """A plane for the token that a configuration names. `log_in` if no engine of this process has logged in."""
        return cls(
            settings.module_path,
            TokenSelector(settings.token_label, settings.token_serial, settings.slot_id),
            settings.quirks,
            pin=settings.resolve_pin if log_in else None,
            module_args=settings.initialize_args,
            member=member,
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
        """Wait for calls under way, close the token, end the thread. Doing it twice is no error."""
        thread, self._thread = self._thread, None
        if thread is None or os.getpid() != self._process:
            return
        try:
            await asyncio.get_running_loop().run_in_executor(thread, self._admin.close)
        except BaseException:
            thread.shutdown(wait=False)
            raise
        thread.shutdown()  # it is idle: this takes microseconds

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

    async def import_wrapped(self, backup: bytes) -> KeyRecord:
        """Put a key back from a backup, on the token that made it or one that holds the same wrapping key."""
        return await self._run(self._admin.import_wrapped, backup)

    async def _run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        if os.getpid() != self._process:
            raise EngineForked("this control plane belongs to the parent process")
        if self._thread is None:
            raise EngineClosed("the control plane is closed")
        return await asyncio.get_running_loop().run_in_executor(self._thread, lambda: work(*args, **kwargs))
