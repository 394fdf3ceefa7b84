"""The switch, and what becomes of the old key: overlap, deactivation, destruction."""

from __future__ import annotations

from sqlalchemy import Connection

from hsmcore.errors import KeyMismatch
from hsmcore.rotation.context import Context, Done, Pending, skipped
from hsmcore.rotation.schedule import moment, nanoseconds
from hsmcore.rotation.steps.generate import matching
from hsmcore.state.keys import activate_key, change_key

_DAY_NS = 86_400_000_000_000


async def activate(ctx: Context) -> Done:
    """Let the new key sign. Whoever was routed to the old one is still answered with it."""
    version = await ctx.hands.load(ctx.new.key_id)
    if version.public_key != ctx.new.public_key:
        raise KeyMismatch(f"key {ctx.new.key_id} is not the one that was pinned")
    now = ctx.clock()
    slot = None if ctx.rotation.slot_ns is None else moment(ctx.rotation.slot_ns)
    base = nanoseconds(ctx.schedule.base(slot, moment(ctx.rotation.begun_ns)))
    retire = max(nanoseconds(ctx.schedule.overlap_ends(moment(now))), now + ctx.grace_ns)

    def also(connection: Connection) -> None:
        activate_key(connection, ctx.new.version, now, base, retire, f"replaced by rotation {ctx.rotation.id}")

    def then() -> None:
        ctx.hands.switch(version)
        ctx.hands.tell(
            "key-rotated",
            key_id=version.id,
            previous=ctx.old.key_id,
            public_key=version.public_key,
            expires_ns=retire,
            rotation_id=str(ctx.rotation.id),
        )

    return Done({"keyId": version.id, "previous": ctx.old.key_id, "overlapUntilNs": retire}, also, then, retire)


async def deactivate(ctx: Context) -> Done | Pending:
    """End the overlap: the old key signs no more, and tokens that can refuse it. It is deactivated in the store first,
    so that from then on nobody can make it current."""
    now = ctx.clock()
    old = await ctx.keys.end_overlap(ctx.old.version, now)
    if old.state == "active":
        return skipped("somebody has made the key current again")
    if old.state == "overlap":
        return Pending(old.retire_ns or now, {"keyId": old.key_id, "overlapUntilNs": old.retire_ns})
    enforced = await ctx.hands.retire(old.key_id)
    days = ctx.rules.destroy_after_days
    return Done(
        {"keyId": old.key_id, "enforced": enforced},
        wait_ns=0 if days is None or ctx.rotation.by_hand else now + days * _DAY_NS,
    )


async def destroy(ctx: Context) -> Done:
    """Erase the old key, where that is configured."""
    if ctx.rules.destroy_after_days is None:
        return skipped("destroyAfterDays is not set")
    if ctx.rotation.by_hand:
        return skipped("what was displaced by hand is destroyed by hand")
    if ctx.old.state not in ("deactivated", "destroyed"):
        return skipped(f"the key is {ctx.old.state}")
    gone = []
    for member in ctx.hands.holders():
        for record in matching(await member.control.list_keys(), ctx.old):
            if record.public_key in (None, ctx.old.public_key):
                await member.control.destroy(record.id)
                gone.append(member.name)
        await member.control.sweep(ctx.old.key_id)
    now = ctx.clock()
    return Done(
        {"keyId": ctx.old.key_id, "members": gone},
        also=lambda connection: change_key(connection, ctx.old.version, state="destroyed", destroyed_ns=now),
    )
