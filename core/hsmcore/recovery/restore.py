"""Backups of a state store, and the way back: what a backup lacks of the audit log, and restoring it.

A store that was restored is older than the log, as a rule. It says of itself that it was restored: on one host no
payload with a position is signed before it is reconciled (marks.py); in a fleet it has an incident that each host
answers (incident.py).
"""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from mmap import mmap
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Connection, func, select

from hsmcore.audit import AuditLog
from hsmcore.base.ownership import make_folder
from hsmcore.base.waiting import whole
from hsmcore.config import Config
from hsmcore.recovery import incident
from hsmcore.recovery.anchor import anchor_of, behind, last_of
from hsmcore.recovery.marks import Marks, set_restored, witness_of
from hsmcore.recovery.own_store import register
from hsmcore.state import Store, StoreBusy, StoreError, backup
from hsmcore.state.backup import BackupStatement, BackupUnusable
from hsmcore.state.database import Told
from hsmcore.state.schema import FLEET_HOST, METADATA
from hsmcore.state.sqlite import install, number_of, set_number
from hsmcore.state.store import now_ns

_ALIVE: Final = 2
"""Lives of a lease: a host that was not seen for so long does not run."""


@dataclass(frozen=True, slots=True)
class Checked:
    """A backup that is whole. `problem`: why it is older than the audit log; "": it is not, as far as is known.
    `missing`: positions that the log has and it lacks. Both None: there is no log to compare with."""

    statement: BackupStatement
    problem: str | None = None
    missing: int | None = None
    records: int | None = None
    """Records that the log's last checkpoint covers and the backup's does not."""


def subject_of(config: Config) -> str:
    """Return whose a configuration's store is: the fleet's name, or the origin of its audit log."""
    rules = config.key_manager
    return rules.fleet.name if rules.fleet is not None else AuditLog.of(rules).origin


@asynccontextmanager
async def back_up(config: Config, told: Told | None = None) -> AsyncIterator[tuple[BackupStatement, bytes, mmap]]:
    """Yield a backup of the store of a configuration, which other processes may use: what it says, and its two parts.
    `told`: of the rows of a server. Nothing of it is done in the event loop's thread. Raises StoreError."""
    rules = config.key_manager

    def look() -> tuple[dict[str, Any] | None, str]:
        return anchor_of(last_of(config)), subject_of(config)

    audit, subject = await asyncio.to_thread(look)  # before the copy: what the log has up to here, the copy has
    store = await Store.open_to_read(rules.state_place)
    try:
        async with backup.made_backup(store, subject, rules.manager, audit, config.state_secret, told) as made:
            yield made
    finally:
        await store.close()


async def check(config: Config, data: bytes | mmap, source: str | None = None) -> Checked:
    """Restore a backup into a temporary place, and compare it with the audit log. `source`: whose it is, if not this
    configuration's. Raises BackupUnusable, StoreError."""
    statement, body, records = await _ours(config, data, source)
    with body:
        async with (
            backup.folder_aside() as place,
            backup.unpacked(body, place / "state.db", config.state_secret) as store,
        ):
            if not witness_of(config):
                return Checked(statement, records=records)
            standing = await Marks(store, AuditLog.of(config.key_manager), config).standing()
            return Checked(statement, standing.problem, standing.missing, records)


async def _ours(
    config: Config, data: bytes | mmap, source: str | None
) -> tuple[BackupStatement, memoryview, int | None]:
    """Return what a backup says, its store, and by how many records it is behind. Raises BackupUnusable for one that is
    not this configuration's, StoreError."""

    def work() -> tuple[BackupStatement, memoryview, int | None]:
        statement, body = backup.parse(data, config.state_secret)
        _require_ours(config, statement, source)
        return statement, body, behind(config, statement.audit, compares=source is None)

    return await whole(asyncio.to_thread(work))


