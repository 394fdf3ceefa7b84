"""Give notice that a key is about to be replaced: the notice is durable, and its delivery delays no step."""

from __future__ import annotations

from hsmcore.rotation.context import Context, Done


async def do(ctx: Context) -> Done:
    """Put the notice into the outbox."""
    await ctx.announce(
        "rotation",
        f"rotation {ctx.rotation.id}: about to switch",
        f"key {ctx.old.key_id} is about to be replaced by {ctx.new.key_id} (public key {ctx.new.public_key.hex()})",
        f"rotation-{ctx.rotation.id}-switch",
    )
    return Done()
