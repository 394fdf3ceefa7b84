"""The store's tables, and the migrations that make them.

A migration is a number and a list of statements in SQL that SQLite and PostgreSQL both understand; `{serial}` is a key
that the database counts up. A released migration is never changed: another one is added. The tables have the columns
that all of them give. Times are nanoseconds since 1970; JSON is text. A column that is added to a sealed table
(state/seal.py) comes last and may be NULL: rows that were sealed before keep their digest.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    Connection,
    Delete,
    Insert,
    Integer,
    MetaData,
    Table,
    Text,
    and_,
    bindparam,
    delete,
    func,
    insert,
    or_,
    select,
)

PORTION: Final = 500
"""Rows that one transaction removes of those that mean nothing any more. With four times as many, a holder's binds wait
for the server's processor and disk as long as that takes."""
FORGET_SECONDS: Final = 3600.0
KEPT_NS: Final = 400 * 86_400 * 10**9
"""How long history is kept, if it is not too much: last year's is there to compare with."""


@dataclass(frozen=True, slots=True)
class Migration:
    number: int
    statements: tuple[str, ...]


TYPES: Final = {
    "sqlite": ((r"\{serial\}", "INTEGER PRIMARY KEY AUTOINCREMENT"),),
    "postgresql": (
        (r"\{serial\}", "BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY"),
        # Compared byte by byte, as SQLite does: the order, and with it an index, must not depend on a host's locales.
        (r"\bTEXT\b", 'TEXT COLLATE "C"'),
    ),
}
"""Replacements in the statements of a migration for a dialect, as regular expressions."""

