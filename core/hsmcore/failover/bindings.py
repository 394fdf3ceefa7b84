"""Messages that may be signed under one key although no caller got the signature: no other key signs them when the
caller asks again. Where levels have different keys, they outlive the process: in the state store, and in the records of
signatures that a process left when it was killed."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from time import monotonic_ns
from typing import Any, Final

from sqlalchemy import bindparam, delete, insert, select

from hsmcore._native import Digest, digest_of
from hsmcore.audit import AuditLog
from hsmcore.base.log import get_logger
from hsmcore.base.scope import Scope
from hsmcore.errors import UNSURE, HsmError, InvalidMessageType
from hsmcore.failover.breaker import SECOND
from hsmcore.state.clock import StoreClock
from hsmcore.state.schema import KEY_BINDING as BINDING
from hsmcore.state.store import Store, Tables

BINDING_NS: Final = 120 * SECOND
"""How long a message stays bound to the key of an attempt with an unknown outcome: longer than a Solana transaction is
valid (150 slots, 60 to 90 s)."""
BINDINGS_MAX: Final = 100_000
HANDING_OUT_NS: Final = 5 * SECOND
"""Longest time from the record of a signature until its caller has it; a process that is killed leaves such ones."""
RETRY_NS: Final = SECOND
_MOST_HEX: Final = 1024
_DIGEST_BYTES: Final = 32

# Made once: to make a statement takes longer than to do it.
_OVER: Final = delete(BINDING).where(BINDING.c.until_ns <= bindparam("now"))
_OF: Final = delete(BINDING).where(BINDING.c.digest.in_(bindparam("digests", expanding=True)))
_BINDS: Final = insert(BINDING)


@dataclass(frozen=True, slots=True)
class BindingRow:
    """A binding that lasts: `until_ns` in Unix nanoseconds."""

    digest: bytes
    key: bytes
    until_ns: int


class StoredBindings(Tables):
    """Reads and writes `key_binding`."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.clock = StoreClock(store)

    async def keep(self, rows: list[BindingRow]) -> None:
        """Add rows, replacing those of the same messages, and delete those whose time is over. Of two rows of one
        message the later one counts."""
        values = [
            {"digest": row.digest.hex(), "public_key": row.key.hex(), "until_ns": row.until_ns}
            for row in {row.digest: row for row in rows}.values()
        ]
        now = await self.clock.follow()

        def work(connection: Any) -> None:
            connection.execute(_OVER, {"now": now})
            digests = [value["digest"] for value in values]
            for at in range(0, len(digests), 500):  # a statement of SQLite takes a limited number of values
                connection.execute(_OF, {"digests": digests[at : at + 500]})
            if values:
                connection.execute(_BINDS, values)

        await self._store.run(work)

    async def load(self) -> list[BindingRow]:
        """The newest rows, at most BINDINGS_MAX, oldest first. What is no binding is left out."""
        newest = select(BINDING).order_by(BINDING.c.until_ns.desc()).limit(BINDINGS_MAX)
        found = [_row(row["digest"], row["public_key"], row["until_ns"]) for row in await self._store.rows(newest)]
        return [row for row in reversed(found) if row is not None]


async def left_by_a_crash(audit: AuditLog) -> list[BindingRow]:
    """What the process before, if it was killed, may have signed without handing it out: the signatures, and the
    attempts with an unknown outcome, of the last HANDING_OUT_NS of its records."""
    records = await audit.cut_off(BINDING_NS / SECOND, BINDINGS_MAX)
    if not records:
        return []
    since = records[-1]["time_ns"] - HANDING_OUT_NS
    found = (
        _row(record.get("message_sha256"), record.get("public_key"), record["time_ns"] + BINDING_NS)
        for record in records
        if record["time_ns"] >= since and _may_be_signed(record)
    )
    return [row for row in found if row is not None]


async def lately_unsure(audit: AuditLog, now_ns: int, last_seq: int | None = None) -> list[BindingRow]:
    """What may have been signed without an answer in the BINDING_NS before `now_ns`, as the log says, by records up to
    `last_seq`. Raises AuditUnavailable."""
    since, found = (now_ns - BINDING_NS) / SECOND, list[BindingRow | None]()
    async for record in audit.query(since, None, {"operation": "sign", "result": "error", **audit.mark}):
        if record.get("error") in UNSURE and (last_seq is None or record["seq"] <= last_seq):
            row = _row(record.get("message_sha256"), record.get("public_key"), record["time_ns"] + BINDING_NS)
            found.append(row)
    return [row for row in found if row is not None]


def _may_be_signed(record: Mapping[str, Any]) -> bool:
    return "signature" in record or record.get("error") in UNSURE


