"""Work of a member's token beyond signing and making keys: copies of keys, ceremonies, trials.

A member has a token (`Member.token`, a ControlPlane) or states why it has none (NonExportable).
"""

from __future__ import annotations

from typing import Final

from hsmcore.members.base import Member, NonExportable
from hsmcore.members.control import ControlPlane, KeyNotExportable, KeyRecord
from hsmcore.members.control.backup import ExportWrapped, ImportWrapped, WhyNoBackup
from hsmcore.members.control.keys import NewKeyId, Sweep

_KEPT: Final = "its keys stay where they are made"


def token_of(member: Member) -> ControlPlane:
    """Return the token of a member. Raises KeyNotExportable if it has none."""
    if isinstance(member.token, NonExportable):
        raise KeyNotExportable(_KEPT)
    return member.token


async def export_key(member: Member, key_id: str) -> bytes:
    """Return a key, wrapped by the member's token. Raises KeyNotExportable if the key or member does not allow it."""
    if isinstance(member.token, NonExportable):
        raise member.token.error(member.token.export.format(key_id), member.name)
    return await member.token.do(ExportWrapped(key_id))


async def import_key(member: Member, wrapped: bytes) -> KeyRecord:
    """Unwrap a key on the member's token. Raises KeyNotExportable if the member has none."""
    if isinstance(member.token, NonExportable):
        raise member.token.error(member.token.restore, member.name)
    return await member.token.do(ImportWrapped(wrapped))


async def why_no_backup(member: Member, algorithm: str) -> str | None:
    """Return why keys of an algorithm cannot be copied from the member; None if they can."""
    return _KEPT if isinstance(member.token, NonExportable) else await member.token.do(WhyNoBackup(algorithm))


async def free_id(token: ControlPlane | NonExportable) -> bytes | None:
    """Return an unused id for a new key; None if the member chooses the id."""
    return None if isinstance(token, NonExportable) else await token.do(NewKeyId())


async def sweep(member: Member, key_id: str, *, nameless: bool = False) -> int:
    """Erase what a killed process left of a key on the member's token (control.keys.sweep). Returns how many
    objects."""
    return 0 if isinstance(member.token, NonExportable) else await member.token.do(Sweep(key_id, nameless))
