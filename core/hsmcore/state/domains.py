"""The domain in which a key binds positions, and the forms by which it knows payloads that have one.

Both are text of a configuration, which a person edits. So a key's row is written in the transaction in which the key
first binds, and says what they were: a configuration that says otherwise would sign a second payload at a position.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import orjson
from sqlalchemy import Connection, bindparam, delete, insert, select, update

from hsmcore.state.errors import DomainMismatch
from hsmcore.state.exchange import Change, Question
from hsmcore.state.positions import of_our_making
from hsmcore.state.schema import KEY_DOMAIN

ASK: Final = Question(select(KEY_DOMAIN))
"""All rows: one for each key that ever bound a position, or replaced one that did."""
_ADD: Final = insert(KEY_DOMAIN)
_SET: Final = update(KEY_DOMAIN).where(KEY_DOMAIN.c.public_key == bindparam("key"))
_REMOVE: Final = delete(KEY_DOMAIN).where(KEY_DOMAIN.c.public_key == bindparam("key"))


class KeyDomain(NamedTuple):
    """What a configuration says, or the row of a key. `forms`: the callers' ordered kinds and the formats, as
    Policy.forms has them; of a row that was put back from an audit log none, since the log does not say them."""

    domain: str
    forms: tuple[str, ...]
    where: str = ""
    """The JSON path of the policy that says so; "" of a row."""

    def __str__(self) -> str:
        return f"domain {self.domain} with {', '.join(self.forms) or 'forms that are not known'}"

    def reads(self, other: KeyDomain) -> bool:
        """Return whether each payload that `other` gives a position has the same one here. Forms exclude each other, so
        one that is added changes no payload of the others."""
        return bool(self.forms) and self.domain == other.domain and set(self.forms) >= set(other.forms)

    def refusal(
        self, there: Mapping[bytes, KeyDomain], keys: Iterable[bytes], witness: str = "the state store"
    ) -> DomainMismatch | None:
        """Return why the first one of keys must not bind as this configuration says; None: all may. `there`: what a
        `witness` says of keys."""
        now = str(self) if self.forms else "no kind with a position"
        for key in keys:
            if (found := there.get(key)) is not None and not self.reads(found):
                return DomainMismatch(
                    f"key {key.hex()} has bound positions in {found}, says {witness}; {self.where} has {now}",
                    hint="Correct the policy. Only if the key is to go on so: "
                    f"`hsmcore policy rebind {key.hex()} --reason TEXT`.",
                )
        return None

    def require(
        self, there: Mapping[bytes, KeyDomain], keys: Iterable[bytes], witness: str = "the state store"
    ) -> None:
        """Raise DomainMismatch unless keys may bind: `refusal`."""
        if (refusal := self.refusal(there, keys, witness)) is not None:
            raise refusal


class Binder:
    """Sees to it that the keys which sign now bind as the configuration says. `keys`: returns them; in the event loop.
    A key is looked at once: its row is changed only while no process binds with it (`rebind`)."""

    def __init__(self, wanted: KeyDomain, keys: Callable[[], Iterable[bytes]]) -> None:
        self.wanted, self._signing = wanted, keys
        self._known = set[bytes]()
        self._epoch = 0

    def keys(self) -> list[bytes]:
        """Return the public keys that sign now. In the event loop."""
        return list(self._signing())

    def unsure(self, epoch: int = 0) -> list[bytes]:
        """Return the keys whose rows the next transaction must read. `epoch`: of the fleet; with another one, the
        database may have lost a row. In the event loop."""
        if epoch != self._epoch:
            self._epoch, self._known = epoch, set()
        return [key for key in self._signing() if key not in self._known] if self.wanted.forms else []

    def sure(self, keys: Iterable[bytes]) -> None:
        """Note keys whose rows are durable. In the event loop."""
        self._known.update(keys)

    def changes(self, rows: Iterable[Sequence[Any]], keys: Sequence[bytes], now: int) -> list[Change]:
        """Return what makes the rows of keys say what the configuration does. `rows`: the answer to ASK. Raises
        DomainMismatch. In the store's thread."""
        there, changed = read(rows), list[Change]()
        self.wanted.require(there, keys)
        for key in keys:
            found = there.get(key)
            if found is None:
                changed.append(Change(_ADD, [_values(key, self.wanted, now)]))
            elif len(found.forms) < len(self.wanted.forms):
                changed.append(Change(_SET, [{"key": key.hex(), "forms": _text(self.wanted)}], required=True))
        return changed


NO_KEYS: Final = Binder(KeyDomain("", ()), tuple)
"""For what binds no callers' positions, or without a key."""


def read(rows: Iterable[Sequence[Any]]) -> dict[bytes, KeyDomain]:
    """Return the rows by public key. Raises StoreError for those of another writer."""
    with of_our_making("keys' domains"):
        return {
            bytes.fromhex(key): KeyDomain(str(domain), tuple(orjson.loads(forms))) for key, domain, forms, *_ in rows
        }


def everything(connection: Connection) -> dict[bytes, KeyDomain]:
    """As `read`, of all rows."""
    return read(connection.execute(ASK.statement))


def inherit(connection: Connection, old: bytes, new: bytes, now: int) -> None:
    """Have a key that replaces another one bind where that one did. Raises DomainMismatch for one that has bound
    elsewhere."""
    there = everything(connection)
    before, found = there.get(old), there.get(new)
    if before is None or found == before:
        return
    if found is None:
        connection.execute(_ADD, _values(new, before, now))
    elif not (before.reads(found) or found.reads(before)):
        raise DomainMismatch(
            f"key {new.hex()} has bound positions in {found}, and the one that it is to replace in {before}"
        )


def put_back(connection: Connection, domains: Mapping[bytes, str], now: int) -> None:
    """Add the rows that are missing of keys that an audit log says to have bound in these domains."""
    there = everything(connection) if domains else {}
    added = [_values(key, KeyDomain(domain, ()), now) for key, domain in sorted(domains.items()) if key not in there]
    if added:
        connection.execute(_ADD, added)


def rebind(
    connection: Connection, wanted: KeyDomain, keys: Sequence[bytes], reason: str, now: int
) -> dict[bytes, KeyDomain | None]:
    """Have keys, of all rows without `keys`, bind as a configuration says from now on. Returns what was there before of
    those that differed. No process may bind with them meanwhile."""
    there = everything(connection)
    changed = {key: there.get(key) for key in keys or there if there.get(key) != wanted._replace(where="")}
    for key in changed:
        connection.execute(_REMOVE, {"key": key.hex()})
        if wanted.forms:
            connection.execute(_ADD, _values(key, wanted, now, reason))
    return changed


def _values(key: bytes, said: KeyDomain, now: int, reason: str = "") -> dict[str, Any]:
    return {"public_key": key.hex(), "domain": said.domain, "forms": _text(said), "bound_ns": now, "reason": reason}


def _text(said: KeyDomain) -> str:
    return orjson.dumps(said.forms).decode()
