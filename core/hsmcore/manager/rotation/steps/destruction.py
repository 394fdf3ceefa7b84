"""The keys that a rotation may destroy. The state store alone is no reason: its writer could name any key of the token.

A key is destroyed if the token itself shows that it belongs to this rotation. Where tokens let us choose ids of 8 bytes
and more, the id of a new key is a digest of the rotation and of the key that it replaces, so rows that name another key
do not fit. Other tokens (YubiHSM 2, AWS KMS) are judged by the label. In doubt the key stays, and a notice says so.
"""

from __future__ import annotations

import hashlib
import re
from typing import Final

from hsmcore.base.keyring import successor_label
from hsmcore.base.log import get_logger
from hsmcore.errors import KeyMismatch
from hsmcore.manager.rotation.approvals import statement
from hsmcore.manager.rotation.context import Context
from hsmcore.manager.rotation.steps import consent, handover
from hsmcore.members import Member
from hsmcore.members.base import NonExportable
from hsmcore.members.control import KeyRecord
from hsmcore.members.tokens import free_id
from hsmcore.state import StoredKey

_LEAST_ID: Final = 8
"""Bytes of an id that no search can hit by another rotation."""


def made_id(ctx: Context, purpose: str, length: int) -> bytes:
    """Return the CKA_ID of a key that this rotation makes."""
    text = b"hsmcore: a key that this rotation makes\n" + statement(ctx.rotation, ctx.old) + purpose.encode()
    return hashlib.sha256(text).digest()[:length]


def is_made_id(ctx: Context, purpose: str, key_id: str) -> bool:
    """Return whether this rotation makes a key of this id. A short id could be that of any key."""
    length = len(key_id) // 2
    return length >= _LEAST_ID and key_id == made_id(ctx, purpose, length).hex()


async def choose_id(ctx: Context, member: Member) -> bytes | None:
    """Return the new key's id; None: the member chooses it."""
    free = await free_id(member.token)
    return free if free is None or len(free) < _LEAST_ID else made_id(ctx, ctx.new.label, len(free))


async def why_not_new(ctx: Context) -> str | None:
    """Return why no key may be destroyed as the one that this rotation made, by the ring and by this process's
    memory."""
    if ctx.new.state != "pending" or ctx.new.activated_ns is not None:
        return f"the ring has it as {ctx.new.state}"
    if ctx.old.public_key != ctx.port.signing()[0].public_key:
        return "the rotation replaces another key than the one that signs"
    if _signs(ctx, ctx.new.key_id, ctx.new.public_key):
        return "it signs"
    return await handover.why_not_settled(ctx) or await consent.why_not(ctx)


async def why_not_this(ctx: Context, member: Member, record: KeyRecord) -> str | None:
    """Return why a key of a token is not the one that this rotation made."""
    if _signs(ctx, record.id, record.public_key):
        return "it signs"
    if record.id in ctx.signed or (record.public_key is not None and record.public_key.hex() in ctx.signed):
        return "it has signed"
    return await _why_not_made(ctx, member, record)


async def require_made(ctx: Context, member: Member, records: list[KeyRecord]) -> None:
    """Check a key before it is taken for the new one, or destroyed to make room for it. Raises KeyMismatch."""
    for record in records:
        why = await why_not_new(ctx) or await why_not_this(ctx, member, record)
        if why is not None:
            raise KeyMismatch(f"key {record.id} ({record.label}) is none that this rotation has made: {why}")


async def why_not_old(ctx: Context) -> str | None:
    """Return why the key that the rotation replaced may not be destroyed."""
    if _signs(ctx, ctx.old.key_id, ctx.old.public_key):
        return "it signs"
    why = await consent.why_not(ctx)
    if why is not None:
        return why
    for member in ctx.port.holders(None):
        for record in await member.control.list_keys():
            if record.id == ctx.new.key_id and await _why_not_made(ctx, member, record) is None:
                return None
    return "no key of the token shows that this rotation has replaced it"


def is_old(ctx: Context, member: Member, record: KeyRecord) -> bool:
    """Return whether a key of a token is the one that the rotation replaced. A missing public half proves nothing,
    unless the member lists none and uses each id once."""
    if record.public_key is None:
        return isinstance(member.token, NonExportable) and record.id == ctx.old.key_id
    return record.public_key == ctx.old.public_key and not _signs(ctx, record.id, record.public_key)


async def keep(ctx: Context, key: StoredKey, why: str) -> None:
    """Log and note that a key was not destroyed."""
    get_logger().error("a key was not destroyed", rotation=ctx.rotation.id, key=key.key_id, label=key.label, reason=why)
    await ctx.announce(
        "failure",
        f"rotation {ctx.rotation.id}: a key was not destroyed",
        f"key {key.key_id} ({key.label}) stays on the token: {why}. Unless an approver has left, or an earlier version "
        "of hsmcore began this rotation, find out who can write the state store.",
        f"rotation-{ctx.rotation.id}-kept-{key.version}",
    )


def _signs(ctx: Context, key_id: str, public_key: bytes | None) -> bool:
    """Return whether this process signs with a key, by its memory, whatever the store says."""
    return any(version.id == key_id or version.public_key == public_key for version in ctx.port.signing())


async def _why_not_made(ctx: Context, member: Member, record: KeyRecord) -> str | None:
    free = await free_id(member.token)
    if free is not None and len(free) >= _LEAST_ID:
        return None if is_made_id(ctx, ctx.new.label, record.id) else "its id is not this rotation's"
    follows = re.search(r"-[0-9a-f]{8}\Z", ctx.new.label) and _stem(ctx.new.label) == _stem(ctx.old.label)
    # The label of a key in AWS KMS is an alias, and several may name it.
    named = record.label == ctx.new.label or (free is None and record.id == ctx.new.key_id)
    return None if follows and named else "its label is not this rotation's"


def _stem(label: str) -> str:
    return successor_label(label, bytes(4))
