"""The seal of a state store: an HMAC, under a secret that is not in the store, over all rows that may lead to an act
which cannot be undone. A writer of the file who does not know the secret can make no row that is believed.

The rows of a scope have one digest; the seal is the MAC of all digests and of a counter that only grows. So a row that
was changed, added, removed, or put back from an earlier time is found. The whole store as it once was, with its seal,
is found by the processes that have seen a later counter; at a start the audit log shows it (recovery/marks.py).

In a server's store, what binds and renewals write is in no digest (sealed_rows.HOT), so that they need no turn and no
statement of the seal: a watermark has a MAC of its own, as a row of `bound` has. One that went back is an incident of
the fleet, which the hosts answer by what they remember and what their logs have.
"""

from __future__ import annotations

import hmac
import secrets
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from types import MappingProxyType
from typing import Any, Final, Protocol

import orjson
from sqlalchemy import Connection, Table, insert, select, update
from sqlalchemy.exc import OperationalError

from hsmcore.base.log import get_logger
from hsmcore.state.errors import StoreError, StoreNotGenuine
from hsmcore.state.schema import BOUND, SEAL, WATERMARK
from hsmcore.state.sealed_rows import HOT, ROWS, SEALED, Known, digest_of, lacking, no_rows, whole

GOES_BACK: Final = frozenset({"fleet", "policy", "domains"})
"""Scopes of which a fleet's database may lose the latest rows: its hosts put back what they know to be bound
(recovery/witness.py), and in which domain. Rows of any other scope that went back stay refused: a key that was
deactivated would sign again."""
EARLIER: Final = "it is an earlier state, which the fleet's hosts answer"
"""The problem that one transaction meets where a fleet's store has gone back. The next ones go on with it."""
LEAST_SECRET: Final = 32
"""Bytes."""
SCOPE: Final = {table.name: scope for scope, tables in SEALED.items() for table in tables}
_ROW: Final = "store"
_ADOPTED: Final = 1_000_000_000
"""Only an adoption raises the counter by more than this at once: it sets a time in nanoseconds."""
_LABEL: Final = b"hsmcore: the seal of a state store, version 1\0"
_ROW_LABEL: Final = b"hsmcore: a row of a state store, version 1\0"
_RECORD_LABEL: Final = b"hsmcore: a record of what a state store has bound, version 1\0"
_READ: Final = select(SEAL.c.store, SEAL.c.counter, SEAL.c.digests, SEAL.c.mac).where(SEAL.c.name == _ROW)
_MARKS: Final = select(*WATERMARK.c["name", "floor", "high", "bits", "reason", "mac"])
_HOT_SCOPES: Final = tuple(sorted({SCOPE[name] for name in HOT}))
_WRITE: Final = update(SEAL).where(SEAL.c.name == _ROW)

Listener = Callable[[str, str], None]
"""Called in the store's thread with a scope and its problem, or "" once it is genuine again."""
Foreign = Callable[[Connection], str]
"""Returns an object of the database that is missing, or that could change rows on its own; "": there is none."""


class Problems:
    """Why a store is not to be believed, by scope; changed in the store's thread."""

    def __init__(self) -> None:
        self.by_scope: Mapping[str, str] = {}
        """Replaced, never changed; any thread may read it."""
        self.listeners: list[Listener] = []

    def note(self, scope: str, problem: str, hint: str = StoreNotGenuine.default_hint) -> None:
        """Remember the result of a check, and tell of a change."""
        if self.by_scope.get(scope, "") == problem:
            return
        others = {name: text for name, text in self.by_scope.items() if name != scope}
        self.by_scope = others | ({scope: problem} if problem else {})
        if problem:
            get_logger().error("the state store is not genuine", scope=scope, problem=problem, hint=hint)
        else:
            get_logger().warning("the state store is genuine again", scope=scope)
        for listener in tuple(self.listeners):
            listener(scope, problem)


class SealSecret(Protocol):
    """The secret of a seal: hsmcore.config.Secret."""

    def resolve(self) -> bytearray:
        """Fetch it. The caller owns and wipes it. Raises SecretUnavailable."""


@dataclass(frozen=True, slots=True)
class SealStatus:
    """The state of a store's seal."""

    sealed: bool
    counter: int
    digest: str
    """The digest of all sealed rows as they are now, in hexadecimal."""
    problems: Mapping[str, str]
    """By scope."""


