"""Which state store of this host keeps what a key has promised: found by the key, and not only by what a configuration
says. An edited configuration, a moved log or folder must not begin with nothing.

There is a small file for each key, below the user's state folder. It is made once a store keeps a promise for the key,
before the promise counts: `Keeper`. A start compares. It does not seal: it protects against accidents, and leaves a
hostile writer to the seal and the audit log. A fleet's database has its own witness.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import orjson
from sqlalchemy import Connection

from hsmcore.base.log import get_logger
from hsmcore.base.ownership import make_folder, open_or_make
from hsmcore.base.ownership import replace as replace_file
from hsmcore.state.errors import StoreBehind, StoreError
from hsmcore.state.sqlite import is_promised, number_in, number_of, ring_in, set_number

ANY: Final = 0
"""The id of a store that an operator let begin: the first one at its place."""
_FORMAT: Final = "hsmcore-key-1"
_MOST_BYTES: Final = 65_536
_FIELDS: Final = {"format": str, "publicKey": str, "store": str, "id": int, "auditLog": str, "notedNs": int}
_HINT: Final = (
    "Repair it, or give this user a state folder that lasts (XDG_STATE_HOME): it remembers which store keeps what the "
    "key has promised."
)


@dataclass(frozen=True, slots=True)
class Entry:
    """The entry of a key."""

    public_key: bytes
    store: Path
    id: int
    audit_log: str
    """The log's place when it was noted; "": there was none."""
    noted_ns: int

    def to_bytes(self) -> bytes:
        """Return what `parsed` reads."""
        values = (_FORMAT, self.public_key.hex(), str(self.store), self.id, self.audit_log, self.noted_ns)
        return orjson.dumps(dict(zip(_FIELDS, values, strict=True))) + b"\n"

    def same(self, other: Entry) -> bool:
        """Return whether both name one store."""
        return replace(self, noted_ns=other.noted_ns) == other


class Register:
    """The entries of one user. Its methods block; raise StoreError unless they say otherwise. `folder`: where they
    are, in the user's state folder; None: there is none."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def read(self, public_key: bytes) -> Entry | None:
        """Return what is known of a key; None: nothing."""
        path = self._path(public_key)
        if path is None:
            return None
        try:
            with path.open("rb") as file:
                return parsed(file.read(_MOST_BYTES), public_key)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise StoreError(f"{path}: {error.strerror}", call="open", hint=_HINT) from None
        except ValueError:
            raise StoreError(f"{path}: it is not of hsmcore's making", hint=_HINT) from None

    def all(self) -> list[Entry]:
        """Return the entries, without those that cannot be read."""
        found = []
        for path in sorted(self.folder.glob("*.json")) if self.folder is not None else ():
            with suppress(OSError, ValueError), path.open("rb") as file:
                found.append(parsed(file.read(_MOST_BYTES), None))
        return found

    def number_at(self, path: Path) -> int:
        """Return the id of the store that is known to be at a place; 0: none is."""
        here = [entry for entry in self.all() if entry.store == Path(os.path.realpath(path))]
        return max(here, key=lambda entry: entry.noted_ns).id if here else 0

    def begin(self, public_key: bytes, path: Path, *, first: bool = False) -> Entry | None:
        """Let the store at a place be the one of a key, and of each key of the store that was it, whatever is in it.
        Returns the former entry; None: there is none, which is an error unless the store is the `first` one."""
        before = self.read(public_key)
        if before is None and first:
            return None
        if before is None:
            raise StoreError(
                f"no store is known of key {public_key.hex()} in {self.folder}",
                hint="Run it as the key manager's user.",
            )
        with self.turn():
            place, now = Path(os.path.realpath(path)), time.time_ns()
            others = [one for one in self.all() if (one.id, one.store) == (before.id, before.store)]
            every = {one.public_key: one for one in (*others, before)}
            for one in every.values():
                self.write(replace(one, store=place, id=ANY, noted_ns=now))
        return before

    def write(self, entry: Entry) -> None:
        """Write an entry, atomically and durably."""
        path = self._path(entry.public_key)
        if path is None:
            raise StoreError("this user has no state folder", hint=_HINT)
        try:
            replace_file(path, entry.to_bytes())
        except OSError as error:
            raise StoreError(f"{path}: {error.strerror}", call="write", hint=_HINT) from None

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Have entries read and written by one process at a time, for a moment."""
        if self.folder is None:
            raise StoreError("this user has no state folder", hint=_HINT)
        try:
            make_folder(self.folder, parents=True)
            lock = open_or_make(self.folder / ".lock")
        except OSError as error:
            raise StoreError(f"{self.folder}: {error.strerror}", call="open", hint=_HINT) from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def _path(self, public_key: bytes) -> Path | None:
        name = f"{hashlib.sha256(public_key).hexdigest()[:40]}.json"
        return None if self.folder is None else self.folder / name


