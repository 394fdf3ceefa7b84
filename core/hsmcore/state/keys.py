"""The key ring that survives a restart: which key signs, which ones still verify, and the end of the others."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import orjson
from sqlalchemy import Connection, select, update

from hsmcore.errors import KeyDeactivated, KeyMismatch, KeyNotFound
from hsmcore.state.domains import inherit
from hsmcore.state.errors import StoreError, StoreNotGenuine
from hsmcore.state.schema import KEY_VERSION as KEY
from hsmcore.state.schema import ROTATION_SETTING as SETTING
from hsmcore.state.schema import insert_row, replace_row
from hsmcore.state.store import Store, Tables

KeyState = Literal["pending", "active", "overlap", "deactivated", "destroyed"]
BY_HAND: Final = "deactivated by hand"
"""Note of a version that an operator or the application ended."""


@dataclass(frozen=True, slots=True)
class StoredKey:
    """One version. `version` counts up from 1. Times are Unix nanoseconds."""

    version: int
    key_id: str
    public_key: bytes
    """Empty until the key is pinned."""
    algorithm: str
    label: str
    members: tuple[str, ...]
    """The members that hold the key."""
    origin: str
    """"configured", "rotation", "generated" or "chosen"."""
    state: KeyState
    created_ns: int
    base_ns: int | None
    activated_ns: int | None
    retire_ns: int | None
    deactivated_ns: int | None
    destroyed_ns: int | None
    note: str

    @property
    def counts_from_ns(self) -> int:
        """The time from which its interval counts."""
        return self.base_ns or self.created_ns

    @property
    def valid_until_ns(self) -> int | None:
        """End of acceptance of its signatures; None: not known."""
        if self.state == "overlap":
            return self.retire_ns
        return self.deactivated_ns or self.destroyed_ns

    def to_json(self) -> dict[str, Any]:
        """Return the row for output and for verifiers elsewhere."""
        return {
            "version": self.version,
            "id": self.key_id,
            "publicKey": self.public_key.hex(),
            "algorithm": self.algorithm,
            "label": self.label,
            "state": self.state,
            "origin": self.origin,
            "members": list(self.members),
            "validFromNs": self.activated_ns,
            "validUntilNs": self.valid_until_ns,
            "note": self.note,
        }


def active_of(keys: Iterable[StoredKey]) -> StoredKey | None:
    """Return the version that signs."""
    return next((key for key in keys if key.state == "active"), None)


def _of(row: Any) -> StoredKey:
    values = dict(row)
    values["version"] = values.pop("id")
    values["public_key"] = bytes.fromhex(values["public_key"])
    values["members"] = tuple(orjson.loads(values["members"]))
    return StoredKey(**values)


def insert_key(
    connection: Connection,
    key_id: str,
    public_key: bytes,
    algorithm: str,
    label: str,
    members: Iterable[str],
    origin: str,
) -> int:
    """Add a pending version. Returns its number."""
    own = {"key_id": key_id, "public_key": public_key, "algorithm": algorithm, "label": label, "members": members}
    values = _columns({**own, "origin": origin, "state": "pending", "created_ns": time.time_ns(), "note": ""})
    return insert_row(connection, KEY, **values)


def _columns(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values as they are stored: `members` are names, `public_key` bytes."""
    stored = dict(values)
    if "members" in stored:
        stored["members"] = orjson.dumps(list(stored["members"])).decode()
    if "public_key" in stored:
        stored["public_key"] = stored["public_key"].hex()
    return stored


def get_key(connection: Connection, version: int) -> StoredKey:
    """Raises KeyNotFound."""
    row = connection.execute(select(KEY).where(KEY.c.id == version)).mappings().one_or_none()
    if row is None:
        raise KeyNotFound(f"the state store has no key version {version}")
    return _of(row)


def active_key(connection: Connection) -> StoredKey | None:
    """Return the version that signs."""
    row = connection.execute(select(KEY).where(KEY.c.state == "active")).mappings().one_or_none()
    return None if row is None else _of(row)


def change_key(connection: Connection, version: int, **values: Any) -> None:
    """Set columns of a version; `members` as names, `public_key` as bytes."""
    connection.execute(update(KEY).where(KEY.c.id == version).values(**_columns(values)))


def activate_key(
    connection: Connection, version: int, now_ns: int, base_ns: int, retire_ns: int, why: str = ""
) -> None:
    """Make a version the one that signs. The former one verifies until `retire_ns`, and its note says `why`.
    Idempotent. Raises KeyDeactivated, KeyNotFound, and DomainMismatch for one that has bound positions elsewhere."""
    new, old = get_key(connection, version), active_key(connection)
    if new.state == "active":
        return
    if new.state in ("deactivated", "destroyed") or not new.public_key:
        raise KeyDeactivated(f"key version {version} ({new.key_id}) is {new.state} and cannot sign")
    if old is not None:
        inherit(connection, old.public_key, new.public_key, now_ns)
        change_key(connection, old.version, state="overlap", retire_ns=retire_ns, note=why)
    change_key(connection, version, state="active", activated_ns=now_ns, base_ns=base_ns, retire_ns=None, note="")


def keep_key(connection: Connection, version: int, now_ns: int, why: str) -> None:
    """Mark a key that a rotation made, or claims to have made: it stays on the token and never signs. No other version
    is changed."""
    if get_key(connection, version).state == "pending":
        change_key(connection, version, state="deactivated", deactivated_ns=now_ns, note=why)


