"""Backups of the state store on schedule, and the drill that restores one into a temporary place and checks it."""

from __future__ import annotations

import calendar
import re
import time
from dataclasses import dataclass
from mmap import mmap
from typing import Any, Final

from hsmcore.audit import AuditLog
from hsmcore.base.places import BackupPlace, PlaceError, place_at
from hsmcore.base.scope import Scope
from hsmcore.base.steady import boottime
from hsmcore.config import Config
from hsmcore.errors import HsmError
from hsmcore.recovery.restore import back_up, check, subject_of
from hsmcore.state.backup import SUFFIX, BackupStatement, folder_aside, mapping

_LOOK_SECONDS: Final = 60.0
_RETRY_SECONDS: Final = 2.0
"""Seconds until the next look after a failure."""
_HOUR: Final = 3600
_AHEAD_SECONDS: Final = 300.0
"""Seconds by which another host's clock may be ahead."""
_STAMP: Final = "%Y%m%dT%H%M%SZ"


def place_of(config: Config, location: str) -> BackupPlace:
    """Return a place for backups of the state store."""
    rules = config.key_manager.state_backup
    return place_at(location, None if rules is None else rules.endpoint_url, SUFFIX)


def name_of(config: Config, statement: BackupStatement) -> str:
    """Return a backup's name: whose it is, when it was made, and a part of its digest."""
    made = time.strftime(_STAMP, time.gmtime(statement.made_ns / 1e9))
    return f"{_prefix(config)}.{made}.{statement.sha256[:12]}{SUFFIX}"


async def put(place: BackupPlace, name: str, statement: BackupStatement, *parts: bytes | mmap) -> None:
    """Write a backup. One that another process has made in the same second, of the same state, is as good: both have
    the name of `name_of`. Raises PlaceError."""
    try:
        await place.create(name, *parts)
    except PlaceError:
        if statement.sha256[:12] not in name or name not in await place.names():
            raise


def _prefix(config: Config) -> str:
    whose = "-".join(filter(None, (subject_of(config), config.key_manager.manager))) or "state"
    return re.sub(r"[^A-Za-z0-9._-]", "_", whose)[-100:]


@dataclass(frozen=True, slots=True)
class BackupsSeen:
    """For monitoring. Times are Unix seconds; 0: never, as far as this process knows."""

    backup: float = 0
    drill: float = 0
    failing: bool = False


class StateBackups:
    """One key manager's. Belongs to one event loop."""

    def __init__(self, config: Config, audit: AuditLog | None = None) -> None:
        rules = config.key_manager.state_backup
        assert rules is not None  # noqa: S101  # for the type checker: `begin`
        self._config, self._rules, self._audit = config, rules, audit
        self._place = place_of(config, rules.location)
        self.seen = BackupsSeen()
        """Any thread."""
        self._begun = time.time()
        self._drilled: str | None = None
        """The backup that the last look has read back, or tried to."""
        self._drilled_at: int | None = None
        """When the last drill was, in nanoseconds since the boot."""
        self._scope = Scope()

    @classmethod
    def begin(cls, config: Config, audit: AuditLog | None) -> StateBackups | None:
        """Begin with backups; None: none are configured. `audit`: where each backup and each drill is recorded."""
        if config.key_manager.state_backup is None or not config.key_manager.keeps_state:
            return None
        backups = cls(config, audit)
        backups.start()
        return backups

    @property
    def due(self) -> float:
        """When the next backup is due, Unix seconds; before the first one is known: the start. Any thread."""
        made = self.seen.backup
        return made + self._rules.every_hours * _HOUR if made else self._begun

    def start(self) -> None:
        """Look now, and from now on."""
        failed = "the state store is not backed up"
        self._scope.every(_LOOK_SECONDS, self._look, failed, retry_seconds=_RETRY_SECONDS)

    async def _look(self) -> None:
        try:
            await self.look()
        except HsmError as error:
            if not self.seen.failing:
                self._record("state-backup" if self._drilled is None else "state-drill", error)
            self.seen = BackupsSeen(self.seen.backup, self.seen.drill, failing=True)
            raise

    def _record(self, operation: str, error: HsmError | None = None, **fields: Any) -> None:
        if self._audit is not None:
            failed: dict[str, Any] = {} if error is None else {"error": error.status, "file": self._drilled}
            self._audit.note(operation, result="ok" if error is None else "error", **fields, **failed)

    async def look(self) -> None:
        """Make a backup if it is time, and have the newest one restored if it is time. Raises HsmError."""
        self._drilled = None
        now, boot = time.time(), boottime()
        name = await self._newest(now)
        made = 0.0 if name is None else _made(name)
        if name is None or now >= made + self._rules.every_hours * _HOUR:
            async with back_up(self._config) as (statement, head, body):
                name, made = name_of(self._config, statement), statement.made_ns / 1e9
                await put(self._place, name, statement, head, body)
                self._record("state-backup", file=name, sha256=statement.sha256, bytes=len(head) + len(body))
        drill, every = self.seen.drill, self._rules.drill_hours * _HOUR * 10**9
        if self.seen.failing or self._drilled_at is None or boot >= self._drilled_at + every:
            self._drilled = name
            async with folder_aside() as place:
                if not await self._place.fetch(name, place / "backup"):
                    raise PlaceError(f"backups at {self._rules.location}: {name} is gone")
                async with mapping(place / "backup") as found:
                    checked = await check(self._config, found)
                    self._record("state-drill", file=name, sha256=checked.statement.sha256, bytes=len(found))
            drill, self._drilled_at = time.time(), boot
        self.seen = BackupsSeen(made, drill)

    async def _newest(self, now: float) -> str | None:
        """Return the newest backup, without those that a clock which was ahead has dated."""
        prefix = _prefix(self._config)
        found = [name for name in await self._place.names() if re.fullmatch(rf"{re.escape(prefix)}\.{_FORM}", name)]
        return max((name for name in found if _made(name) <= now + _AHEAD_SECONDS), key=_made, default=None)

    async def close(self) -> None:
        """Stop. Idempotent."""
        await self._scope.close()


_FORM: Final = rf"[0-9]{{8}}T[0-9]{{6}}Z\.[0-9a-f]{{12}}{re.escape(SUFFIX)}"


def _made(name: str) -> float:
    stamp = name.removesuffix(SUFFIX).split(".")[-2]
    try:
        return float(calendar.timegm(time.strptime(stamp, _STAMP)))
    except ValueError:
        return 0.0
