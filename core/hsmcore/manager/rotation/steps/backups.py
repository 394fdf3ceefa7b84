"""Back up the old key and the new one, and restore the new one's backup as a test."""

from __future__ import annotations

import hashlib
from typing import Final

from hsmcore.base.log import get_logger
from hsmcore.base.places import BackupPlace, PlaceError, name_for, place_at
from hsmcore.errors import HsmError, RequestRejected
from hsmcore.manager.rotation.backup import drill as drills
from hsmcore.manager.rotation.backup.envelope import BackupInvalid, Statement, open_envelope
from hsmcore.manager.rotation.context import Context, Done, skipped
from hsmcore.manager.rotation.steps import destruction
from hsmcore.manager.rotation.steps.generate import holder_of, matching
from hsmcore.members.control import ControlPlane, KeyNotExportable, is_whole
from hsmcore.members.control.backup import WRAPPING_KEY_LABEL
from hsmcore.members.control.keys import Prove
from hsmcore.members.control.quirks import NO_COPY_HINT
from hsmcore.members.tokens import export_key, free_id, token_of, why_no_backup
from hsmcore.state.backups import insert_backup, note_drill
from hsmcore.state.keys import StoredKey

_SCRATCH_LABEL: Final = "hsmcore-drill"


async def back_up_old(ctx: Context) -> Done:
    """Back up the key that is replaced. A key that cannot leave its token is rotated without a backup."""
    if not ctx.rules.backup_enabled:
        return skipped("backupEnabled is false")
    why = await why_no_backup(ctx.first, ctx.old.algorithm)
    if why is not None and ctx.ceremony is None and ctx.rules.backup_policy == "require":
        # Raised before a key is made.
        raise KeyNotExportable(f"neither the old key nor the new one could be backed up: {why}", hint=NO_BACKUP_HINT)
    try:
        return await _back_up(ctx, ctx.old)
    except KeyNotExportable as error:
        return skipped(str(error.args[0]))
    except PlaceError as error:
        return _excused(ctx, error)


async def back_up_new(ctx: Context) -> Done:
    """Back up the new key."""
    if not ctx.rules.backup_enabled:
        return skipped("backupEnabled is false")
    try:
        return await _back_up(ctx, ctx.new)
    except (KeyNotExportable, PlaceError) as error:
        return _excused(ctx, error)


NO_BACKUP_HINT: Final = (
    'Set keyRotation.backupPolicy to "warn" to rotate without a backup, give keyRotation.keyCeremony a recovery key, '
    "or use a key or token that can be wrapped."
)


def without_copies_hint(*, shares: bool) -> str:
    """What to do where the token cannot wrap its keys; `shares`: a new key has to get to other members, too."""
    return NO_COPY_HINT if shares else NO_BACKUP_HINT


async def _back_up(ctx: Context, key: StoredKey) -> Done:
    place = _place(ctx)
    name = name_for(key.label, key.key_id)
    there = await place.read(name)
    if there is None:
        data = await _envelope(ctx, key)
        await place.create(name, data)
        there = await place.read(name)
        if there != data:
            raise PlaceError(f"backups at {place.location}: {name} does not read back as it was written")
    # An existing file is that of an earlier rotation, or of an attempt that a crash cut off.
    statement = open_envelope(there, key.public_key)
    digest = hashlib.sha256(there).hexdigest()
    details = {"place": place.location, "name": name, "method": statement.method, "sha256": digest}
    return Done(details, also=lambda connection: insert_backup(connection, key, **details))


async def _envelope(ctx: Context, key: StoredKey) -> bytes:
    sealed: str | None = None  # the copy that the ceremony of the new key sealed, in hexadecimal
    if key.version == ctx.new.version:
        sealed = await ctx.rotations.detail(ctx.rotation.id, "generate", "sealed")
    member = await holder_of(ctx.port.holders(None), key)
    if member is None:
        raise HsmError(f"no running member holds key {key.key_id}")
    ceremony = ctx.ceremony
    statement = Statement(
        key_id=key.key_id,
        label=key.label,
        algorithm=key.algorithm,
        public_key=key.public_key,
        method="wrapped" if sealed is None else "sealed",
        wrapping_key=WRAPPING_KEY_LABEL if sealed is None or ceremony is None else ceremony.recovery_public_key.lower(),
        member=member.name,
        made_ns=ctx.late(),
        payload=await export_key(member, key.key_id) if sealed is None else bytes.fromhex(sealed),
    )
    return statement.enclose(await ctx.port.sign(await ctx.port.load(key.key_id), statement.to_sign()))


