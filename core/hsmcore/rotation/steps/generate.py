"""A new key: its id and label are in the store before the token is asked for it, so a crash leaves nothing unknown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from hsmcore.control import KeyRecord
from hsmcore.control.curves import Algorithm
from hsmcore.errors import HsmError, KeyMismatch
from hsmcore.log import get_logger
from hsmcore.members import Member
from hsmcore.rotation.context import Context, Done
from hsmcore.state.keys import StoredKey, change_key


async def plan(ctx: Context) -> Done:
    """Choose the id, and say who will hold the key."""
    if ctx.new.key_id or ctx.new.members:
        return Done({"keyId": ctx.new.key_id, "label": ctx.new.label})
    first = ctx.first
    chosen = await first.control.new_key_id()
    identity = chosen.hex() if chosen is not None else ""
    return Done(
        {"keyId": identity, "label": ctx.new.label, "member": first.name},
        also=lambda connection: change_key(connection, ctx.new.version, key_id=identity, members=[first.name]),
    )


async def do(ctx: Context) -> Done:
    """Make the key, or find it complete."""
    member = ctx.first
    ceremony = ctx.rules.key_ceremony
    found = matching(await member.control.list_keys(), ctx.new)
    complete = [key for key in found if key.public_key and key.can_sign and key.algorithm == ctx.new.algorithm]
    details = {}
    if len(complete) == 1 == len(found) and ceremony is None:
        record = complete[0]
    else:
        # What a crash cut off, or a key whose sealed copy nobody has kept.
        for key in found:
            await member.control.destroy(key.id)
        if ctx.resumed:
            await member.control.sweep(ctx.new.key_id, nameless=True)
        identity = bytes.fromhex(ctx.new.key_id)
        if ceremony is not None:
            record, sealed = await member.control.generate_sealed(
                ctx.new.label, identity, bytes.fromhex(ceremony.recovery_public_key)
            )
            details["sealed"] = sealed.hex()
        else:
            record = await member.control.generate_key(
                cast("Algorithm", ctx.new.algorithm),
                ctx.new.label,
                identity or None,
                extractable=ctx.rules.backup_enabled or len(ctx.hands.holders()) > 1,
            )
    public_key = record.public_key.hex() if record.public_key else ""
    return Done(
        details | {"keyId": record.id, "publicKey": public_key, "member": member.name},
        also=lambda connection: change_key(connection, ctx.new.version, key_id=record.id, members=[member.name]),
    )


async def undo(ctx: Context) -> Done:
    """Destroy the key wherever it may be. A member that does not answer is asked again later."""
    holders = ctx.hands.holders()
    missing = set(ctx.new.members) - {member.name for member in holders}
    if missing:
        raise HsmError(f"{', '.join(sorted(missing))} may hold the new key and is not running")
    destroyed = []
    if ctx.new.key_id:
        ctx.hands.forget(ctx.new.key_id)
    for member in holders:
        for key in matching(await member.control.list_keys(), ctx.new):
            if key.public_key is not None and key.public_key == ctx.old.public_key:
                raise KeyMismatch("the key that was to be destroyed is the one that signs")
            await member.control.destroy(key.id)
            destroyed.append({"member": member.name, "keyId": key.id})
            get_logger().warning("a new key was destroyed again", member=member.name, key=key.id)
        await member.control.sweep(ctx.new.key_id, nameless=ctx.resumed)
    return Done({"destroyed": destroyed})


def matching(records: Sequence[KeyRecord], key: StoredKey) -> list[KeyRecord]:
    """Those that are the key, by its id or by its label, which no other key has."""
    return [record for record in records if (key.key_id and record.id == key.key_id) or record.label == key.label]


async def holder_of(members: Sequence[Member], key: StoredKey) -> Member | None:
    """The first member that holds the key."""
    for member in members:
        if matching(await member.control.list_keys(), key):
            return member
    return None
