"""Wait until enough people have approved."""

from __future__ import annotations

from hsmcore.rotation.context import Context, Done, Pending, skipped

_LOOK_AGAIN_NS = 1_000_000_000


async def do(ctx: Context) -> Done | Pending:
    """Count the approvals of those who are configured now."""
    if not ctx.rules.approvals:
        return skipped("no approvals are asked for")
    known = {approver.name for approver in ctx.rules.approvers}
    given = [name for name in await ctx.approvals.of(ctx.rotation.id) if name in known]
    details = {"approvedBy": given, "needed": ctx.rules.approvals}
    if len(given) >= ctx.rules.approvals:
        return Done(details)
    await ctx.announce(
        "rotation",
        f"rotation {ctx.rotation.id} waits for approval",
        f"key {ctx.old.key_id} is to be replaced; {ctx.rules.approvals} approvals are needed: "
        f"`hsmcore rotate approve {ctx.rotation.id}`",
        f"rotation-{ctx.rotation.id}-approval",
    )
    return Pending(ctx.clock() + _LOOK_AGAIN_NS, details)
