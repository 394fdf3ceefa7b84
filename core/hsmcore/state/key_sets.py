"""The signed sets of keys that were handed out, as notes, and what devices said of the keys in them. A note vouches for
itself, and has the digests of what was said, so these rows have no seal."""

from __future__ import annotations

import time

from sqlalchemy import Connection, delete, insert, select

from hsmcore.state.schema import KEY_EVIDENCE, KEY_SET
from hsmcore.state.store import Tables


class KeySetNotes(Tables):
    """Reads and writes `key_set`. Rows are added, and one goes when a set renews it."""

    async def since(self, domain: str, serial: int) -> list[tuple[int, bytes]]:
        """Return serial and note of each set after a serial, oldest first."""
        query = select(KEY_SET).where(KEY_SET.c.domain == domain, KEY_SET.c.serial > serial).order_by(KEY_SET.c.serial)
        return [(row["serial"], str(row["note"]).encode()) for row in await self._store.rows(query)]

    async def add(self, domain: str, serial: int, note: bytes, renewed: int | None = None) -> None:
        """Keep a note. `renewed`: the serial of the one in whose place it stands."""
        values = {"domain": domain, "serial": serial, "note": note.decode()}

        def work(connection: Connection) -> None:
            connection.execute(insert(KEY_SET).values(**values))
            connection.execute(delete(KEY_SET).where(KEY_SET.c.domain == domain, KEY_SET.c.serial == renewed))

        await self._store.run(work)

    async def evidence(self, public_key: bytes) -> bytes | None:
        """Return what a device said of a key; None: it was not asked."""
        rows = await self._store.rows(select(KEY_EVIDENCE).where(KEY_EVIDENCE.c.public_key == public_key.hex()))
        return str(rows[0]["document"]).encode() if rows else None

    async def keep_evidence(self, public_key: bytes, document: bytes) -> None:
        """Keep what a device said of a key, in place of what no set of keys has the digest of."""
        values = {"public_key": public_key.hex(), "document": document.decode(), "made_ns": time.time_ns()}

        def work(connection: Connection) -> None:
            connection.execute(delete(KEY_EVIDENCE).where(KEY_EVIDENCE.c.public_key == public_key.hex()))
            connection.execute(insert(KEY_EVIDENCE).values(**values))

        await self._store.run(work)
