"""The store's tables, and the steps that lead to them.

A migration is a number and a list of statements in SQL that SQLite and PostgreSQL both understand; `{serial}` is a key
that counts up by itself. One that has been released is never changed: another is added. The tables below say what
all of them together have made. Times are nanoseconds since 1970; JSON is text.
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
"""History. Rows are only ever added."""

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
"""Emergency budgets. At most one has not ended. `reserved`: units that may have been used; `first_ns`: when the first
was reserved, from which the time counts; `latest_ns`: the latest time seen, so that a clock set back gains nothing."""

DESIRED_STATE: Final = Table(
    "desired_state",
    METADATA,
    Column("name", Text, primary_key=True),
    Column("value", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("set_ns", BigInteger, nullable=False),
)
"""What a person has asked for: "drain:MEMBER", "readmit:MEMBER", "force", "emergency"."""

SNAPSHOT: Final = Table(
    "snapshot",
    METADATA,
    Column("name", Text, primary_key=True),
    Column("value", Text, nullable=False),
    Column("written_ns", BigInteger, nullable=False),
)
"""What a running key manager says of itself, by process."""


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
)
