"""Wait for enough approvals."""

from __future__ import annotations

from hsmcore.base.log import get_logger
from hsmcore.manager.rotation.approvals import genuine, statement
from hsmcore.manager.rotation.context import LOOK_AGAIN_NS, Context, Done, Pending, skipped
from hsmcore.state import NotApproved


async def do(ctx: Context) -> Done | Pending:
    """Count the approvals of the approvers that are configured now."""
    if not ctx.rules.approvals:
        return skipped("no approvals are asked for")
    approved, refused = await _given(ctx)
    details: dict[str, object] = {"approvedBy": approved, "needed": ctx.rules.approvals}
    for name in refused:
        details["notGenuine"] = refused
        get_logger().error("an approval in the state store is not genuine", rotation=ctx.rotation.id, approver=name)
        await ctx.announce(
            "failure",
            f"rotation {ctx.rotation.id}: an approval is not genuine",
            f"the state store has an approval by {name} that {name} did not give to this rotation, or that repeats "
            "another one; it does not count. Find out who can write the store.",
            f"rotation-{ctx.rotation.id}-not-genuine-{name}",
        )
    if len(approved) >= ctx.rules.approvals:
        return Done(details)
    await ctx.announce(
        "rotation",
        f"rotation {ctx.rotation.id} waits for approval",
        f"key {ctx.old.key_id} is to be replaced; {ctx.rules.approvals} approvals are needed: "
        f"`hsmcore rotate approve {ctx.rotation.id}`",
        f"rotation-{ctx.rotation.id}-approval",
    )
    return Pending(ctx.clock() + LOOK_AGAIN_NS, details)


async def require(ctx: Context) -> None:
    """Check the approvals again before a step that cannot be undone: a writer of the store could have had the first
    step left out. Raises NotApproved."""
    why = await why_not(ctx)
    if why is not None:
        raise NotApproved(why)


async def why_not(ctx: Context) -> str | None:
    """Return why there are too few approvals; each proof is checked again."""
    needed = ctx.rules.approvals
    if not needed:
        return None
    approved, _ = await _given(ctx)
    return None if len(approved) >= needed else f"rotation {ctx.rotation.id} has {len(approved)} of {needed} approvals"


async def _given(ctx: Context) -> tuple[list[str], list[str]]:
    return genuine(ctx.rules.approvers, statement(ctx.rotation, ctx.old), await ctx.approvals.of(ctx.rotation.id))
