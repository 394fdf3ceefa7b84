"""Give the new key to every member that holds the old one, before anything depends on it."""

from __future__ import annotations

from hsmcore.errors import KeyMismatch
from hsmcore.manager.rotation.context import Context, Done, skipped
from hsmcore.manager.rotation.steps import destruction
from hsmcore.manager.rotation.steps.generate import matching
from hsmcore.members import Member
from hsmcore.members.control import KeyNotExportable
from hsmcore.members.control.quirks import NO_COPY_HINT
from hsmcore.members.tokens import export_key, import_key, sweep
from hsmcore.state.keys import StoredKey, change_key


async def do(ctx: Context) -> Done:
    """Copy the key, wrapped, to the members that lack it."""
    holders = ctx.all_holders()
    names = [member.name for member in holders]
    if len(holders) == 1:
        return skipped("there is one member")
    for member in holders:
        await destruction.require_made(ctx, member, matching(await member.control.list_keys(), ctx.new))
    # Noted before the copies are made: destroying the key asks all of these members.
    await ctx.keys.change(ctx.new.version, members=names)
    for member in holders[1:]:
        await sweep(member, ctx.new.key_id, nameless=ctx.resumed)
        try:
            await copy_key(ctx.new, holders[0], member)
        except KeyNotExportable as error:
            raise KeyNotExportable(
                f"{member.name} cannot get the new key: {error.args[0]}", hint=NO_COPY_HINT
            ) from error
    await ctx.port.load(ctx.new.key_id)
    return Done({"members": names}, also=lambda connection: change_key(connection, ctx.new.version, members=names))


async def copy_key(key: StoredKey, source: Member, target: Member) -> bool:
    """Put a key on another member that holds the same wrapping key. Returns False if it was there. Raises KeyMismatch
    if another object has its id."""
    there = matching(await target.control.list_keys(), key)
    copied = not there
    if copied:
        there = [await import_key(target, await export_key(source, key.key_id))]
    if any(record.public_key not in (None, key.public_key) for record in there):
        if copied:
            await target.control.destroy(there[0].id)
        raise KeyMismatch(f"{target.name} has another key under the id {key.key_id}", member=target.name)
    return copied
