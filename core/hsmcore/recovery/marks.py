"""The second witness of a host without a fleet: whether the state store is the one that its audit log goes on from.

An older copy of the store knows nothing of what was bound, spent and rotated since. Two things show it. Each position
that was signed has a record, so a position that the log has and the store lacks was lost (witness.py). And a random
mark goes into the store, then into the log, at each start and each end, and within a second of each change of key ring,
rotations or emergency budget: a store without the log's last mark is an older one, or another one.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Final, Self

from sqlalchemy import Connection, delete, select

from hsmcore.audit import AuditLog
from hsmcore.audit.query import Record
from hsmcore.base.log import get_logger
from hsmcore.base.scope import Scope
from hsmcore.base.steady import boottime
from hsmcore.config import Config
from hsmcore.errors import HsmError
from hsmcore.recovery.own_store import behind_hint
from hsmcore.recovery.witness import Witness
from hsmcore.state import Store, StoreBehind, StoreNotGenuine
from hsmcore.state.positions import BoundRow
from hsmcore.state.schema import AUDIT_MARK, replace_row
from hsmcore.state.sealed_rows import SEALED, fingerprint

OPERATION: Final = "state-mark"
MOST_BYTES: Final = 4 << 30
"""Most bytes of the log's text that a reconciliation reads."""
_LOOK_SECONDS: Final = 1.0
_DAY_NS: Final = 86_400_000_000_000
"""A mark is made at least so often, so that the log's retention leaves one."""
_WATCHED: Final = ("ring", "steps", "budget")
_RESTORED: Final = ""


@dataclass(frozen=True, slots=True)
class LogStanding:
    """The relation of a store to its log."""

    problem: str
    """Why it may be an older one, or another one; "": it is the one."""
    since_ns: int
    """The time of its last mark that the log has: it has all that was written before. 0: it has none."""
    missing: int
    """Positions that the log has and the store lacks, as far as was looked."""


def witness_of(config: Config) -> bool:
    """Whether a configuration has both: a store of this host, whatever is kept in it, and an audit log."""
    rules = config.key_manager
    return bool(rules.fleet is None and rules.audit_log_file and rules.keeps_state)


