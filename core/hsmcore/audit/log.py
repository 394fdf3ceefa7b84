"""The audit log of a key manager, as the rest of the application sees it; open_log has the part that is open."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from hsmcore._native import Digest, Journal, digest_of
from hsmcore.audit.backwards import newest_first
from hsmcore.audit.layout import Layout
from hsmcore.audit.open_log import OpenLog
from hsmcore.audit.query import Moment, Query, Record
from hsmcore.audit.record import tail
from hsmcore.audit.segment import SegmentError
from hsmcore.audit.shipping import Destination, Shipping, ShippingStatus, destinations
from hsmcore.audit.signers import HsmSigner, Members
from hsmcore.audit.status import AuditStatus
from hsmcore.audit.tiles import TileError
from hsmcore.audit.witnesses import WitnessStatus
from hsmcore.base.keyring import KeyVersion
from hsmcore.base.log import get_logger, said
from hsmcore.config.audit import AuditSettings
from hsmcore.errors import AuditUnavailable, BadArgument, SystemFailure
from hsmcore.tlog.checkpoint import Checkpoint
from hsmcore.tlog.note import NoteError

if TYPE_CHECKING:
    from hsmcore.config import KeyManagerConfig


_ALL: Final = 1 << 62
"""Bytes of text: more than any log has."""
_OWNER_HINT: Final = "The log and all files in its folder must belong to the key manager's user: chown them."


class AuditLog:
    """One log, for the event loop that calls `open`. Without a path it records nothing.

    The journal's native thread appends the records in groups; another thread reads the lines and builds tree, index and
    checkpoints.
    """

    def __init__(
        self,
        path: str | None,
        settings: AuditSettings | None = None,
        places: Iterable[Destination] = (),
        manager: str | None = None,
    ) -> None:
        """`places`: destinations that records are copied to while the log is open. `manager`: the key manager, of
        several, that its records name."""
        self._layout = None if path is None else Layout(path)
        self._settings = settings or AuditSettings()
        self._places = tuple(places)
        self._mark = {} if manager is None else {"manager": manager}
        self.file: Path | None = None if self._layout is None else self._layout.log
        """The file of the newest records; None if nothing is recorded."""
        self.enabled = path is not None
        """Whether anything is recorded."""
        self.waits = self.enabled and self._settings.durability != "interval"
        """Whether an operation waits until its record is durable."""
        key = self._settings.signing_key
        self.needs_member = self.enabled and key is not None and key.hsm_key_id is not None
        """Whether a key of the HSM signs checkpoints: then a member must run until the log is closed."""
        self._open: OpenLog | None = None
        self._shipping: Shipping | None = None

    @classmethod
    def of(cls, rules: KeyManagerConfig) -> Self:
        """Return the log of a configuration, with the destinations that it names."""
        return cls(rules.audit_log_file, rules.audit, destinations(rules), rules.manager)

    @property
    def origin(self) -> str:
        """The log's name in its checkpoints; "" before the first start. Reads the disk."""
        try:
            return "" if self._layout is None else self._layout.origin.read_text().strip()
        except FileNotFoundError:
            return ""

    @property
    def sealed_before(self) -> int:
        """Records that a checkpoint covered when this process opened the log, or now of a log that is not open here.
        Reads the disk."""
        if self._open is not None:
            return self._open.found_sealed
        try:
            return 0 if self._layout is None else Checkpoint.parse(self._layout.checkpoint.read_bytes()).size
        except (OSError, NoteError):
            return 0

    @property
    def mark(self) -> dict[str, str]:
        """The fields that name this key manager in its records, where several share the log."""
        return dict(self._mark)

    @property
    def shipping(self) -> dict[str, ShippingStatus]:
        """Progress of each destination, by "cloudWatchLogs" and "syslog". From any thread."""
        return {} if self._shipping is None else self._shipping.status

    @property
    def witnesses(self) -> dict[str, WitnessStatus]:
        """Progress of each witness, by name. From any thread."""
        log = self._open
        return {} if log is None else log.witnesses.status

    @property
    def cosigned_at(self) -> int | None:
        """Unix time since which a quorum of the witnesses have cosigned the log; 0: never; None: there are none. From
        any thread."""
        log = self._open
        return None if log is None or not log.witnesses.status else log.witnesses.quorum_at

    @property
    def status(self) -> AuditStatus | None:
        """Progress of the log, and what is wrong with it; None while the log is closed. From any thread."""
        log = self._open
        return None if log is None else log.status()

    def describe(self) -> dict[str, Any] | None:
        """Return the state of the log as JSON-ready data; None while it is closed. In the event loop only."""
        log, status = self._open, self.status
        if log is None or status is None:
            return None
        return {
            "lastSeq": status.last_seq,
            "durableSeq": log.durable_seq,
            "sealed": status.sealed,
            "failure": status.failure,
            "notSealed": status.not_sealed,
            "onFailure": self._settings.on_failure,
            "shipping": {kind: status.as_dict() for kind, status in self.shipping.items()},
            "witnesses": {name: status.as_dict() for name, status in self.witnesses.items()},
        }

    async def open(self) -> None:
        """Open the log, create it if it is missing, and complete or undo what a crash interrupted. Raises
        AuditUnavailable if it is damaged, in use, or cannot be written."""
        if self._layout is None:
            return
        log = OpenLog(self._layout, self._settings, asyncio.get_running_loop())
        try:
            await log.open()
            if self._settings.witnesses:
                await asyncio.to_thread(log.witnesses.start)
        except (OSError, SystemFailure, TileError, SegmentError) as error:
            await log.close()
            problem = f"audit log {self._layout.log}: {said(error)}"
            hint = _OWNER_HINT if isinstance(error, PermissionError) else None
            raise AuditUnavailable(problem, hint=hint, call="open") from None
        except BaseException:
            await log.close()
            raise
        self._open = log
        if self._places:
            self._shipping = Shipping(self._layout, self._places, lambda: log.durable_seq)
            log.keep_from = self._shipping
            self._shipping.start()

    async def use_members(self, members: Members) -> None:
        """Sign checkpoints with a key of these members, if the configuration names one. Raises HsmError."""
        key = self._settings.signing_key
        if self._open is None or key is None or key.hsm_key_id is None:
            return
        await self._open.use(await HsmSigner.find(members, bytes.fromhex(key.hsm_key_id), self._open.origin))

    @property
    def journal(self) -> Journal | None:
        """The journal that the native engine writes its records to; None while the log is closed."""
        return None if self._open is None else self._open.journal

    def tail(self, key: KeyVersion, member: str, level: str) -> bytes:
        """Return what all records of a key's signatures share, in the form that Engine.set_tail takes."""
        if self._open is None:
            return b"}"
        fields = {"key_id": key.id, "public_key": key.public_key, "member": member, "level": level, **self._mark}
        return tail(fields, self._open.process)

    def record(self, operation: str, *, message: bytes | Digest | None = None, **fields: Any) -> int | None:
        """Record an operation. Return its sequence number, or None if nothing is recorded. record.ALLOWED has the names
        and forms of fields that are shown; other values are redacted. Raises AuditUnavailable if the log cannot be
        written and `onFailure` is "closed"."""
        if self._open is None:
            return None
        if message is not None:
            fields["message_sha256"] = digest_of(message).hex()
            fields["message_bytes"] = len(message)
        return self._open.record(operation, {**self._mark, **fields})

    def note(self, operation: str, *, message: bytes | Digest | None = None, **fields: Any) -> int | None:
        """Record what already happened. If the log cannot be written, the error is only logged, and None is
        returned."""
        try:
            return self.record(operation, message=message, **fields)
        except AuditUnavailable as error:
            get_logger().error("not recorded", operation=operation, error=str(error))
            return None

    async def durable(self, seq: int | None) -> None:
        """Wait until record `seq` is as durable as `durability` requires; None: return at once. Any number of tasks may
        wait for one record. Raises AuditUnavailable if writing fails or takes longer than `waitMs`, unless `onFailure`
        is "open"."""
        if self._open is not None and seq is not None:
            await self._open.durable(seq)

    async def flush(self) -> None:
        """Wait until every record so far is durable. Raises AuditUnavailable, see `durable`."""
        if self._open is not None:
            await self._open.durable(self._open.last_seq)

    async def checkpoint(self) -> bytes | None:
        """Sign a checkpoint of the tree if it grew. Return the newest checkpoint; None before the first one. Raises
        HsmError."""
        if self._open is None:
            return None
        await self._open.seal()
        await self._open.compressed()
        newest = self._open.checkpoint
        return None if newest is None else newest.note

    async def seal(self) -> None:
        """Write all records and sign a checkpoint over them, before the members stop. Errors are only logged."""
        if self._open is not None:
            try:
                await self.flush()
            except AuditUnavailable as error:
                get_logger().error("not all was recorded", error=str(error))
            await self._open.seal_last()

    async def close(self) -> None:
        """Write all records, sign a last checkpoint, ship for at most CLOSE_SECONDS, and close the files.
        Idempotent."""
        log, self._open = self._open, None
        shipping, self._shipping = self._shipping, None
        try:
            if log is not None:
                await log.close()
        finally:
            if log is not None and self._settings.witnesses:
                await asyncio.to_thread(log.witnesses.close)
            if shipping is not None:
                await asyncio.get_running_loop().run_in_executor(None, shipping.close)

    async def cut_off(self, seconds: float, most: int) -> list[Record]:
        """Return this key manager's newest records of signatures, at most `most`, that an earlier process
        wrote in its last `seconds` and that no "close" follows: it was killed, and may not have handed out the newest
        ones. Raises AuditUnavailable."""
        if self._open is None:
            return []
        before, start = self._open.found, self._open.found_ns / 1e9 - seconds
        closed = 0
        found: deque[Record] = deque(maxlen=most)
        try:
            async for record in self.query(start, None, {"operation": "close", **self._mark}):
                if record["seq"] <= before:
                    closed, start = record["seq"], record["time_ns"] / 1e9 - 1
            async for record in self.query(start, None, {"operation": "sign", **self._mark}):
                if closed < record["seq"] <= before:
                    found.append(record)
        except (OSError, SegmentError) as error:
            raise AuditUnavailable(f"audit log {self.file}: {said(error)}", call="read") from None
        return list(found)

    def newest_ordered(self, most_bytes: int) -> Iterator[list[Record]]:
        """Yield this key manager's records of payloads that have a position, newest first, in lists. Ends after about
        `most_bytes` of text, with an empty list if older records were not read. Reads the disk, also of a log that is
        not open here. Raises SegmentError, OSError."""
        if self._layout is None:
            return
        manager = self._mark.get("manager")
        for found in newest_first(self._layout, b'"position":', most_bytes):
            mine = [record for record in found if record.get("manager") == manager and "domain" in record]
            if mine or not found:
                yield mine

    async def newest(self, operation: str) -> AsyncIterator[Record]:
        """Yield this key manager's records of an operation, newest first: who stops early has read the log's end only.
        Raises AuditUnavailable."""
        if self._layout is None:
            return
        await self.flush()
        loop, manager = asyncio.get_running_loop(), self._mark.get("manager")
        blocks = newest_first(self._layout, b'"operation":"%s"' % operation.encode(), _ALL, operation)
        try:
            while (found := await loop.run_in_executor(None, next, blocks, None)) is not None:
                for record in found:
                    if record.get("operation") == operation and record.get("manager") == manager:
                        yield record
        except (OSError, SegmentError) as error:
            raise AuditUnavailable(f"audit log {self.file}: {said(error)}", call="read") from None

    async def query(
        self, start: Moment = None, end: Moment = None, match: Mapping[str, Any] | None = None
    ) -> AsyncIterator[Record]:
        """Yield the records from `start` to `end` (aware datetimes or Unix seconds; None: unbounded) whose fields equal
        `match`, oldest first. Raises BadArgument for a naive datetime or if no `auditLogFile` is configured."""
        if self._layout is None:
            raise BadArgument("there is no audit log: auditLogFile is not configured")
        query = Query(self._layout, start, end, match)
        await self.flush()
        loop = asyncio.get_running_loop()
        blocks = query.blocks()
        while (found := await loop.run_in_executor(None, next, blocks, None)) is not None:
            for item in found:
                yield item
