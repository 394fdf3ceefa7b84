"""The restore drill: it proves a backup by a signature of the restored key."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable
from typing import Final

from hsmcore._native import verify
from hsmcore.errors import HsmError, KeyNotFound
from hsmcore.manager.rotation.backup.envelope import BackupInvalid, Statement
from hsmcore.members.control import ControlPlane, KeyRecord
from hsmcore.members.control.backup import ImportWrapped
from hsmcore.members.control.keys import Prove, Sweep

DRILL_PREFIX: Final = b"\xffhsmcore drill\x00"
"""Prefix of the text that a restored key signs."""
Sign = Callable[[str, bytes], Awaitable[bytes]]


def signer(token: ControlPlane) -> Sign:
    """Have a token's control plane sign."""

    async def sign(key_id: str, message: bytes) -> bytes:
        return await token.do(Prove(key_id, message))

    return sign


async def prove(statement: Statement, record: KeyRecord, sign: Sign) -> None:
    """Have a restored key sign, and verify the signature with the public key of the statement. Raises BackupInvalid."""
    message = DRILL_PREFIX + secrets.token_bytes(32)
    same = record.public_key in (None, statement.public_key)
    if not same or not verify(statement.algorithm, statement.public_key, message, await sign(record.id, message)):
        raise BackupInvalid("the key that was restored is not the one that the backup names")


async def drill_beside(
    statement: Statement, token: ControlPlane, sign: Sign, scratch: str | None, label: str, *, resumed: bool = False
) -> None:
    """Restore under a scratch id and label (None: the token keeps the backup's own), prove the key, destroy it. A
    repetition after a crash (`resumed`) first destroys what was left."""
    await end(token, scratch or statement.key_id, resumed=resumed)
    record = await token.do(ImportWrapped(statement.payload, scratch, label if scratch is not None else None))
    try:
        await prove(statement, record, sign)
    finally:
        await token.destroy(record.id)


async def drill_in_place(statement: Statement, token: ControlPlane, sign: Sign) -> None:
    """Destroy the key itself and restore it, for tokens whose backups keep their id. Only for a key that is not in use
    yet. After a crash the key may be gone: it is restored."""
    await end(token, statement.key_id)
    await prove(statement, await token.do(ImportWrapped(statement.payload)), sign)


async def end(token: ControlPlane, key_id: str, *, resumed: bool = False) -> None:
    """Destroy a key if it is there, and the remains of a crash."""
    for record in await token.list_keys():
        if record.id == key_id:
            await token.destroy(key_id)
    await token.do(Sweep(key_id, resumed))


async def keep(statement: Statement, token: ControlPlane, record: KeyRecord) -> KeyRecord:
    """Keep a restored key for good, or destroy it again if it differs from the backup's statement. Raises HsmError."""
    try:
        await prove(statement, record, signer(token))
    except HsmError:
        await token.destroy(record.id)
        raise
    found = [key for key in await token.list_keys() if key.id == record.id]
    if not found:
        raise KeyNotFound(f"key {record.id} was restored, and the token does not list it")
    return found[0]
