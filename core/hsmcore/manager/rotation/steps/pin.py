"""Pin the new key: from here on its public key identifies it, and no other key under its id is taken for it."""

from __future__ import annotations

from hsmcore.errors import KeyMismatch
from hsmcore.manager.rotation.context import Context, Done
from hsmcore.state.keys import change_key


async def do(ctx: Context) -> Done:
    """Load the key, which proves it by a verified signature, and note its public key."""
    version = await ctx.port.load(ctx.new.key_id)
    known = ctx.new.public_key or bytes.fromhex(
        await ctx.rotations.detail(ctx.rotation.id, "generate", "publicKey") or ""
    )
    if version.public_key == ctx.old.public_key:
        raise KeyMismatch("the token handed out the current key for the new one")
    if known and version.public_key != known:
        raise KeyMismatch(f"key {ctx.new.key_id} is not the one that was generated")
    return Done(
        {"keyId": version.id, "publicKey": version.public_key.hex()},
        also=lambda connection: change_key(connection, ctx.new.version, public_key=version.public_key),
    )
