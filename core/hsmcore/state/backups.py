"""The list of backups, as the store knows them; the backups themselves lie elsewhere."""

from __future__ import annotations

import time
from dataclasses import dataclass

from sqlalchemy import Connection, delete, select, update

from hsmcore.state.keys import StoredKey
from hsmcore.state.schema import BACKUP, insert_row
from hsmcore.state.store import Tables


@dataclass(frozen=True, slots=True)
class BackupRow:
    """One backup. `place` and `name` locate it; times are Unix nanoseconds."""

    id: int
    key_id: str
    public_key: bytes
    place: str
    name: str
    method: str
    sha256: str
    made_ns: int
    drilled_ns: int | None


def insert_backup(connection: Connection, key: StoredKey, place: str, name: str, **columns: str) -> None:
    """Note a backup of a key that was written and read back, with `method` and `sha256`. It replaces one of the same
    place and name."""
    connection.execute(delete(BACKUP).where(BACKUP.c.place == place, BACKUP.c.name == name))
    own = {"key_id": key.key_id, "public_key": key.public_key.hex(), "made_ns": time.time_ns()}
    insert_row(connection, BACKUP, place=place, name=name, **columns, **own)


def note_drill(connection: Connection, place: str, name: str) -> None:
    """Note that the backup was restored and signed."""
    where = (BACKUP.c.place == place, BACKUP.c.name == name)
    connection.execute(update(BACKUP).where(*where).values(drilled_ns=time.time_ns()))


class Backups(Tables):
    """Reads `backup`."""

    async def of(self, public_key: bytes | None = None) -> list[BackupRow]:
        """Return the backups of a key, or all, oldest first."""
        query = select(BACKUP).order_by(BACKUP.c.id)
        if public_key is not None:
            query = query.where(BACKUP.c.public_key == public_key.hex())
        rows = await self._store.rows(query)
        return [BackupRow(**{**row, "public_key": bytes.fromhex(row["public_key"])}) for row in rows]
