"""Faults of what a process leaves on its disk, put back on purpose: for worlds of several lives. As mutants.py."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from tests.simulation import requests

from hsmcore.audit import open_log, recover, sealer
from hsmcore.base import files, ownership
from hsmcore.failover.bindings import KeyBindings
from hsmcore.manager.policy.guard import Permit
from hsmcore.recovery import restore
from hsmcore.recovery.marks import LogStanding, Marks
from hsmcore.recovery.witness import Witness
from hsmcore.state import database, register, sqlite
from hsmcore.state.schema import MIGRATIONS


def _released_early() -> None:
    """A signature is handed out before its record is durable."""
    requests.Requests._record = lambda self, one: bool(
        self._is_recorded(one) and self.recorder.wants(one) and self.recorder.put(one, claimed=True) and False
    )


def _bound_after() -> None:
    """A position is bound after its payload is out."""
    begin = Permit.begin

    async def at_once(self: Permit, timeout: float | None) -> float | None:
        binding = asyncio.get_running_loop().create_task(begin(self, timeout))
        binding.add_done_callback(lambda task: task.cancelled() or task.exception())
        return timeout

    Permit.begin = at_once  # type: ignore[method-assign]


def _store_unsynced() -> None:
    """COMMIT does not wait for the disk."""
    prepare = sqlite._prepare

    def lazily(connection: Any, record: Any) -> None:
        prepare(connection, record)
        connection.execute("PRAGMA synchronous = NORMAL")

    sqlite._prepare = lazily


def _bindings_unsaved() -> None:
    """Bindings are written when the key manager is closed."""
    KeyBindings._save = lambda _self: None  # type: ignore[method-assign]


def _bindings_forgotten() -> None:
    """A start takes up no bindings."""

    async def restore(_self: KeyBindings, _audit: Any) -> None:
        """Nothing."""

    KeyBindings.restore = restore  # type: ignore[method-assign]


def _trusts_older() -> None:
    """A start does not compare the state store with the audit log."""

    async def standing(_self: Marks) -> LogStanding:
        return LogStanding("")

    Marks.standing = standing  # type: ignore[method-assign]


def _replaced_unsynced() -> None:
    """A file is replaced by one whose content is not synced."""

    def replace(path: Path, data: bytes) -> None:
        beside, descriptor = files.write_beside(path, data)
        os.close(descriptor)
        beside.replace(path)
        ownership.sync(path.parent)

    for module in (files, recover, sealer, open_log):
        module.replace = replace  # type: ignore[attr-defined]


def _entry_unsynced() -> None:
    """The register's entry of a key is replaced by one whose content is not synced."""
    register.replace_file = _replace


def _replace(path: Path, data: bytes) -> None:
    beside = path.with_name(f".{path.name}.new")
    beside.write_bytes(data)
    beside.replace(path)
    ownership.sync(path.parent)


def _history_unsynced() -> None:
    """The file of all checkpoints is not synced before the newest one is replaced."""
    sealer.append = lambda path, data, durable: files.append(path, data, durable=False)


def _lines_unsynced() -> None:
    """A checkpoint covers lines that are not synced."""
    os.fdatasync = lambda _descriptor: None


def _migrated_in_pieces() -> None:
    """A migration's tables are durable before it is noted that it is done."""
    migrate, insert = sqlite.migrate, database.insert
    drivers: list[Any] = []

    def committed(table: Any) -> Any:
        drivers[0].commit()
        drivers[0].execute("BEGIN IMMEDIATE")
        return insert(table)

    def in_pieces(connection: Any, shown: str, schema: str | None = None) -> None:
        drivers[:] = [connection.connection.driver_connection]
        migrate(connection, shown, schema)

    sqlite.migrate, database.insert = in_pieces, committed  # type: ignore[attr-defined]


def _positions_dropped() -> None:
    """A migration begins what is bound anew."""
    anew = replace(
        MIGRATIONS[-1], statements=(*MIGRATIONS[-1].statements, "DELETE FROM bound", "DELETE FROM watermark")
    )
    database.MIGRATIONS = (*MIGRATIONS[:-1], anew)  # type: ignore[attr-defined]


def _not_put_back() -> None:
    """A reconciliation puts back no position: the next start sees that."""

    async def put_back(_self: Witness, *_arguments: Any) -> Any:
        return 0, [], {}

    Witness.put_back = put_back  # type: ignore[method-assign]


def _restored_unmarked() -> None:
    """A restored store goes on without a reconciliation: it does not say that it was restored, and no marks tell."""
    restore.set_restored = lambda _connection, _why: None
    _trusts_older()


RESTORES_MUTANTS: Final[dict[str, tuple[Callable[[], None], str]]] = {
    "not-put-back": (_not_put_back, "starts"),
    "restored-unmarked": (_restored_unmarked, "noticed"),
}
"""For `--world restores`."""
LIES_MUTANTS: Final[dict[str, tuple[Callable[[], None], str]]] = {"loss-unseen": (_trusts_older, "one_digest")}
"""For `--world lies`."""
UPGRADES_MUTANTS: Final[dict[str, tuple[Callable[[], None], str]]] = {
    "migrated-in-pieces": (_migrated_in_pieces, "starts"),
    "positions-dropped": (_positions_dropped, "one_digest"),
}
"""For `--world upgrades`."""
MUTANTS: Final[dict[str, tuple[Callable[[], None], str]]] = {
    "released-early": (_released_early, "recorded"),
    "positions-after": (_bound_after, "one_digest"),
    "store-unsynced": (_store_unsynced, "starts"),
    "bindings-unsaved": (_bindings_unsaved, "one_key_over_lives"),
    "bindings-forgotten": (_bindings_forgotten, "one_key_over_lives"),
    "trusts-older": (_trusts_older, "noticed"),
    "replaced-unsynced": (_replaced_unsynced, "sound"),
    "entry-unsynced": (_entry_unsynced, "starts"),
    "history-unsynced": (_history_unsynced, "starts"),
    "lines-unsynced": (_lines_unsynced, "recorded"),
}
"""For `--world disk`."""