MIGRATIONS: Final = (
    Migration(
        1,
        (
            """CREATE TABLE failover_event (
                id {serial}, time_ns BIGINT NOT NULL, kind TEXT NOT NULL, level_from TEXT, level_to TEXT, member TEXT,
                reason TEXT NOT NULL, details TEXT NOT NULL)""",
            "CREATE INDEX failover_event_time ON failover_event (time_ns)",
            """CREATE TABLE emergency_episode (
                id {serial}, began_ns BIGINT NOT NULL, first_ns BIGINT, latest_ns BIGINT NOT NULL,
                max_transactions BIGINT NOT NULL, max_seconds BIGINT NOT NULL,
                reserved BIGINT NOT NULL CHECK (reserved >= 0 AND reserved <= max_transactions),
                ended_ns BIGINT, end_reason TEXT)""",
            "CREATE UNIQUE INDEX emergency_episode_open ON emergency_episode ((1)) WHERE ended_ns IS NULL",
            """CREATE TABLE desired_state (
                name TEXT PRIMARY KEY, value TEXT NOT NULL, reason TEXT NOT NULL, set_ns BIGINT NOT NULL)""",
            "CREATE TABLE snapshot (name TEXT PRIMARY KEY, value TEXT NOT NULL, written_ns BIGINT NOT NULL)",
        ),
    ),
    Migration(
        2,
        (
            """CREATE TABLE key_version (
                id {serial}, key_id TEXT NOT NULL, public_key TEXT NOT NULL, algorithm TEXT NOT NULL,
                label TEXT NOT NULL, members TEXT NOT NULL, origin TEXT NOT NULL,
                state TEXT NOT NULL CHECK (state IN ('pending', 'active', 'overlap', 'deactivated', 'destroyed')),
                created_ns BIGINT NOT NULL, base_ns BIGINT, activated_ns BIGINT, retire_ns BIGINT,
                deactivated_ns BIGINT, destroyed_ns BIGINT, note TEXT NOT NULL)""",
            "CREATE UNIQUE INDEX key_version_active ON key_version ((1)) WHERE state = 'active'",
            """CREATE TABLE rotation (
                id {serial}, cause TEXT NOT NULL, reason TEXT NOT NULL, slot_ns BIGINT, begun_ns BIGINT NOT NULL,
                ended_ns BIGINT, old_version BIGINT NOT NULL, new_version BIGINT NOT NULL,
                status TEXT NOT NULL
                    CHECK (status IN ('running', 'undoing', 'overlap', 'done', 'failed', 'aborted')),
                step TEXT NOT NULL, step_begun INTEGER NOT NULL, wait_ns BIGINT NOT NULL, tries BIGINT NOT NULL,
                aborted INTEGER NOT NULL, error TEXT NOT NULL)""",
            "CREATE UNIQUE INDEX rotation_one ON rotation ((1)) WHERE status IN ('running', 'undoing')",
            """CREATE TABLE rotation_step (
                id {serial}, rotation_id BIGINT NOT NULL, time_ns BIGINT NOT NULL, step TEXT NOT NULL,
                outcome TEXT NOT NULL, details TEXT NOT NULL)""",
            "CREATE INDEX rotation_step_rotation ON rotation_step (rotation_id)",
            "CREATE TABLE rotation_setting (name TEXT PRIMARY KEY, value TEXT NOT NULL)",
            """CREATE TABLE backup (
                id {serial}, key_id TEXT NOT NULL, public_key TEXT NOT NULL, place TEXT NOT NULL, name TEXT NOT NULL,
                method TEXT NOT NULL, sha256 TEXT NOT NULL, made_ns BIGINT NOT NULL, drilled_ns BIGINT)""",
            "CREATE UNIQUE INDEX backup_object ON backup (place, name)",
            """CREATE TABLE approval (
                id {serial}, rotation_id BIGINT NOT NULL, approver TEXT NOT NULL, method TEXT NOT NULL,
                totp_step BIGINT, time_ns BIGINT NOT NULL)""",
            "CREATE UNIQUE INDEX approval_once ON approval (rotation_id, approver)",
            "CREATE UNIQUE INDEX approval_code ON approval (approver, totp_step)",
            """CREATE TABLE notice (
                id {serial}, time_ns BIGINT NOT NULL, kind TEXT NOT NULL, occasion TEXT NOT NULL,
                title TEXT NOT NULL, body TEXT NOT NULL)""",
            "CREATE UNIQUE INDEX notice_occasion ON notice (occasion)",
            """CREATE TABLE notice_delivery (
                id {serial}, notice_id BIGINT NOT NULL, target TEXT NOT NULL, attempts BIGINT NOT NULL,
                next_ns BIGINT NOT NULL, done_ns BIGINT, given_up_ns BIGINT, error TEXT NOT NULL)""",
            "CREATE UNIQUE INDEX notice_delivery_once ON notice_delivery (notice_id, target)",
        ),
    ),
    Migration(3, ("ALTER TABLE approval ADD COLUMN proof TEXT NOT NULL DEFAULT ''",)),
    Migration(
        4,
        (
            """CREATE TABLE seal (
                name TEXT PRIMARY KEY, store TEXT NOT NULL, counter BIGINT NOT NULL, digests TEXT NOT NULL,
                mac TEXT NOT NULL)""",
        ),
    ),
    Migration(
        5,
        ("CREATE TABLE key_binding (digest TEXT PRIMARY KEY, public_key TEXT NOT NULL, until_ns BIGINT NOT NULL)",),
    ),
    Migration(
        6,
        (
            """CREATE TABLE bound (
                domain TEXT NOT NULL, position BIGINT NOT NULL, digest TEXT NOT NULL, holder TEXT NOT NULL,
                bound_ns BIGINT NOT NULL, mac TEXT NOT NULL, PRIMARY KEY (domain, position))""",
            """CREATE TABLE watermark (
                name TEXT PRIMARY KEY, floor BIGINT NOT NULL, high BIGINT NOT NULL, bits TEXT NOT NULL,
                reason TEXT NOT NULL)""",
            "CREATE TABLE spent (name TEXT PRIMARY KEY, minute BIGINT NOT NULL, amount BIGINT NOT NULL)",
        ),
    ),
    Migration(
        7,
        (
            """CREATE TABLE fleet (
                name TEXT PRIMARY KEY, epoch BIGINT NOT NULL, holder TEXT NOT NULL, host TEXT NOT NULL,
                claimed_ns BIGINT NOT NULL, renewals BIGINT NOT NULL, released BIGINT NOT NULL, timeline TEXT NOT NULL,
                system TEXT NOT NULL, incident BIGINT NOT NULL, reason TEXT NOT NULL)""",
            """CREATE TABLE fleet_host (
                name TEXT PRIMARY KEY, instance TEXT NOT NULL, seen_ns BIGINT NOT NULL, state TEXT NOT NULL,
                incident BIGINT NOT NULL, retired BIGINT NOT NULL, note TEXT NOT NULL)""",
            """CREATE TABLE fleet_floor (
                host TEXT NOT NULL, domain TEXT NOT NULL, position BIGINT NOT NULL, digest TEXT NOT NULL,
                PRIMARY KEY (host, domain))""",
            """CREATE TABLE role (
                name TEXT PRIMARY KEY, epoch BIGINT NOT NULL, holder TEXT NOT NULL, until_ns BIGINT NOT NULL)""",
        ),
    ),
    Migration(
        8,
        (
            """CREATE TABLE audit_mark (
                name TEXT PRIMARY KEY, logged TEXT NOT NULL, pending TEXT NOT NULL, marked_ns BIGINT NOT NULL,
                restored TEXT NOT NULL)""",
        ),
    ),
    Migration(
        9,
        (
            """CREATE TABLE key_set (
                domain TEXT NOT NULL, serial BIGINT NOT NULL, note TEXT NOT NULL, PRIMARY KEY (domain, serial))""",
            "CREATE TABLE key_evidence (public_key TEXT PRIMARY KEY, document TEXT NOT NULL, made_ns BIGINT NOT NULL)",
        ),
    ),
    Migration(
        10,
        (
            """CREATE TABLE key_domain (
                public_key TEXT PRIMARY KEY, domain TEXT NOT NULL, forms TEXT NOT NULL, bound_ns BIGINT NOT NULL,
                reason TEXT NOT NULL)""",
        ),
    ),
    Migration(
        11,
        (
            "ALTER TABLE fleet ADD COLUMN mark TEXT",
            "ALTER TABLE fleet ADD COLUMN held TEXT",
            # The lease and the orders of a fleet.
            "ALTER TABLE fleet ADD COLUMN renewed_by TEXT",
            "ALTER TABLE fleet_host ADD COLUMN order_claim TEXT",
            "ALTER TABLE fleet_host ADD COLUMN order_seize TEXT",
            "ALTER TABLE fleet_host ADD COLUMN order_release TEXT",
            "ALTER TABLE fleet_host ADD COLUMN order_drain TEXT",
            "ALTER TABLE watermark ADD COLUMN message TEXT",
            "ALTER TABLE watermark ADD COLUMN mac TEXT",
        ),
    ),
    Migration(
        12,
        (
            """CREATE TABLE published (
                name TEXT PRIMARY KEY, first_position BIGINT NOT NULL, size BIGINT NOT NULL, signed TEXT NOT NULL,
                cosigned TEXT NOT NULL)""",
        ),
    ),
)

