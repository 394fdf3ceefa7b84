"""Every member that holds the old key gets the new one, before anything depends on it."""

from __future__ import annotations

from hsmcore.errors import HsmError, KeyMismatch
from hsmcore.members import Member
from hsmcore.rotation.context import Context, Done, skipped
from hsmcore.rotation.steps.generate import matching
from hsmcore.state.keys import StoredKey, change_key


async def do(ctx: Context) -> Done:
    """Copy the key, wrapped, to the members that lack it."""
    holders = ctx.hands.holders()
    missing = set(ctx.old.members) - {member.name for member in holders}
    if missing:
        raise HsmError(
            f"{', '.join(sorted(missing))} holds the current key and is not running: it would be left behind",
            hint="Bring it back, or take it out of the configuration.",
        )
    names = [member.name for member in holders]
    if len(holders) == 1:
        return skipped("there is one member")
    # Noted before the copies are made: whoever destroys the key again asks all of them.
    await ctx.keys.change(ctx.new.version, members=names)
    for member in holders[1:]:
        await member.control.sweep(ctx.new.key_id, nameless=ctx.resumed)
        await copy_key(ctx.new, holders[0], member)
    await ctx.hands.load(ctx.new.key_id)
    return Done({"members": names}, also=lambda connection: change_key(connection, ctx.new.version, members=names))


async def copy_key(key: StoredKey, source: Member, target: Member) -> bool:
    """Put a key on another member that holds the same wrapping key. False if it was there. Raises KeyMismatch if
    something else is there under its id."""
    there = matching(await target.control.list_keys(), key)
    copied = not there
    if copied:
        there = [await target.control.import_wrapped(await source.control.export_wrapped(key.key_id))]
    if any(record.public_key not in (None, key.public_key) for record in there):
        if copied:
            await target.control.destroy(there[0].id)
        raise KeyMismatch(f"{target.name} has another key under the id {key.key_id}", member=target.name)
    return copied
