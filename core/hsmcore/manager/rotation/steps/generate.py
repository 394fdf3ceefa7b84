"""A new key: its id and label are in the store before the token makes it, so a crash leaves no unknown key."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from hsmcore.base.log import get_logger
from hsmcore.errors import HsmError, KeyMismatch
from hsmcore.manager.rotation.context import Context, Done, Pending
from hsmcore.manager.rotation.steps import consent, destruction, handover
from hsmcore.members import Member
from hsmcore.members.base import NonExportable
from hsmcore.members.control import KeyRecord
from hsmcore.members.control.curves import Algorithm
from hsmcore.members.control.sealed import GenerateSealed, ImportTransported, MakeTransportKey
from hsmcore.members.tokens import sweep, token_of
from hsmcore.state.keys import StoredKey, change_key, keep_key


async def plan(ctx: Context) -> Done:
    """Choose the id, and the members that will hold the key."""
    if ctx.new.key_id or ctx.new.members:
        return Done({"keyId": ctx.new.key_id, "label": ctx.new.label})
    holders = ctx.all_holders()  # a member that is down would not get the key: it fails before a key is made
    names = [member.name for member in (holders[:1] if ctx.ceremony is None else holders)]
    if ctx.old.public_key != ctx.port.signing()[0].public_key:
        raise KeyMismatch("the rotation is to replace another key than the one that signs")
    chosen = await destruction.choose_id(ctx, holders[0])
    identity = chosen.hex() if chosen is not None else ""
    return Done(
        {"keyId": identity, "label": ctx.new.label, "members": names},
        also=lambda connection: change_key(connection, ctx.new.version, key_id=identity, members=names),
    )


async def do(ctx: Context) -> Done:
    """Make the key, or find it complete. Raises NotApproved: a key without approvals could not be destroyed again."""
    await consent.require(ctx)
    if ctx.ceremony is not None:
        return await _ceremony(ctx, bytes.fromhex(ctx.ceremony.recovery_public_key))
    member = ctx.first
    found = matching(await member.control.list_keys(), ctx.new)
    await destruction.require_made(ctx, member, found)
    whole = isinstance(member.token, NonExportable)
    complete = [k for k in found if (k.public_key or whole) and k.can_sign and k.algorithm == ctx.new.algorithm]
    if len(complete) == 1 == len(found):
        record = complete[0]
    else:
        await _clear(ctx, member)
        record = await member.control.generate_key(
            cast("Algorithm", ctx.new.algorithm),
            ctx.new.label,
            bytes.fromhex(ctx.new.key_id) or None,
            extractable=ctx.rules.backup_enabled or len(ctx.port.holders(None)) > 1,
        )
    return _made(ctx, record, [member.name])


async def _ceremony(ctx: Context, recovery_key: bytes) -> Done:
    """Make the key in locked memory and import it on every member: a key that cannot leave its token cannot be copied
    later. Keys of an earlier attempt are destroyed, since their sealed copies are lost."""
    first, *others = holders = ctx.all_holders()
    for member in holders:
        await _clear(ctx, member)
    identity = bytes.fromhex(ctx.new.key_id)
    transports = [await token_of(member).do(MakeTransportKey()) for member in others]
    record, sealed = await token_of(first).do(GenerateSealed(ctx.new.label, identity, [recovery_key, *transports]))
    for member, blob in zip(others, sealed[1:], strict=True):
        if not matching(await member.control.list_keys(), ctx.new):  # another way to the same token has it already
            await token_of(member).do(ImportTransported(ctx.new.label, identity, blob))
    return _made(ctx, record, [member.name for member in holders], sealed=sealed[0].hex())


async def _clear(ctx: Context, member: Member) -> None:
    """Erase the keys of an attempt that was cut off. Raises KeyMismatch."""
    found = matching(await member.control.list_keys(), ctx.new)
    await destruction.require_made(ctx, member, found)
    for key in found:
        await member.control.destroy(key.id)
    if ctx.resumed:
        await sweep(member, ctx.new.key_id, nameless=True)


def _made(ctx: Context, record: KeyRecord, names: list[str], **details: str) -> Done:
    public_key = record.public_key.hex() if record.public_key else ""
    return Done(
        details | {"keyId": record.id, "publicKey": public_key, "members": names},
        also=lambda connection: change_key(connection, ctx.new.version, key_id=record.id, members=names),
    )


async def undo(ctx: Context) -> Done | Pending:
    """Destroy the key on every member that may hold it. A member that does not answer is asked again later. A key that
    may not be destroyed stays, and a notice says so."""
    held = await handover.give_back(ctx)
    if held is not None:
        return held
    missing, gone = ctx.away(ctx.new), sorted(set(ctx.new.members) - ctx.configured)
    if missing:
        raise HsmError(f"{', '.join(missing)} may hold the new key and is not running")
    if gone:
        get_logger().error("a new key may be left on a member that is gone", members=gone, key=ctx.new.key_id)
        await ctx.announce(
            "failure",
            f"rotation {ctx.rotation.id}: a key may be left",
            f"key {ctx.new.key_id} ({ctx.new.label}) is undone, and may be left on {', '.join(gone)}, which the "
            "configuration does not name any more. Erase it there.",
            f"rotation-{ctx.rotation.id}-left",
        )
    doubt = await destruction.why_not_new(ctx)
    if ctx.new.key_id and doubt is None:
        ctx.port.forget(ctx.new.key_id)
    destroyed, kept = [], []
    holders = ctx.port.holders(None)
    for member in [each for each in ctx.port.members() if each in holders or each.name in ctx.new.members]:
        for key in matching(await member.control.list_keys(), ctx.new):
            why = doubt or await destruction.why_not_this(ctx, member, key)
            if why is not None:
                kept.append({"member": member.name, "keyId": key.id, "why": why})
                continue
            await member.control.destroy(key.id)
            destroyed.append({"member": member.name, "keyId": key.id})
            get_logger().warning("a new key was destroyed again", member=member.name, key=key.id)
        if not (doubt or kept):
            await sweep(member, ctx.new.key_id, nameless=ctx.resumed)
    if not kept:
        return Done({"destroyed": destroyed} | ({"gone": gone} if gone else {}))
    why, now = kept[0]["why"], ctx.late()
    await destruction.keep(ctx, ctx.new, why)
    return Done(
        {"destroyed": destroyed, "kept": kept},
        also=lambda connection: keep_key(connection, ctx.new.version, now, f"it stays on the token: {why}"),
    )


def matching(records: Sequence[KeyRecord], key: StoredKey) -> list[KeyRecord]:
    """Return the objects that are the key, by its id or by its label, which no other key has."""
    return [record for record in records if (key.key_id and record.id == key.key_id) or record.label == key.label]


async def holder_of(members: Sequence[Member], key: StoredKey) -> Member | None:
    """Return the first member that holds the key."""
    for member in members:
        if matching(await member.control.list_keys(), key):
            return member
    return None
