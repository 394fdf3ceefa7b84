"""The switch, and the end of the old key: overlap, deactivation, destruction."""

from __future__ import annotations

from typing import Any, cast

from sqlalchemy import Connection

from hsmcore.base.log import get_logger
from hsmcore.errors import HsmError, KeyMismatch
from hsmcore.manager.rotation.context import LOOK_AGAIN_NS, Context, Done, Pending, skipped
from hsmcore.manager.rotation.schedule import moment, nanoseconds
from hsmcore.manager.rotation.steps import consent, destruction
from hsmcore.manager.rotation.steps.generate import matching
from hsmcore.members.base import AliasAdmin
from hsmcore.members.tokens import sweep
from hsmcore.state.keys import StoredKey, activate_key, change_key

ASK_AGAIN_NS = 10_000_000_000
"""Nanoseconds until a member that was away is looked for again."""
_DAY_NS = 86_400_000_000_000


async def activate(ctx: Context) -> Done:
    """Let the new key sign. Requests routed to the old one are still answered with it."""
    await consent.require(ctx)
    version = await ctx.port.load(ctx.new.key_id)
    if version.public_key != ctx.new.public_key:
        raise KeyMismatch(f"key {ctx.new.key_id} is not the one that was pinned")
    not_moved = await _move_aliases(ctx, ctx.new)
    now = ctx.late()
    slot = None if ctx.rotation.slot_ns is None else moment(ctx.rotation.slot_ns)
    base = nanoseconds(ctx.schedule.base(slot, moment(min(ctx.rotation.begun_ns, now))))
    retire = max(ctx.schedule.overlap_ends_ns(now), now + ctx.grace_ns)

    def also(connection: Connection) -> None:
        activate_key(connection, ctx.new.version, now, base, retire, f"replaced by rotation {ctx.rotation.id}")

    def then() -> None:
        ctx.port.switch(version)
        ctx.port.tell(
            "key-rotated",
            key_id=version.id,
            previous=ctx.old.key_id,
            public_key=version.public_key,
            expires_ns=retire,
            rotation_id=str(ctx.rotation.id),
        )

    details = {"keyId": version.id, "previous": ctx.old.key_id, "overlapUntilNs": retire} | not_moved
    return Done(details, also, then, retire)


async def _move_aliases(ctx: Context, key: StoredKey) -> dict[str, str]:
    """Point the aliases that the configuration names keys with at `key`. A failure must not keep the new key, which the
    chain obeys by now, from signing: it is logged, and tried again before the old key goes."""
    for member in ctx.port.holders(None):
        if member.name in ctx.aliases:
            alias = ctx.aliases[member.name]
            try:
                await cast(AliasAdmin, member.control).move_alias(alias, key.key_id)
            except HsmError as error:
                get_logger().error("an alias was not moved to the new key", member=member.name, error=str(error))
                return {"warning": f"{alias} still names another key: {error.args[0]}"}
    return {}


async def deactivate(ctx: Context) -> Done | Pending:
    """End the overlap: the old key signs no more, and tokens that can do so refuse it. The store deactivates it first,
    so that from then on no caller can make it current."""
    now = ctx.clock()
    old = await ctx.keys.end_overlap(ctx.old.version, ctx.late(), now)
    if old.state == "active":
        return skipped("somebody has made the key current again")
    if old.state == "overlap":
        return Pending(old.retire_ns or now, {"keyId": old.key_id, "overlapUntilNs": old.retire_ns})
    current = await ctx.keys.current()
    not_moved = {} if current is None else await _move_aliases(ctx, current)
    if not_moved:
        raise HsmError(f"the old key is not disabled: {not_moved['warning']}", hint="Allow kms:UpdateAlias.")
    here = ctx.port.signing()[0]
    if here.state == "active" and (old.key_id == here.id or old.public_key == here.public_key):
        get_logger().error("a key that signs is not deactivated", rotation=ctx.rotation.id, key=old.key_id)
        return Pending(now + LOOK_AGAIN_NS, {"keyId": old.key_id, "waitsFor": "another key to sign in this process"})
    waits = await _still_away(ctx, "deactivate")
    if waits is not None:
        return waits
    told = await ctx.port.deactivate(old.key_id)
    untold = sorted(ctx.named(old) & set(told.untold))
    if untold:
        return await _wait_for(ctx, "deactivate", untold)
    days = ctx.rules.destroy_after_days
    since = old.deactivated_ns or ctx.late()
    return Done(
        {"keyId": old.key_id, "enforced": told.enforced},
        wait_ns=0 if days is None or ctx.rotation.by_hand else since + days * _DAY_NS,
    )


async def destroy(ctx: Context) -> Done | Pending:
    """Erase the old key, if that is configured. It is destroyed when each of its members has said so; one that is away
    is waited for."""
    if ctx.rules.destroy_after_days is None:
        return skipped("destroyAfterDays is not set")
    if ctx.rotation.by_hand:
        return skipped("what was displaced by hand is destroyed by hand")
    if ctx.old.state not in ("deactivated", "destroyed"):
        return skipped(f"the key is {ctx.old.state}")
    waits = await _still_away(ctx, "destroy")
    if waits is not None:
        return waits
    why = await destruction.why_not_old(ctx)
    if why is not None:
        await destruction.keep(ctx, ctx.old, why)
        return Done({"kept": ctx.old.key_id, "why": why})
    gone: list[str] = await ctx.rotations.detail(ctx.rotation.id, "destroy", "members") or []
    holders = ctx.port.holders(None)
    for member in [each for each in ctx.port.members() if each in holders or each.name in ctx.old.members]:
        for record in matching(await member.control.list_keys(), ctx.old):
            if destruction.is_old(ctx, member, record):
                await member.control.destroy(record.id)
                gone.append(member.name)
        await sweep(member, ctx.old.key_id)
    away = ctx.away(ctx.old)
    if away:
        return await _wait_for(ctx, "destroy", away, members=gone)
    now = ctx.late()
    return Done(
        {"keyId": ctx.old.key_id, "members": gone},
        also=lambda connection: change_key(connection, ctx.old.version, state="destroyed", destroyed_ns=now),
    )


async def _still_away(ctx: Context, step: str) -> Pending | None:
    """Return that the step waits, if it waits for members of which none has come back: the others are not asked
    again."""
    steps = await ctx.rotations.steps(ctx.rotation.id, [step])
    details: dict[str, Any] = steps[-1]["details"] if steps and steps[-1]["outcome"] == "waiting" else {}
    awaited = ctx.configured.intersection(details.get("away", ()))
    if not awaited or not awaited.isdisjoint(member.name for member in ctx.port.members()):
        return None
    return Pending(ctx.clock() + ASK_AGAIN_NS, details)


async def _wait_for(ctx: Context, step: str, away: list[str], **details: Any) -> Pending:
    """Keep the step open for members that could not be told. Log and note it."""
    names = ", ".join(away)
    get_logger().error("the old key may be whole on a member", rotation=ctx.rotation.id, step=step, members=away)
    await ctx.announce(
        "failure",
        f"rotation {ctx.rotation.id}: step {step} waits for {names}",
        f"the token of {names} could not be told that key {ctx.old.key_id} has ended: it may still hold it, and sign. "
        "Bring the member back, or take it out of the configuration.",
        f"rotation-{ctx.rotation.id}-{step}-{names}",
    )
    waits = {"keyId": ctx.old.key_id, "waitsFor": names, "why": "its token could not be told", "away": away}
    return Pending(ctx.clock() + ASK_AGAIN_NS, waits | details)