METADATA: Final = MetaData()
_TABLE: Final = re.compile(r"CREATE TABLE (\w+) \((.*)\)", re.DOTALL)
_ADDED: Final = re.compile(r"ALTER TABLE (\w+) ADD COLUMN (.*)")
_KEY: Final = "PRIMARY KEY"


def _table(name: str) -> Table:
    """Return a table with the columns that the migrations give it."""
    parts: list[str] = []
    for statement in (statement for migration in MIGRATIONS for statement in migration.statements):
        if (made := _TABLE.fullmatch(statement)) and made[1] == name:
            parts = re.split(r",\s+(?![^(]*\))", made[2])
        elif (added := _ADDED.fullmatch(statement)) and added[1] == name:
            parts.append(added[2])
    keys = [column for part in parts if part.startswith(_KEY) for column in re.findall(r"\w+", part.removeprefix(_KEY))]
    return Table(name, METADATA, *(_column(part, keys) for part in parts if not part.startswith(_KEY)))


def _column(text: str, keys: Sequence[str]) -> Column[Any]:
    name, kind, *_ = text.split()
    is_key = kind == "{serial}" or _KEY in text or name in keys
    type_ = {"{serial}": Integer, "TEXT": Text}.get(kind, BigInteger)
    return Column(name, type_, primary_key=is_key, nullable=not is_key and "NOT NULL" not in text)