def end_overlap(connection: Connection, version: int, now_ns: int, sure_ns: int) -> StoredKey:
    """End a version's verification now, if its overlap is over by `sure_ns`. Returns its present state: a version that
    an operator made current again signs on, or has another end."""
    key = get_key(connection, version)
    if key.state == "overlap" and (key.retire_ns or 0) <= sure_ns:
        change_key(connection, version, state="deactivated", deactivated_ns=now_ns)
        return get_key(connection, version)
    return key


def all_keys(connection: Connection) -> list[StoredKey]:
    """Return every version, oldest first."""
    return [_of(row) for row in connection.execute(select(KEY).order_by(KEY.c.id)).mappings()]


class Keys(Tables):
    """Reads and writes `key_version` and `rotation_setting`."""

    async def all(self) -> list[StoredKey]:
        """Return every version, oldest first."""
        # Made in the store's thread: a key manager looks each second, and after years there are many versions.
        return await self._store.run(all_keys)

    async def current(self) -> StoredKey | None:
        """Return the version that signs; None before the first start."""
        return await self._store.run(active_key)

    async def begin(
        self, key_id: str, public_key: bytes, algorithm: str, label: str, members: Iterable[str], configured: str
    ) -> StoredKey:
        """Begin the ring with the key that the configuration names (`configured`: how), or find that key in it. Returns
        the version that signs, which may be another one. Raises KeyMismatch for a key that is not in the ring,
        KeyDeactivated if it was deactivated and no other key signs."""
        holders = list(members)

        def work(connection: Connection) -> StoredKey:
            now, current = time.time_ns(), active_key(connection)
            known = known_version(connection, public_key)
            if current is None and known is not None:
                raise KeyDeactivated(
                    f"the configuration names key {key_id}, which was deactivated, and no key of the ring signs",
                    hint="Name another key of the token in the configuration.",
                )
            if current is None:
                version = insert_key(connection, key_id, public_key, algorithm, label, holders, "configured")
                activate_key(connection, version, now, now, now)
                current = get_key(connection, version)
            elif known is None:
                raise KeyMismatch(
                    f"the configuration names key {key_id}, but the key ring in {self._store.name} does not have it; "
                    f"its current key is {current.key_id} ({current.public_key.hex()})",
                    hint="Name the key that the ring began with, or `hsmcore rotate adopt` to go on with the other "
                    "one, or name another store (stateFile, fleet.store).",
                )
            replace_row(connection, SETTING, "configured", value=configured)
            return current

        return await self._store.run(work)

    async def deactivate(self, public_key: bytes) -> None:
        """End a version's signing; of one that has ended, note that this was by hand. An unknown one is left out. If it
        was the current one, no version is."""

        def work(connection: Connection) -> None:
            version = known_version(connection, public_key)
            if version is not None:
                ended = get_key(connection, version).state in ("deactivated", "destroyed")
                change = {} if ended else {"state": "deactivated", "deactivated_ns": time.time_ns()}
                change_key(connection, version, note=BY_HAND, **change)

        await self._store.run(work)

    async def end_overlap(self, version: int, now_ns: int, sure_ns: int) -> StoredKey:
        """Run `end_overlap` in a separate transaction."""
        return await self._store.run(lambda connection: end_overlap(connection, version, now_ns, sure_ns))

    async def change(self, version: int, **values: Any) -> None:
        """Run `change_key` in a separate transaction."""
        await self._store.run(lambda connection: change_key(connection, version, **values))

    async def setting(self, name: str) -> str | None:
        """Return a setting of the ring."""
        query = select(SETTING.c.value).where(SETTING.c.name == name)
        return await self._store.run(lambda connection: connection.execute(query).scalar())

    async def set_setting(self, name: str, value: str) -> None:
        """Change a setting of the ring."""
        await self._store.run(lambda connection: replace_row(connection, SETTING, name, value=value))


async def require_no_other_ring(store: Store, public_key: bytes) -> None:
    """Before a ring is begun: raise KeyMismatch if another store in the same folder has the key in its ring. The
    configuration may have got another default name. A file that cannot be read is left out."""
    try:
        begun = await store.run(lambda connection: connection.execute(select(KEY.c.id).limit(1)).scalar()) is not None
    except StoreNotGenuine:
        begun = True  # there is something
    if begun:
        return
    if store.path is None:
        return
    for path in sorted(store.path.parent.glob("hsmcore-state*.db")):
        if path == store.path:
            continue
        try:
            other = await Store.open_to_read(path)
        except StoreError:
            continue
        try:
            if await other.run(lambda connection: known_version(connection, public_key)) is not None:
                raise KeyMismatch(
                    f"the key ring of {public_key.hex()} lies in {path}, and {store.path} would begin another one",
                    hint="Name that store with stateFile; to begin another ring, name a new one.",
                )
        finally:
            await other.close()


def known_version(connection: Connection, public_key: bytes) -> int | None:
    """Return the latest version with that public key."""
    query = select(KEY.c.id).where(KEY.c.public_key == public_key.hex()).order_by(KEY.c.id.desc())
    found = connection.execute(query).scalar()
    return None if found is None else int(found)
