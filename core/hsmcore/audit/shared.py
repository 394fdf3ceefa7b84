"""One audit log of several key managers. Its owner opens it before them and closes it after them; each key manager
writes through a part of it, and its records name it."""

from __future__ import annotations

import asyncio
from itertools import chain
from typing import TYPE_CHECKING

from hsmcore.audit.log import AuditLog
from hsmcore.audit.open_log import OpenLog
from hsmcore.audit.shipping import Shipping, destinations
from hsmcore.audit.signers import Members
from hsmcore.errors import NotInitialized

if TYPE_CHECKING:
    from hsmcore.config import KeyManagerConfig


class SharedLog(AuditLog):
    """The whole log, for the event loop that calls `open`."""

    def __init__(self, rules: KeyManagerConfig) -> None:
        """`rules`: of any one of the key managers, which all name this log."""
        super().__init__(rules.audit_log_file, rules.audit, destinations(rules))
        self._parts: dict[LogPart, Members] = {}
        """The running members of each part, to sign checkpoints."""
        self._writing: set[LogPart] = set()
        self._all_written = asyncio.Event()
        self._joinable = self._closing = False

    async def open(self) -> None:
        await super().open()
        self._joinable, self._closing = True, False
        self._all_written.clear()

    async def close(self) -> None:
        self._joinable = False
        await super().close()

    def join(self, part: LogPart, members: Members | None = None) -> tuple[OpenLog | None, Shipping | None]:
        """Return what a part writes to; `members`: the part's, once they run. Raises NotInitialized."""
        if not self._joinable:
            raise NotInitialized("one of several key managers is opened with all of them: open those")
        self._writing.add(part)
        if members is not None:
            self._parts[part] = members
        return self._open, self._shipping

    async def begin(self) -> None:
        """The members of all parts run: let any of them sign checkpoints. Raises HsmError."""
        await self.use_members(lambda: chain.from_iterable(members() for members in self._parts.values()))

    def end(self) -> None:
        """Every part is about to be closed: the last checkpoint waits for the last records of all."""
        self._closing = True

    async def seal_after(self, part: LogPart) -> None:
        """Seal after the last record of a part, while its members run."""
        self._written(part)
        if self._closing:
            await self._all_written.wait()
        await self.seal()

    def leave(self, part: LogPart) -> None:
        """The members of the part are stopped. Idempotent."""
        self._written(part)
        self._parts.pop(part, None)

    def _written(self, part: LogPart) -> None:
        self._writing.discard(part)
        if not self._writing:
            self._all_written.set()


class LogPart(AuditLog):
    """One key manager's part of the log."""

    def __init__(self, whole: SharedLog, rules: KeyManagerConfig) -> None:
        super().__init__(rules.audit_log_file, rules.audit, manager=rules.manager)
        self._whole = whole

    async def open(self) -> None:
        """Write to the log, which is open. Raises NotInitialized if it is not."""
        self._open, self._shipping = self._whole.join(self)

    async def use_members(self, members: Members) -> None:
        """Let these members sign checkpoints, once those of all key managers run."""
        self._whole.join(self, members)

    async def seal(self) -> None:
        """Seal the log if a member must sign it; else its owner does so later."""
        if self._open is not None and self.needs_member:
            await self._whole.seal_after(self)

    async def close(self) -> None:
        """Write no more. Idempotent."""
        self._open = self._shipping = None
        self._whole.leave(self)