class Marks:
    """One key manager's. Belongs to one event loop."""

    def __init__(self, store: Store, log: AuditLog, config: Config) -> None:
        self._store, self._log = store, log
        self._rules = config.key_manager
        policy = self._rules.policy
        self._ordered = policy is not None and bool(policy.ordered)
        self.witness = Witness(store, "", socket.gethostname(), "", log)
        self._logged = self._seen = ""
        self._chained = ""
        """As `_logged`, if that mark has a MAC: the next one names it."""
        self._marked_at = 0
        self._compared = False
        self._scope = Scope()

    @classmethod
    async def open(cls, config: Config, log: AuditLog) -> Self | None:
        """Compare store and log, which is open; None: the configuration lacks one of them. Raises StoreBehind,
        StoreError, AuditUnavailable."""
        if not witness_of(config):
            return None
        alone = cls(await Store.open(config.key_manager.state_place, config.state_secret), log, config)
        try:
            await alone._require_newest()
        except BaseException:
            await alone._store.close()
            raise
        return alone

    async def _require_newest(self) -> None:
        try:
            standing = await self.standing()
        except StoreNotGenuine as error:
            await self._store.look()
            if "policy" not in self._store.problems:
                raise
            get_logger().error("store and audit log are not compared; no position is bound", error=str(error))
            return
        if standing.problem:
            self._log.note("state-behind", result="error", reason=standing.problem, count=standing.missing)
            hint = await asyncio.to_thread(behind_hint, self._rules)
            raise StoreBehind(f"{self._store.name}: {standing.problem}", hint=hint)
        self._compared = True

    async def begin(self) -> None:
        """Make a mark, and one with each change from now on: before anything is changed or signed, and only at a start
        that succeeds. One that fails since another store was meant must not bind the log to this one. Raises
        StoreError, AuditUnavailable."""
        if not self._compared:
            return
        await self._mark()
        failed = "the state store's place in the audit log is not noted"
        self._scope.every(_LOOK_SECONDS, self._look, failed, at_once=False)

    async def standing(self) -> LogStanding:
        """Compare store and log; changes nothing. Raises StoreError, AuditUnavailable."""
        row, restored = await self._store.run(self._rows)
        newest, since = await self._last_mark(row)
        self._logged = newest
        lacking: Sequence[BoundRow] = ()
        if self._ordered:  # else the whole log would be searched for positions at each start
            compared = await self.witness.compare()
            # What the watermark says to be bound was removed, and the policy signs nothing there: an older store has an
            # older watermark.
            lacking = [row for row in compared.lacking if row not in compared.guarded]
        problem = ""
        if restored:
            problem = f"it was restored ({restored}) and not reconciled"
        elif newest and (row is None or newest not in (row["logged"], row["pending"])):
            problem = "the audit log goes on after it: it is an older copy, or another store"
        elif lacking:
            problem = f"position {lacking[0].position} of {lacking[0].domain}, which the audit log has, is not in it"
        return LogStanding(problem, since, len(lacking))

    def _rows(self, connection: Connection) -> tuple[dict[str, Any] | None, str]:
        found = {row["name"]: dict(row) for row in connection.execute(select(AUDIT_MARK)).mappings()}
        restored = found.get(_RESTORED)
        return found.get(self._name), "" if restored is None else str(restored["restored"])

    @property
    def _name(self) -> str:
        return "/".join((self._log.origin, *self._log.mark.values()))

    async def _last_mark(self, row: dict[str, Any] | None) -> tuple[str, int]:
        """Return the log's last mark, and the time of the newest one that the store has, or 0."""
        known = () if row is None else (row["logged"], row["pending"])
        read, vouched, before, reached = list[Record](), list[Record](), set[str](), False
        async for record in self._log.newest(OPERATION):
            read.append(record)
            if self._vouches(record):
                vouched.append(record)
                before.discard(str(record.get("state", "")))
                if not reached:
                    before.add(str(record.get("previous", "")))  # of the first one "", which is found nowhere
                reached = reached or record.get("state") in known
                if reached and (self._is_plain or not before):
                    break
        # Those that this version's key managers made; or, if there are none yet, what a checkpoint covered.
        marks = vouched or [record for record in read if self._is_plain or record["seq"] <= self._log.sealed_before]
        # One that an older record has, too, was copied by another writer.
        first = {str(record.get("state", "")): record for record in marks}
        newest = sorted(first.values(), key=lambda record: int(record["seq"]), reverse=True)
        self._chained = str(newest[0].get("state", "")) if vouched else ""
        oldest = int(newest[-1]["seq"]) if newest else 0
        others = [record for record in read if record["seq"] > oldest and record not in newest]
        if others and not self._is_plain:
            told = {"records": len(others), "newest": others[0]["seq"]}
            get_logger().error("marks in the audit log are not vouched for: they count for nothing", **told)
        since = next((int(record["time_ns"]) for record in newest if record.get("state") in known), 0)
        return (str(newest[0].get("state", "")) if newest else "", since)

    @property
    def _is_plain(self) -> bool:
        """Whether no secret seals the store: then any writer is believed."""
        return not self._store.attest()

    def _vouches(self, record: Record) -> bool:
        said = record.get("state"), record.get("previous")
        return self._store.attests(record.get("mac"), OPERATION, self._name, *said)

    async def _mark(self, seen: str | None = None) -> None:
        """Make a mark: in the store first, so that the log never has one that the store did not have. `seen`: only if
        what is watched is genuine, and another one than this."""
        name, fresh = self._name, secrets.token_hex(16)
        values = {"logged": self._logged, "pending": fresh, "marked_ns": time.time_ns(), "restored": ""}

        def work(connection: Connection) -> str:
            present = fingerprint(connection, _WATCHED)
            if seen is not None:
                for table in chain.from_iterable(SEALED[scope] for scope in _WATCHED):
                    connection.execute(select(table).limit(1))  # raises StoreNotGenuine
            if present != seen:
                replace_row(connection, AUDIT_MARK, name, **values)
            return present

        self._seen = await self._store.run(work)
        if self._seen == seen:
            return
        self._marked_at = boottime()
        mac = self._store.attest(OPERATION, name, fresh, self._chained)
        vouched: dict[str, Any] = {"previous": self._chained, "mac": mac} if mac else {}
        seq = self._log.note(OPERATION, result="ok", state=fresh, **vouched)
        await self._log.durable(seq)
        status = self._log.status
        if seq is not None and status is not None and status.kept_seq >= seq:
            self._logged = self._chained = fresh

    async def _look(self) -> None:
        seen = await self._store.run(lambda connection: fingerprint(connection, _WATCHED))
        if boottime() > self._marked_at + _DAY_NS:
            await self._mark()
        elif seen != self._seen:
            await self._mark(self._seen)

    async def reconcile(self, standing: LogStanding) -> tuple[int, list[dict[str, Any]], dict[str, int]]:
        """Put back what the store lacks of the log, and note that it is the one that the log goes on from. Only raises.
        `standing`: as it was found. Returns the number of positions, those that are bound to another payload here, and
        the floors that were raised. Raises StoreError, AuditUnavailable."""
        added, conflicts, floors = await self.witness.put_back(standing.since_ns, MOST_BYTES)
        name, newest = self._name, self._logged
        values = {"logged": newest, "pending": newest, "marked_ns": time.time_ns(), "restored": ""}

        def work(connection: Connection) -> None:
            connection.execute(delete(AUDIT_MARK).where(AUDIT_MARK.c.name == _RESTORED))
            replace_row(connection, AUDIT_MARK, name, **values)

        await self._store.run(work)
        return added, [one.as_data() for one in conflicts], floors

    async def close(self) -> None:
        """Make a last mark, so that each earlier copy is an older one; then close the store. Idempotent."""
        marks = self._scope.is_open
        try:
            await self._scope.close()
            if marks:
                await self._mark()
        except HsmError as error:
            get_logger().error("the state store's place in the audit log is not noted", error=str(error))
        finally:
            await self._store.close()


def set_restored(connection: Connection, what: str) -> None:
    """Note in a store that it was restored: nothing with a position is signed on it before it is reconciled."""
    replace_row(connection, AUDIT_MARK, _RESTORED, logged="", pending="", marked_ns=time.time_ns(), restored=what)