def _require_ours(config: Config, statement: BackupStatement, source: str | None) -> None:
    own = subject_of(config) if source is None else source
    if statement.subject != own or statement.manager != config.key_manager.manager:
        whose = f"{statement.subject or 'a store without audit log'}, key manager {statement.manager or 'default'}"
        raise BackupUnusable(
            f"the backup is of {whose}, not of {own or 'a store without audit log'}",
            hint="If it is the one to restore all the same, name whose it is: --from.",
        )


async def restore(
    config: Config, data: bytes | mmap, *, replace: bool, source: str | None = None, told: Told | None = None
) -> tuple[BackupStatement, str]:
    """Put the store of a backup in the place of the configuration's. Returns what the backup says, and where the former
    store is kept ("": there was none). After a crash it is the former store or the restored one. Raises BackupUnusable,
    StoreBusy while a process uses the store, StoreError."""
    statement, body, _ = await _ours(config, data, source)
    rules = config.key_manager
    made = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(statement.made_ns / 1e9))
    why = f"from a backup of {made}"

    def number() -> int:
        # An operator puts the copy in the place of a store: it is that one for the keys' next start.
        return 0 if rules.fleet else register().number_at(rules.state_path) or number_of(rules.state_path)

    def mark(connection: Connection, taken: int) -> None:
        if rules.fleet is None:
            set_restored(connection, why)
            set_number(connection, taken)
        else:
            incident.begin(connection, rules.fleet.name, rules.fleet.host, f"it was restored {why}", ("", ""))

    with _beside(config) as copy:
        async with backup.unpacked(body, copy, config.state_secret) as store:
            await store.run(partial(mark, taken=await asyncio.to_thread(number)))
        if rules.fleet is None:
            aside = await asyncio.to_thread(install, copy, rules.state_path, replace=replace)
            return statement, "" if aside is None else str(aside)
        target = await Store.open(rules.fleet, config.state_secret, shows=True)
        try:
            name = await _free_place(target, rules.fleet.ttl_ms, replace=replace)
            await target.replace_all(copy, name, told)
        finally:
            await target.close()
    return statement, name


@contextmanager
def _beside(config: Config) -> Iterator[Path]:
    """Yield the path of a file to be made: in the folder of the store, whose owner gets it; then it is removed."""
    place = Path(os.path.realpath(config.key_manager.state_path))
    if config.key_manager.fleet is not None:
        with backup.folder() as folder:
            yield folder / "state.db"
    else:
        make_folder(place.parent, parents=True)
        copy = place.with_name(f".{place.name}.{secrets.token_hex(4)}")
        try:
            yield copy
        finally:
            for end in ("", "-wal", "-shm"):
                Path(f"{copy}{end}").unlink(missing_ok=True)


async def _free_place(store: Store, ttl_ms: int, *, replace: bool) -> str:
    """Return the name under which the present rows are to be kept; "": there are none."""

    def work(connection: Connection) -> tuple[list[str], bool]:
        since = now_ns(connection) - _ALIVE * ttl_ms * 1_000_000
        alive = select(FLEET_HOST.c.name).where(FLEET_HOST.c.state != "closed", FLEET_HOST.c.seen_ns > since)
        tables = [table for table in METADATA.sorted_tables if table.name not in ("schema_version", "seal")]
        counts = [connection.execute(select(func.count()).select_from(table)).scalar_one() for table in tables]
        return [str(row.name) for row in connection.execute(alive)], any(counts)

    hosts, filled = await store.run(work, shows=True)
    if not filled:
        return ""
    if not replace:
        raise StoreError(f"{store.name}: there are rows", hint="They are kept in a schema of another name: --replace.")
    if hosts:
        raise StoreBusy(f"{store.name}: {', '.join(hosts)} use it", hint="Stop the fleet's hosts.")
    return f"before_{time.strftime('%Y%m%dt%H%M%S', time.gmtime())}_{secrets.token_hex(3)}"
