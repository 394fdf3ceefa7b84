"""Operators' work on backups: look, verify, restore a key."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from hsmcore._native import verify
from hsmcore.base.places import BackupPlace
from hsmcore.errors import BadArgument, HsmError
from hsmcore.manager.rotation.backup.drill import DRILL_PREFIX, keep
from hsmcore.manager.rotation.backup.envelope import BackupInvalid, Statement, open_envelope
from hsmcore.members.control import ControlPlane, KeyRecord
from hsmcore.members.control.backup import ImportWrapped
from hsmcore.members.control.locked import LockedKey
from hsmcore.members.control.sealed import ImportSealed
from hsmcore.state import StoredKey
from hsmcore.state.backups import BackupRow


@dataclass(frozen=True, slots=True)
class Found:
    """A file in a place. `problem`: why it is invalid; None: its signature and all records of it agree."""

    name: str
    statement: Statement | None
    sha256: str
    problem: str | None


async def look(place: BackupPlace, name: str, keys: list[StoredKey], rows: list[BackupRow]) -> Found:
    """Read a file and compare it with itself, with the key ring and with the record of its writing. Raises
    PlaceError."""
    data = await place.read(name)
    if data is None:
        return Found(name, None, "", "it is not there")
    digest = hashlib.sha256(data).hexdigest()
    try:
        statement = open_envelope(data)
    except BackupInvalid as error:
        return Found(name, None, digest, str(error.args[0]))
    return Found(name, statement, digest, _contradiction(statement, name, digest, keys, rows))


def _contradiction(
    statement: Statement, name: str, digest: str, keys: list[StoredKey], rows: list[BackupRow]
) -> str | None:
    if any(row.name == name and row.sha256 != digest for row in rows):
        return "it is not the file that was written under this name"
    same_id = [key for key in keys if key.key_id == statement.key_id and key.public_key]
    if same_id and all(key.public_key != statement.public_key for key in same_id):
        return "it holds another key than the key ring has under this id"
    return None


async def put_back(statement: Statement, token: ControlPlane, recovery: bytearray | None) -> KeyRecord:
    """Restore a key on a token for good, after it has proved itself. `recovery`: the X25519 private key for a sealed
    one; it is wiped. Raises HsmError; then no key was added."""
    if statement.method == "wrapped":
        return await keep(statement, token, await token.do(ImportWrapped(statement.payload)))
    if recovery is None:
        raise BadArgument("a sealed backup needs the recovery key", hint="Name its file with --recovery-key.")
    identity = bytes.fromhex(statement.key_id)
    try:
        record = await token.do(ImportSealed(statement.label, identity, statement.payload, recovery))
    finally:
        recovery[:] = bytes(len(recovery))
    return await keep(statement, token, record)


def opens(statement: Statement, recovery: bytearray) -> bool:
    """Return whether a recovery key (wiped) opens a sealed backup, and the key in it is the one that the backup names.
    Nothing is imported."""
    try:
        key = LockedKey("backup", (statement.payload, recovery))
    except HsmError:
        return False
    finally:
        recovery[:] = bytes(len(recovery))
    try:
        message = DRILL_PREFIX + b"opened"
        signature = key.sign(message)
        return bool(verify(statement.algorithm, statement.public_key, message, signature))
    finally:
        key.wipe()
