"""Give notice that a key is about to be replaced: the notice is durable, and its delivery delays no step. Verifiers
that follow the signed set of keys are to find the new key in it before it signs."""

from __future__ import annotations

from hsmcore.errors import HsmError
from hsmcore.manager.rotation.context import LOOK_AGAIN_NS, Context, Done, Pending


async def do(ctx: Context) -> Done | Pending:
    """Put the notice into the outbox, once the set of keys lists the new key."""
    try:
        listed = await ctx.port.introduce(ctx.new.public_key)
    except HsmError as error:
        if not error.retryable:
            raise
        listed = False
    if not listed:
        return Pending(ctx.clock() + LOOK_AGAIN_NS, {"waitsFor": "a signed set of keys that lists the new key"})
    await ctx.announce(
        "rotation",
        f"rotation {ctx.rotation.id}: about to switch",
        f"key {ctx.old.key_id} is about to be replaced by {ctx.new.key_id} (public key {ctx.new.public_key.hex()})",
        f"rotation-{ctx.rotation.id}-switch",
    )
    return Done()