class Keeper:
    """Notes the store of a key manager in the register. Runs in the store's thread, within a transaction, so what is
    promised there counts only once it is noted. `path`: the store's; `log`: the audit log's place, or ""; `begins`:
    whether it may be an empty one."""

    def __init__(
        self,
        register: Register,
        path: Path,
        log: str,
        keys: Iterable[bytes],
        *,
        begins: bool = True,
    ) -> None:
        self._register, self._begins = register, begins
        self._path, self._log = Path(os.path.realpath(path)), log
        self._keys = frozenset(keys)
        self.noted: Mapping[bytes, Entry] = {}
        """By key, once a promise was found. Any thread."""
        self.number = 0
        """The id of the store, once it has begun."""

    def begin(self, connection: Connection) -> None:
        """Compare at a start, and give a store that has none an id, which is durable before an entry names it. Raises
        StoreBehind for a store that is not the one of a key; StoreError where that cannot be read, if the store keeps a
        promise."""
        own, promised = number_in(connection), is_promised(connection)
        known = False
        for key in sorted(self._keys | ring_in(connection)):
            try:
                entry = self._register.read(key)
            except StoreError as error:
                if promised:
                    raise
                get_logger().warning("whether another store keeps a promise of the key is unknown", error=str(error))
                continue
            if entry is not None:
                self._require(entry, own)
                known = True
        if not own:
            if begins := not known and not promised:
                self._require_begun()
            identify(connection)
            if begins:
                get_logger().info("a state store begins: no other one is known of the key", store=str(self._path))
        self.number = number_in(connection)

    def _require_begun(self) -> None:
        if not self._begins:
            raise StoreBehind(
                f"state store {self._path}: it is empty, and the configuration has requireState",
                hint="Put the one that is missing in its place: is its volume mounted? Only if this is the key's first "
                f"start: {_command(min(self._keys))}",
            )

    def settle(self, connection: Connection) -> None:
        """Note what the store keeps already. Raises as `look`."""
        if is_promised(connection):
            self._note(connection, self._keys | ring_in(connection))

    def look(self, connection: Connection, tables: set[str]) -> None:
        """Note the store before the first promise is committed, and each new key of its ring. `tables`: those that the
        transaction writes. Raises StoreBehind, StoreError."""
        if self.noted and "key_version" not in tables:
            return
        keys = self._keys | ring_in(connection)
        if keys > self.noted.keys() and is_promised(connection):
            self._note(connection, keys)

    def _note(self, connection: Connection, keys: frozenset[bytes]) -> None:
        own, now = number_in(connection), time.time_ns()
        fresh = [Entry(key, self._path, own, self._log, now) for key in sorted(keys - self.noted.keys())]
        if not all(self._is_noted(entry) for entry in fresh):
            self._write(fresh)
        self.noted = {**self.noted, **{entry.public_key: entry for entry in fresh}}

    def _write(self, fresh: list[Entry]) -> None:
        try:
            with self._register.turn():
                for entry in fresh:
                    if not self._is_noted(entry):
                        self._register.write(entry)
        except StoreBehind:
            raise
        except StoreError as error:
            # A process without a durable home has no register; `doctor` warns of it.
            get_logger().error("which store keeps a key's promises is not remembered", error=str(error))

    def _is_noted(self, wanted: Entry) -> bool:
        entry = self._register.read(wanted.public_key)
        if entry is None:
            return False
        self._require(entry, wanted.id)
        return entry.same(wanted)

    def _require(self, entry: Entry, own: int) -> None:
        """Raise StoreBehind unless the store is the one that keeps what the key has promised."""
        here = entry.store == self._path
        if here and entry.id in (ANY, own):
            return
        is_copy = False
        if own != ANY and entry.id == own:
            is_copy = number_of(entry.store) == own and not entry.store.samefile(self._path)
            if not is_copy:
                return  # it was moved, or has another path here
        log = f", beside the audit log {entry.audit_log}" if entry.audit_log else ""
        when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(entry.noted_ns / 1e9))
        what = "is a copy of the one" if is_copy else "is not the one"
        that = f"the one with id {entry.id}, and this one has id {own or 'none'}" if here else f"{entry.store}{log}"
        name = "Put that one in its place" if here else f'Name that one: "stateFile": "{entry.store}"'
        raise StoreBehind(
            f"state store {self._path}: it {what} that keeps what key {entry.public_key.hex()} has promised: that is "
            f"{that}, as of {when}",
            hint=f"{name}. Only if it is lost, or this one is to go on in its place: {_command(entry.public_key)}",
        )


def identify(connection: Connection) -> None:
    """Give a store that has none an id, in a transaction: it has begun."""
    if not number_in(connection):
        set_number(connection, 1 + secrets.randbelow((1 << 31) - 1))


def _command(public_key: bytes) -> str:
    """Return the command that lets another store begin for a key, as the key manager's user gives it."""
    base = os.environ.get("XDG_STATE_HOME")
    variable = f"XDG_STATE_HOME={base} " if base else ""
    return f"{variable}hsmcore state begin {public_key.hex()} --reason TEXT"


def parsed(text: bytes, public_key: bytes | None) -> Entry:
    """Return an entry that `to_bytes` wrote, of a key if it is given. Raises ValueError."""
    found: dict[str, Any] = orjson.loads(text)
    if type(found) is not dict or {name: type(value) for name, value in found.items()} != _FIELDS:
        raise ValueError(text)
    entry = Entry(
        bytes.fromhex(found["publicKey"]), Path(found["store"]), found["id"], found["auditLog"], found["notedNs"]
    )
    if found["format"] != _FORMAT or public_key not in (None, entry.public_key):
        raise ValueError(text)
    return entry
