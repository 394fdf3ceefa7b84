"""The store's tables, and the migrations that make them.

A migration is a number and a list of statements in SQL that SQLite and PostgreSQL both understand; `{serial}` is a key
that counts up by itself. A released migration is never changed: another one is added. The tables below are the result
of all of them. Times are nanoseconds since 1970; JSON is text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from sqlalchemy import BigInteger, Column, Integer, MetaData, Table, Text

METADATA: Final = MetaData()

VERSION: Final = Table("schema_version", METADATA, Column("version", Integer, primary_key=True),
                       Column("applied_ns", BigInteger, nullable=False))  # fmt: skip

FAILOVER_EVENT: Final = Table(
    "failover_event",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("time_ns", BigInteger, nullable=False),
    Column("kind", Text, nullable=False),
    Column("level_from", Text),
    Column("level_to", Text),
    Column("member", Text),
    Column("reason", Text, nullable=False),
    Column("details", Text, nullable=False),
)
"""History. Rows are only added."""

EMERGENCY_EPISODE: Final = Table(
    "emergency_episode",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("began_ns", BigInteger, nullable=False),
    Column("first_ns", BigInteger),
    Column("latest_ns", BigInteger, nullable=False),
    Column("max_transactions", BigInteger, nullable=False),
    Column("max_seconds", BigInteger, nullable=False),
    Column("reserved", BigInteger, nullable=False),
    Column("ended_ns", BigInteger),
    Column("end_reason", Text),
)
"""Emergency budgets. At most one has not ended. `reserved`: units that may have been used; `first_ns`: time of the
first reservation, from which the time limit counts; `latest_ns`: the latest time seen, so that a clock set back gains
nothing."""

DESIRED_STATE: Final = Table(
    "desired_state",
    METADATA,
    Column("name", Text, primary_key=True),
    Column("value", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("set_ns", BigInteger, nullable=False),
)
"""Operators' wishes: "drain:MEMBER", "readmit:MEMBER", "force", "emergency"."""

SNAPSHOT: Final = Table(
    "snapshot",
    METADATA,
    Column("name", Text, primary_key=True),
    Column("value", Text, nullable=False),
    Column("written_ns", BigInteger, nullable=False),
)
"""Reports of running key managers, by process."""

KEY_VERSION: Final = Table(
    "key_version",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("key_id", Text, nullable=False),
    Column("public_key", Text, nullable=False),
    Column("algorithm", Text, nullable=False),
    Column("label", Text, nullable=False),
    Column("members", Text, nullable=False),
    Column("origin", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("created_ns", BigInteger, nullable=False),
    Column("base_ns", BigInteger),
    Column("activated_ns", BigInteger),
    Column("retire_ns", BigInteger),
    Column("deactivated_ns", BigInteger),
    Column("destroyed_ns", BigInteger),
    Column("note", Text, nullable=False),
)
"""The key ring. `state` is pending, active, overlap, deactivated or destroyed; at most one is active. `public_key` is
hexadecimal, "" until the key is pinned; `members` a JSON list of the members that hold it; `base_ns` the time from
which its interval counts; `retire_ns` the time until which it verifies beside its successor."""

ROTATION: Final = Table(
    "rotation",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("cause", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("slot_ns", BigInteger),
    Column("begun_ns", BigInteger, nullable=False),
    Column("ended_ns", BigInteger),
    Column("old_version", BigInteger, nullable=False),
    Column("new_version", BigInteger, nullable=False),
    Column("status", Text, nullable=False),
    Column("step", Text, nullable=False),
    Column("step_begun", Integer, nullable=False),
    Column("wait_ns", BigInteger, nullable=False),
    Column("tries", BigInteger, nullable=False),
    Column("aborted", Integer, nullable=False),
    Column("error", Text, nullable=False),
)
"""Rotations (rotation/machine.py). At most one is running or being undone; others may wait for an overlap to end."""

ROTATION_STEP: Final = Table(
    "rotation_step",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("rotation_id", BigInteger, nullable=False),
    Column("time_ns", BigInteger, nullable=False),
    Column("step", Text, nullable=False),
    Column("outcome", Text, nullable=False),
    Column("details", Text, nullable=False),
)
"""Steps of every rotation. Rows are only added. `outcome` is begun, done, failed, waiting, undoing or undone."""

ROTATION_SETTING: Final = Table(
    "rotation_setting",
    METADATA,
    Column("name", Text, primary_key=True),
    Column("value", Text, nullable=False),
)
"""Settings of the key ring: "configured" is the key that the configuration named at the beginning."""

BACKUP: Final = Table(
    "backup",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("key_id", Text, nullable=False),
    Column("public_key", Text, nullable=False),
    Column("place", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("method", Text, nullable=False),
    Column("sha256", Text, nullable=False),
    Column("made_ns", BigInteger, nullable=False),
    Column("drilled_ns", BigInteger),
)
"""Backups that were written and read back. `method` is wrapped or sealed; `drilled_ns`: time of the last restore."""

APPROVAL: Final = Table(
    "approval",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("rotation_id", BigInteger, nullable=False),
    Column("approver", Text, nullable=False),
    Column("method", Text, nullable=False),
    Column("totp_step", BigInteger),
    Column("time_ns", BigInteger, nullable=False),
    Column("proof", Text, nullable=False),
)
"""Approvals of rotations, one for each approver; a one-time code counts once. `proof` (rotation/approvals.py) is data
that only the approver can make; a row without it counts for nothing."""

NOTICE: Final = Table(
    "notice",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("time_ns", BigInteger, nullable=False),
    Column("kind", Text, nullable=False),
    Column("occasion", Text, nullable=False),
    Column("title", Text, nullable=False),
    Column("body", Text, nullable=False),
)
"""Notices. `occasion` is unique, so an event that is repeated after a crash is told once."""

NOTICE_DELIVERY: Final = Table(
    "notice_delivery",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("notice_id", BigInteger, nullable=False),
    Column("target", Text, nullable=False),
    Column("attempts", BigInteger, nullable=False),
    Column("next_ns", BigInteger, nullable=False),
    Column("done_ns", BigInteger),
    Column("given_up_ns", BigInteger),
    Column("error", Text, nullable=False),
)
"""The outbox: a row for each notice and target. `target` is a fingerprint: the address itself may be a secret."""


@dataclass(frozen=True, slots=True)
class Migration:
    number: int
    statements: tuple[str, ...]


SERIAL: Final = {
    "sqlite": "INTEGER PRIMARY KEY AUTOINCREMENT",
    "postgresql": "BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY",
}

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
)