VERSION: Final = Table(
    "schema_version",
    METADATA,
    Column("version", BigInteger, primary_key=True),
    Column("applied_ns", BigInteger, nullable=False),
)

FAILOVER_EVENT: Final = _table("failover_event")
"""History. Rows are only added, and the oldest ones removed."""

EMERGENCY_EPISODE: Final = _table("emergency_episode")
"""Emergency budgets. At most one has not ended. `reserved`: units that may have been used; `first_ns`: time of the
first reservation, from which the time limit counts; `latest_ns`: the latest time seen, so that a clock set back gains
nothing."""

KEY_BINDING: Final = _table("key_binding")
"""Messages, by SHA-256, that may be signed under a key although no caller got the signature. In hexadecimal."""

DESIRED_STATE: Final = _table("desired_state")
"""Operators' wishes: "drain:MEMBER", "readmit:MEMBER", "force", "emergency"."""

SNAPSHOT: Final = _table("snapshot")
"""Reports of running key managers, by process."""

KEY_VERSION: Final = _table("key_version")
"""The key ring. `state` is pending, active, overlap, deactivated or destroyed; at most one is active. `public_key` is
hexadecimal, "" until the key is pinned; `members` a JSON list of the members that hold it; `base_ns` the time from
which its interval counts; `retire_ns` the time until which it verifies together with its successor."""

ROTATION: Final = _table("rotation")
"""Rotations (manager/rotation/machine.py). At most one is running or being undone; others may wait for an overlap to
end."""

ROTATION_STEP: Final = _table("rotation_step")
"""Steps of rotations. Rows are only added, and those of the oldest rotations removed. `outcome` is begun, done, failed,
waiting, undoing or undone."""

ROTATION_SETTING: Final = _table("rotation_setting")
"""Settings of the key ring: "configured" is the key that the configuration named at the beginning."""

BACKUP: Final = _table("backup")
"""Backups that were written and read back. `method` is wrapped or sealed; `drilled_ns`: time of the last restore."""

APPROVAL: Final = _table("approval")
"""Approvals of rotations, one for each approver. `proof` (manager/rotation/approvals.py) is data that only the approver
can make; a row without it counts for nothing. `totp_step` is NULL: it and the method "totp" are of an older version,
whose approvals by one-time codes count for nothing."""

BOUND: Final = _table("bound")
"""The payload of a position: the digest that came first. Rows are only added, and removed at or below a floor. `mac`
(Seal.vouch) vouches for the other columns; "" in a store that was not sealed."""

WATERMARK: Final = _table("watermark")
"""By domain: the floor, at and below which nothing is signed; the highest position that was bound; -1: there is none.
`bits` is a hexadecimal number whose bit i says whether position high - i was bound, so that a row that was taken out of
`bound` is missed. `reason`: of the floor. `message`: what was bound to the highest position, in hexadecimal; where it
is not kept, "" or NULL. `mac` vouches for name, floor, high, bits and reason in a server's store; else NULL."""

PUBLISHED: Final = _table("published")
"""By domain: the public log of its positions (state/published.py). `size`: its leaves, the first of which is
`first_position`; no row of `bound` behind them is removed. `signed`: the newest checkpoint, as a note; `cosigned`: the
newest one that a quorum of witnesses has cosigned; "": there is none yet. Notes vouch for themselves."""

KEY_DOMAIN: Final = _table("key_domain")
"""What each key has bound positions as (state/domains.py), by hexadecimal public key. `forms` is a JSON list of texts;
`reason`: of the operator who had it bind otherwise than before, else ""."""

KEY_SET: Final = _table("key_set")
"""Signed sets of keys (tlog/key_set.py). A set that only renews another one takes its place. `bound` has the serial of
each, as a position."""

KEY_EVIDENCE: Final = _table("key_evidence")
"""A device's evidence of a key (manager/evidence.py), once for each, before a set first lists it; by hexadecimal public
key."""

FLEET: Final = _table("fleet")
"""One row: who holds the epoch. `epoch` only rises; `renewals` counts up with each renewal of the lease, so that others
see that it lives without believing a clock; `renewed_by`: a random text of the last renewal or claim, by which the
holder knows its own; `released`: 1 after the holder gave it up. `system` and `timeline` of the database that positions
are bound on. `incident` is the number of the last loss that was found; `reason`: of the last claim or release. `mark`:
nothing was bound since it was written (recovery/hold.py); `held`: why nothing is bound for now. The last three may be
NULL."""