def _row(digest: object, key: object, until: object) -> BindingRow | None:
    """A row of the store, or of a record: whoever can write these may have written anything."""
    if not (isinstance(digest, str) and isinstance(key, str) and isinstance(until, int) and len(key) <= _MOST_HEX):
        return None
    try:
        row = BindingRow(bytes.fromhex(digest), bytes.fromhex(key), until)
    except ValueError:
        return None
    return row if len(row.digest) == _DIGEST_BYTES and row.key else None


class KeyBindings:
    """The bindings of a router, as digests, for BINDING_NS. With `stored`, they are also written to the state store,
    soon after: a wait that was cancelled cannot wait for the disk. Belongs to one event loop."""

    def __init__(self, stored: StoredBindings | None = None) -> None:
        self._keys: OrderedDict[bytes, tuple[bytes, int]] = OrderedDict()
        self._of_key: Counter[bytes] = Counter()
        self._stored = stored
        self._unsaved: dict[bytes, BindingRow] = {}
        self._saving = Scope()
        self._save_at = 0

    def __bool__(self) -> bool:
        return bool(self._keys)

    def elsewhere(self, key: bytes | None) -> bool:
        """Whether a message is bound to another key than this one."""
        return len(self._of_key) > (key in self._of_key)

    async def restore(self, audit: AuditLog) -> None:
        """Take up the bindings that earlier processes left. Raises StoreError, AuditUnavailable."""
        if self._stored is None:
            return
        unix, now = await self._stored.clock.follow(), monotonic_ns()
        stored, lost = await self._stored.load(), await left_by_a_crash(audit) if audit.enabled else []
        left = {row.digest: min(row.until_ns - unix, BINDING_NS) for row in stored}
        # How long ago is not known after another boot, nor of records, which have the wall clock's time: they stay
        # bound for the whole time from now on. Written again: the next crash may come before that is over.
        again = lost if self._stored.clock.counted else [*stored, *lost]
        left |= {row.digest: BINDING_NS for row in again}
        keys = {row.digest: row.key for row in [*stored, *lost]}
        for digest in sorted(left, key=left.__getitem__):
            if left[digest] > 0:
                self._bind(digest, keys[digest], now + left[digest])
        self._unsaved |= {row.digest: BindingRow(row.digest, row.key, unix + BINDING_NS) for row in again}
        self._save()

    def add(self, message: bytes | Digest, key: bytes, now: int) -> None:
        """Bind a message to a public key."""
        digest = digest_of(message)
        self._bind(digest, key, now + BINDING_NS)
        if self._stored is not None:
            self._unsaved[digest] = BindingRow(digest, key, self._stored.clock.now() + BINDING_NS)
            self._save()

    def _bind(self, digest: bytes, key: bytes, until: int) -> None:
        self._unbind(digest)
        self._keys[digest] = key, until  # as the newest: `forget` begins with the oldest
        self._of_key[key] += 1
        while len(self._keys) > BINDINGS_MAX:
            self._unbind(next(iter(self._keys)))

    def _unbind(self, digest: bytes) -> None:
        key, _ = self._keys.pop(digest, (None, 0))
        if key is not None:
            self._of_key[key] -= 1
            if not self._of_key[key]:
                del self._of_key[key]

    def get(self, message: Any) -> bytes | None:
        """The key that a message is bound to, if any."""
        try:
            found = self._keys.get(digest_of(message))
        except InvalidMessageType:
            return None  # no message: the engine raises the error
        return None if found is None else found[0]

    def any_elsewhere(self, messages: Iterable[Any], key: bytes | None) -> bool:
        """Whether one of the messages is bound to another key."""
        return bool(self) and any(self.get(message) not in (None, key) for message in messages)

    def forget(self, now: int) -> None:
        """Remove bindings older than BINDING_NS. Save what the store has refused before."""
        while self._keys and next(iter(self._keys.values()))[1] <= now:
            digest = next(iter(self._keys))
            self._unbind(digest)
            self._unsaved.pop(digest, None)
        if self._unsaved and now >= self._save_at:
            self._save()

    def _save(self) -> None:
        if self._unsaved and not self._saving.is_open:
            self._saving.start(self._save_all())

    async def _save_all(self) -> None:
        while self._stored is not None and self._unsaved:
            rows, self._unsaved = self._unsaved, {}
            try:
                await self._stored.keep(list(rows.values()))
            except HsmError as error:
                self._unsaved = rows | self._unsaved
                self._save_at = monotonic_ns() + RETRY_NS
                get_logger().error("messages' keys were not written to the state store", error=str(error))
                return

    async def close(self) -> None:
        """Save what is not saved, if the store takes it."""
        await self._saving.finish()
        await self._save_all()
