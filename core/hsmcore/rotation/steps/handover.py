"""Tell the chain which key is to be obeyed, while the old one still signs."""

from __future__ import annotations

from hsmcore.errors import HsmError
from hsmcore.handover.base import HandoverKey
from hsmcore.rotation.context import Context, Done, skipped
from hsmcore.rotation.steps import consent


async def do(ctx: Context) -> Done:
    """Hand over. It may be done again after a crash, so it looks first at what is there."""
    await consent.require(ctx)
    if ctx.handover is None:
        if ctx.rules.require_handover:
            raise HsmError(
                "keyRotation.requireHandover is true, and the application has registered no handover",
                hint="Rotate in the process that does, or call KeyManager.on_rotation() with one.",
            )
        return skipped("no handover is registered")
    old, new = await _keys(ctx)
    details = await ctx.handover.handover(old, new, ctx.hands.manager)
    return Done(dict(details or {}))


async def undo(ctx: Context) -> Done:
    """Give everything back to the old key."""
    if ctx.handover is None or not ctx.new.public_key:
        return skipped("nothing was handed over")
    old, new = await _keys(ctx)
    details = await ctx.handover.revert(old, new, ctx.hands.manager)
    return Done(dict(details or {}))


async def _keys(ctx: Context) -> tuple[HandoverKey, HandoverKey]:
    old, new = await ctx.hands.load(ctx.old.key_id), await ctx.hands.load(ctx.new.key_id)
    return HandoverKey(old, ctx.hands.sign), HandoverKey(new, ctx.hands.sign)