FLEET_HOST: Final = _table("fleet_host")
"""The hosts of the fleet. `instance`: the process that speaks for it. `incident`: the last one that this host has
answered with all that its audit log has; `retired`: 1 for one that never comes back, on an operator's word. `order_…`:
what operators ask of it (fleet/orders.py), with their reason; NULL: nothing."""

FLEET_FLOOR: Final = _table("fleet_floor")
"""The second witness: the highest position of a domain that a host's audit log has, with the payload's digest."""

ROLE: Final = _table("role")
"""Roles that one process of a fleet may have at a time (Store.exclusively), by the database's clock. `epoch` rises with
each change of hands; what is written in a role is written under its epoch."""

AUDIT_MARK: Final = _table("audit_mark")
"""The store's place in an audit log (recovery/marks.py), by the log's origin and key manager: the random mark that the
log is known to have, and the one that goes into it next. The row "" is there in a store that was restored from a backup
and not reconciled yet; `restored` says from which."""

SPENT: Final = _table("spent")
"""Sums of a minute, of an older version. Nothing writes or reads it; it stays since seals of that version vouch for its
rows, and a store is brought up to date before its seal is checked."""

SEAL: Final = _table("seal")
"""The seal (state/seal.py), one row: `digests` is JSON, by scope; `mac` vouches for the other columns."""

NOTICE: Final = _table("notice")
"""Notices. `occasion` is unique, so an event that is repeated after a crash is told once."""

NOTICE_DELIVERY: Final = _table("notice_delivery")
"""The outbox: a row for each notice and target. `target` is a fingerprint: the address itself may be a secret."""

PROMISED: Final = """SELECT EXISTS (SELECT 1 FROM bound) OR EXISTS (SELECT 1 FROM watermark)
    OR EXISTS (SELECT 1 FROM rotation) OR EXISTS (SELECT 1 FROM key_version WHERE state <> 'active')
    OR EXISTS (SELECT 1 FROM emergency_episode WHERE reserved > 0 OR ended_ns IS NOT NULL)
    OR EXISTS (SELECT 1 FROM desired_state WHERE name IN ('force', 'emergency') OR name LIKE 'drain:%')"""
"""Whether a store keeps a promise: what would be broken if the key began again with nothing. Rows that expire within
minutes are not promises: messages that are bound to a key."""


def insert_row(connection: Connection, table: Table, **values: Any) -> int:
    """Insert a row and return its key."""
    made = connection.execute(insert(table).values(**values))
    assert made.inserted_primary_key is not None  # noqa: S101  # for the type checker
    return int(made.inserted_primary_key[0])


def replace_row(connection: Connection, table: Table, name: str, **values: Any) -> None:
    """Replace the row of that name; without values, delete it."""
    removes, adds = _replaced(table)
    connection.execute(removes, {"name": name})
    if values:
        connection.execute(adds, {"name": name, **values})


@cache
def _replaced(table: Table) -> tuple[Delete, Insert]:
    """Made once for a table: to make a statement takes longer than to do it."""
    return delete(table).where(table.c.name == bindparam("name")), insert(table)


def is_old(
    ids: ColumnElement[int], when: ColumnElement[int], least: int, most: int, now_ns: int
) -> ColumnElement[bool]:
    """Return whether a row of history may go: the `least` newest ones stay, whatever the clock says; of the others, up
    to `most`, those of the last KEPT_NS."""
    newest = select(func.max(ids)).scalar_subquery()
    return and_(ids <= newest - least, or_(ids <= newest - most, when < now_ns - KEPT_NS))


def remove_oldest(connection: Connection, table: Table, where: ColumnElement[bool]) -> int:
    """Remove a portion of rows, the oldest first. Returns how many."""
    oldest = select(table.c.id).where(where).order_by(table.c.id).limit(PORTION).scalar_subquery()
    return connection.execute(delete(table).where(table.c.id.in_(oldest))).rowcount