class Seal:
    """Checks and renews the seal of one database, in that database's thread. `foreign`: finds an object of another
    writer, such as a trigger, which could change rows while they are sealed. `problems`: where they are noted.
    `witnessed`: whether a loss of the latest rows is answered by a fleet's hosts."""

    def __init__(self, key: bytearray, foreign: Foreign, problems: Problems, *, witnessed: bool) -> None:
        self._key, self.foreign, self._witnessed = key, foreign, witnessed
        self.note = problems.note
        self._noted = problems
        self._store, self._counter, self._last = "", 0, ""
        self._known = self._writing = Known({}, {})
        """The last genuine state; and the state that `write` has sealed, until `seen` says that it is durable."""
        self._held: Mapping[str, str] = {}
        """The earlier digests of scopes that went back. The next seal of this process has them, for all hosts."""
        self._looked = -1

    def __repr__(self) -> str:
        return "Seal(hidden)"

    @property
    def doubted(self) -> bool:
        """Whether rows that a bind or a renewal uses were found not to be genuine, and were not looked at since."""
        return any(scope in self._noted.by_scope for scope in _HOT_SCOPES)

    @property
    def newest(self) -> tuple[str, int] | None:
        """The store and the counter of the seal that was seen last; None while anything that a bind uses is doubted, or
        went back. Any thread."""
        return None if self.doubted or self._held or not self._counter else (self._store, self._counter)

    def is_of(self, key: bytearray) -> bool:
        """Return whether this is the key."""
        return hmac.compare_digest(self._key, key)

    def wipe(self) -> None:
        """Forget the key."""
        self._key[:] = bytes(len(self._key))

    def begin(self, connection: Connection) -> int:
        """Seal a store in which no row is to be sealed yet. Another one without a seal waits for `adopt`; one that an
        older version has sealed is taken over. Returns the counter, for `seen`, or 0."""
        row = seal_row(connection)
        if row is not None:
            return self._take_over(connection, *row)
        empty = not any(
            connection.execute(select(table).limit(1)).first() for table in chain.from_iterable(SEALED.values())
        )
        if not empty or self.foreign(connection):
            return 0
        self._store = secrets.token_hex(16)
        return self.write(connection, self._digests(connection), self._store, 1)

    def _take_over(self, connection: Connection, store: Any, counter: Any, digests: Any, mac: Any) -> int:
        """Give the watermarks of a server their MACs, if the seal vouches for them as they are by its digests alone."""
        if not self._witnessed or not self._made(store, counter, digests, mac) or self.foreign(connection):
            return 0
        vouched = orjson.loads(digests)
        if ROWS in vouched or any(self._problem(connection, scope, vouched, {}) for scope in _HOT_SCOPES):
            return 0
        self._store = store
        return self.renew(connection, {**vouched, ROWS: "1"}, _HOT_SCOPES, counter + 1)

    def _digests(self, connection: Connection) -> dict[str, str]:
        """Return the digests of all rows as they are."""
        if self._witnessed:
            self._vouch_for_marks(connection)
        found = {scope: digest_of(connection, scope, cold=self._witnessed) for scope in SEALED}
        return found | ({ROWS: "1"} if self._witnessed else {})

    def read(self, connection: Connection) -> tuple[str, dict[str, str]]:
        """Return the problem of the whole seal, or "" and the digests that it vouches for."""
        try:
            row = seal_row(connection)
        except OperationalError as error:
            _require_unreadable(error)
            row = (None,) * 4
        if row is None:
            return ("its seal was removed" if self._counter else "it was never sealed"), {}
        if not self._made(*row):
            return "its seal was made with another secret, or by another writer", {}
        store, counter, digests, mac = row
        older = self._is_older(counter, mac)
        if self._counter and (store != self._store or (older and not self._witnessed)):
            return "it was replaced by an earlier state, or by another store", {}
        foreign = self.foreign(connection)
        if foreign:
            return f"{foreign} is not of hsmcore's making", {}
        found = orjson.loads(digests)
        problem = self._go_back(connection, found) if self._counter and older else ""
        if problem not in ("", EARLIER):
            return f"it was replaced by an earlier state: {problem}", {}
        if counter > self._counter + _ADOPTED:
            self._held = {}
        self._store, self._counter, self._last = store, counter, mac
        if problem:
            self.note("fleet", problem)  # listeners know before the next transaction begins
            return problem, {}
        if self._witnessed and found.get("policy") != self._known.digests.get("policy"):
            self.problem(connection, "policy", found)  # so that a host that binds nothing knows the floors, too
        self._known = self._known.after(found | self._held)
        return "", found

    def _is_older(self, counter: int, mac: str) -> bool:
        return counter < self._counter or (counter == self._counter and mac != (self._last or mac))

    def accepts(self, store: Any, counter: Any, digests: Any, mac: Any) -> bool:
        """Whether a seal is the one that was seen last, or a later one of the same store. What it vouches for is
        checked by those that use it. False: `read` says what it is."""
        if not self._counter or self._held or store != self._store or not self._made(store, counter, digests, mac):
            return False
        if self._is_older(counter, mac) or counter > self._counter + _ADOPTED:
            return False
        if counter > self._counter:
            self._counter, self._last, self._known = counter, mac, self._known.after(orjson.loads(digests))
        return True

    def _go_back(self, connection: Connection, vouched: dict[str, str]) -> str:
        """Take an earlier state, whose seal is of our making, for the present one, and return EARLIER; or why a loss of
        commits alone could not have left it."""
        rows: dict[Table, list[Any]] = {}
        for scope in sorted(GOES_BACK):
            if problem := self._problem(connection, scope, vouched, rows):
                return f"{scope}: {problem}"
        if missing := lacking(self._known.rows, rows):
            return f"it lacks {missing}"
        strict = {scope: digest for scope, digest in self._known.digests.items() if scope not in GOES_BACK}
        self._held = {**self._held, **{scope: was for scope, was in strict.items() if vouched.get(scope) != was}}
        self._known = self._known.after(vouched | self._held, rows)
        return EARLIER

    def problem(self, connection: Connection, scope: str, vouched: Mapping[str, str]) -> str:
        """Return why the rows of a scope are not those that were sealed, or ""."""
        rows: dict[Table, list[Any]] = {}
        problem = self._problem(connection, scope, vouched, rows)
        if not problem:
            self._known = self._known.after({scope: self._held.get(scope) or vouched.get(scope, "")}, rows)
        return problem

    def _problem(
        self, connection: Connection, scope: str, vouched: Mapping[str, str], rows: dict[Table, list[Any]]
    ) -> str:
        for table in SEALED[scope]:
            if is_sqlite(connection):
                # A forged index would find other rows than those that are digested.
                found = connection.exec_driver_sql(f"PRAGMA integrity_check('{table.name}')").scalar()
                if found != "ok":
                    return f"table {table.name}: {found}"
        try:
            # A seal of a version that did not have the scope says that it has no rows.
            sealed = self._held.get(scope) or vouched.get(scope) or no_rows(scope)
            cold = ROWS in vouched
            same = hmac.compare_digest(digest_of(connection, scope, rows, cold=cold), sealed)
            same = same and not (cold and any(not self.is_mark(*row) for row in _marks_in(rows)))
        except OperationalError as error:
            _require_unreadable(error)
            same = False
        return "" if same else "a row was changed, added, removed or put back"

    def renew(
        self, connection: Connection, vouched: Mapping[str, str], written: Collection[str], counter: int = 0
    ) -> int:
        """Seal the scopes that were written, and the others as they were. Returns as `write`."""
        rows: dict[Table, list[Any]] = {}
        cold = ROWS in vouched
        if cold and SCOPE[WATERMARK.name] in written:
            self._vouch_for_marks(connection)
        fresh = {scope: digest_of(connection, scope, rows, cold=cold) for scope in written}
        return self.write(connection, {**vouched, **fresh, **self._held}, counter=counter, rows=rows)

    def write(
        self,
        connection: Connection,
        digests: dict[str, str],
        store: str = "",
        counter: int = 0,
        rows: Mapping[Table, list[Any]] = MappingProxyType({}),
    ) -> int:
        """Write the seal. Returns its counter, which `seen` takes once the transaction is durable."""
        store, counter = store or self._store, counter or self._counter + 1
        self._writing = self._known.after(digests, rows)
        text = orjson.dumps(digests, option=orjson.OPT_SORT_KEYS).decode()
        values = {"store": store, "counter": counter, "digests": text, "mac": self._mac(store, counter, text)}
        if connection.execute(_WRITE, values).rowcount == 0:
            connection.execute(insert(SEAL), {"name": _ROW} | values)
        return counter

    def seen(self, counter: int) -> None:
        """Note that a seal of this process is durable."""
        if counter > self._counter:
            self._counter, self._last = counter, ""
            self._known, self._held = self._writing, {}

    def status(self, connection: Connection) -> SealStatus:
        """Check everything."""
        broken, vouched = self.read(connection)
        problems = {scope: broken or self.problem(connection, scope, vouched) for scope in SEALED}
        for scope, problem in problems.items():
            self.note(scope, problem)
        return SealStatus(
            sealed=seal_row(connection) is not None,
            counter=self._counter,
            digest=whole(connection),
            problems={scope: problem for scope, problem in problems.items() if problem},
        )

    def look(self, connection: Connection) -> None:
        """Check everything, if another connection has written since the last look. For telling people: what an act
        relies on is checked in the transaction that reads it."""
        version = connection.exec_driver_sql("PRAGMA data_version").scalar() if is_sqlite(connection) else None
        if version is None or version != self._looked or self._noted.by_scope:
            self.status(connection)
            self._looked = -1 if version is None else int(version)

    def adopt(self, connection: Connection, digest: str) -> int:
        """Seal the rows as they are, if they have that digest. Returns the counter, for `seen`. Raises StoreError."""
        if not hmac.compare_digest(whole(connection), digest):
            raise StoreError(
                "the state store does not have that digest", hint="Compare it again: `hsmcore state seal`."
            )
        foreign = self.foreign(connection)
        if foreign:
            raise StoreError(f"{foreign} is not of hsmcore's making", hint="Drop it, then adopt the store.")
        row = seal_row(connection)
        store, counter = self._store or secrets.token_hex(16), self._counter
        if row is not None and self._made(*row):
            store, counter = row[0], max(counter, row[1])
        # Greater than each counter that a running key manager has seen, also if the seal was put back or removed.
        self._store, counter = store, max(counter + 1, time.time_ns())
        self._held = {}
        self._vouch_for_bound(connection)
        return self.write(connection, self._digests(connection), store, counter)

    def vouch(self, *columns: object) -> str:
        """Return the MAC of a row that is sealed separately, within a transaction that uses a table of a scope."""
        return self._under(_ROW_LABEL + self._store.encode(), columns)

    def mark(self, *columns: object) -> str:
        """Return the MAC of a watermark's name, floor, high, bits and reason."""
        return self.vouch(WATERMARK.name, *columns)

    def is_mark(self, name: str, floor: object, high: object, bits: object, reason: object, mac: object) -> bool:
        """Return whether a watermark is as it was written."""
        return hmac.compare_digest(str(mac).encode(), self.mark(name, floor, high, bits, reason).encode())

    def attest(self, *columns: object) -> str:
        """Return the MAC of what a record of the audit log says was bound. It is of the secret alone: another store
        under it must believe the record, too. Any thread."""
        return self._under(_RECORD_LABEL, columns)

    def _vouch_for_bound(self, connection: Connection) -> None:
        for row in connection.execute(select(BOUND)).all():
            here = (BOUND.c.domain == row.domain) & (BOUND.c.position == row.position)
            connection.execute(update(BOUND).where(here).values(mac=self.vouch(*row[:-1])))

    def _vouch_for_marks(self, connection: Connection) -> None:
        for name, *rest in connection.execute(_MARKS).all():
            if not self.is_mark(name, *rest):
                fresh = update(WATERMARK).where(WATERMARK.c.name == name)
                connection.execute(fresh.values(mac=self.mark(name, *rest[:-1])))

    def _made(self, store: Any, counter: Any, digests: Any, mac: Any) -> bool:
        return isinstance(mac, str) and hmac.compare_digest(mac.encode(), self._mac(store, counter, digests).encode())

    def _mac(self, store: object, counter: object, digests: object) -> str:
        return self._under(_LABEL + ascii(store).encode(), (counter, digests))

    def _under(self, label: bytes, values: tuple[object, ...]) -> str:
        """Return the MAC of values under the key of a label."""
        key = hmac.digest(self._key, label, "sha256")
        return hmac.digest(key, ascii(values).encode(), "sha256").hex()


def derive(secret: SealSecret) -> bytearray:
    """Return the key of a seal. Blocks: the secret may be fetched from AWS. Raises SecretUnavailable, StoreError."""
    value = secret.resolve()
    try:
        if len(value) < LEAST_SECRET:
            raise StoreError(
                f"stateSecret has {len(value)} bytes; it needs {LEAST_SECRET} at least",
                hint="Make one with: openssl rand -hex 32",
            )
        return bytearray(hmac.digest(value, _LABEL, "sha256"))
    finally:
        value[:] = bytes(len(value))


def is_sqlite(connection: Connection) -> bool:
    return connection.dialect.name == "sqlite"


def _marks_in(rows: Mapping[Table, list[Any]]) -> Iterable[tuple[Any, ...]]:
    return ((row.name, row.floor, row.high, row.bits, row.reason, row.mac) for row in rows.get(WATERMARK, ()))


def _require_unreadable(error: OperationalError) -> None:
    """Raise an error again, unless it is of text that no process of ours has written: it is not UTF-8."""
    if "decode" not in str(error):
        raise error


def seal_row(connection: Connection) -> tuple[Any, ...] | None:
    row = connection.execute(_READ).first()
    return None if row is None else tuple(row)