def _excused(ctx: Context, error: HsmError) -> Done:
    if ctx.rules.backup_policy == "require":
        raise error
    get_logger().warning("ROTATION WITHOUT A BACKUP", rotation=ctx.rotation.id, reason=str(error.args[0]))
    return Done({"warning": str(error.args[0])})


async def plan_drill(ctx: Context) -> Done:
    """Choose the scratch id before anything is imported."""
    statement = await _backup_of_new(ctx)
    if statement is None or statement.method == "sealed" or is_whole(statement.payload):
        return Done()
    free = await free_id(ctx.first.token if ctx.drill is None else ctx.drill)
    return Done({"scratch": destruction.made_id(ctx, _SCRATCH_LABEL, len(free)).hex() if free is not None else None})


async def drill(ctx: Context) -> Done:
    """Restore the new key's backup, compare, sign, destroy."""
    statement = await _backup_of_new(ctx)
    if statement is None:
        return skipped("there is no backup")
    if statement.method == "sealed":
        return skipped("only the holder of the recovery key can open it: `hsmcore backup verify --recovery-key FILE`")
    token = _token(ctx)
    sign = drills.signer(token)
    place, name = _place(ctx).location, name_for(ctx.new.label, ctx.new.key_id)
    try:
        if not is_whole(statement.payload):
            scratch = await _scratch(ctx)
            if scratch is not None and not destruction.is_made_id(ctx, _SCRATCH_LABEL, scratch):
                raise HsmError(f"no drill of this rotation chose the id {scratch}")
            await drills.drill_beside(statement, token, sign, scratch, _SCRATCH_LABEL, resumed=ctx.resumed)
            how = "under a scratch id"
        elif ctx.drill is not None:
            await drills.drill_beside(statement, token, sign, None, "", resumed=ctx.resumed)
            how = "on the drill token"
        else:
            await destruction.require_made(ctx, ctx.first, matching(await token.list_keys(), ctx.new))
            await drills.drill_in_place(statement, token, _either(ctx))
            how = "in place, before its first use"
    except (BackupInvalid, RequestRejected) as error:
        if is_whole(statement.payload):
            raise
        return _excused(ctx, error)
    return Done(
        {"restored": how, "token": "own" if ctx.drill is None else "drill"},
        also=lambda connection: note_drill(connection, place, name),
    )


async def end_drill(ctx: Context) -> Done:
    """Destroy the keys that the drill may have left."""
    scratch = await _scratch(ctx)
    if scratch is not None and not destruction.is_made_id(ctx, _SCRATCH_LABEL, scratch):
        get_logger().error("a key was not destroyed", rotation=ctx.rotation.id, key=scratch, reason="no drill made it")
        return Done({"kept": scratch, "why": "no drill of this rotation made it"})
    if scratch is not None:
        await drills.end(_token(ctx), scratch, resumed=True)
    return Done({"scratch": scratch})


def _either(ctx: Context) -> drills.Sign:
    """Sign with the administrator's login or, where that login may not sign, through the engine."""

    async def sign(key_id: str, message: bytes) -> bytes:
        try:
            return await token_of(ctx.first).do(Prove(key_id, message))
        except HsmError:
            return await ctx.port.sign(await ctx.port.load(key_id), message)

    return sign


async def _backup_of_new(ctx: Context) -> Statement | None:
    if not ctx.rules.backup_enabled:
        return None
    try:
        data = await _place(ctx).read(name_for(ctx.new.label, ctx.new.key_id))
    except PlaceError as error:
        _excused(ctx, error)
        return None
    return None if data is None else open_envelope(data, ctx.new.public_key)


async def _scratch(ctx: Context) -> str | None:
    scratch: str | None = await ctx.rotations.detail(ctx.rotation.id, "drill", "scratch")
    return scratch


def _token(ctx: Context) -> ControlPlane:
    return token_of(ctx.first) if ctx.drill is None else ctx.drill


def _place(ctx: Context) -> BackupPlace:
    return place_at(ctx.rules.backup_location or "", ctx.rules.backup_endpoint_url)
