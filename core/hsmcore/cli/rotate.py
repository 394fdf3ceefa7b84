"""`hsmcore rotate`: rotate the signing key; show, approve and abort rotations."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from hsmcore.cli.files import read
from hsmcore.cli.invocation import Invocation, command
from hsmcore.cli.keys import is_configured
from hsmcore.cli.opened import (
    in_state,
    is_attended,
    not_genuine,
    print_not_genuine,
    rotates_somewhere,
    rotation_rules,
    with_token,
)
from hsmcore.cli.output import BadUsage, fields, note, table
from hsmcore.cli.rotating import rotate, waits_for
from hsmcore.cli.settings import RequiredReason, YesOption, token_settings
from hsmcore.errors import HsmError

if TYPE_CHECKING:
    from hsmcore.config import Config, KeyRotation
    from hsmcore.manager.rotation.store import Rotation
    from hsmcore.members.control import ControlPlane
    from hsmcore.state import Store

app = typer.Typer()
_HEAD: Final = (
    "current key current.id, public key current.publicKey, signs since current.validFromNs, next rotation next, "
    "key manager running, failed in a row failedInARow"
)
_KEYS: Final = "VERSION version, KEY id, STATE state, FROM validFromNs, UNTIL validUntilNs, WHY why"
_ROTATIONS: Final = "ROTATION id, BEGUN begunNs, ENDED endedNs, CAUSE cause, STATUS status, ERROR error"
_STEPS: Final = "TIME time_ns, STEP step, OUTCOME outcome, DETAILS text"


@command(app, "Approve a rotation.")
def approve(
    cli: Invocation,
    rotation: Annotated[
        int | None, typer.Argument(metavar="ROTATION", help="Its number (default: the one under way).")
    ] = None,
    name: Annotated[str | None, "--as NAME: The approver's name."] = None,
    signature: Annotated[Path | None, "FILE: An Ed25519 signature: 64 bytes, or hexadecimal."] = None,
) -> None:
    """Approve a rotation with a signature; without one, print the text that is to be signed.

    Example: hsmcore rotate approve > statement; sign it; hsmcore rotate approve --as bob --signature statement.sig
    """
    rules = rotation_rules(cli.config)
    if signature is None:
        print(cli.on_state(partial(_statement, number=rotation), absent="empty").decode(), end="")
        return
    if name is None:
        raise BadUsage("give --as NAME with --signature")
    with cli.recorded("rotate approve", approver=name) as entry:
        work = partial(_approve, rules=rules, number=rotation, name=name, signature=signature)
        given = cli.on_state(work, absent="empty")
        entry["rotation_id"] = str(given["rotation"])
    cli.show(given)


@command(app, "Rotate now.")
def now(
    cli: Invocation,
    reason: Annotated[str, "Why; it is kept in the history."] = "",
    dry_run: Annotated[bool, "Say what would be done; change nothing."] = False,
    wait: Annotated[bool, "--wait/--no-wait: Wait until the new key signs."] = True,
    timeout: Annotated[float, "Seconds to wait.", {"min": 1}] = 300.0,
    yes: YesOption = False,
) -> None:
    """Replace the signing key now. A running key manager does it; if none runs, this command does, unless
    requireHandover is set or a rotation waits for the application, which has the handover.

    Example: hsmcore rotate now --reason "an operator has left"
    """
    rules = rotation_rules(cli.config)
    if dry_run:
        found = asyncio.run(_dry_run(cli.config, rules))
        cli.show(found, ok=found["stops"] is None)
        return
    if rules.require_handover and not cli.on_state(rotates_somewhere, absent="empty"):
        raise HsmError(
            "keyRotation.requireHandover is true: only the application, which has the handover, may rotate",
            hint="Start the application, then repeat this command.",
        )
    cli.confirm("", "Replace the signing key now?", yes=yes)
    with cli.recorded("rotate now", reason=reason) as entry:
        done = asyncio.run(rotate(cli, reason, timeout if wait else 0.0))
        entry |= {"rotation_id": str(done.get("id", "")), "status": done["status"]}
        cli.show(done, ok=done["status"] not in ("failed", "aborted"))


@command(app, "Show the coming rotations.", "plan")
def plan_(cli: Invocation, count: Annotated[int, "How many.", {"min": 1, "max": 10_000}] = 12) -> None:
    """Show when the coming rotations are, if each is on time.

    Example: hsmcore rotate plan --count 24 --json
    """
    rules = rotation_rules(cli.config)

    async def read(store: Store) -> list[dict[str, Any]]:
        from hsmcore.manager.rotation.schedule import Schedule
        from hsmcore.state import Keys

        current = await Keys(store).current()
        return [] if current is None else Schedule.of(rules).plan(current.counts_from_ns, time.time_ns(), count)

    found = cli.on_state(read, shows=True)
    coming = table(f"ROTATION at, IN {rules.time_zone} local, OLD KEY VERIFIES UNTIL oldKeyVerifiesUntil")
    cli.show(found, coming if found else "no key has signed yet: the first start of a key manager begins the key ring")


@command(app, "Show the key that signs and what is under way.")
def status(cli: Invocation) -> None:
    """Show the key that signs, the time of its replacement, the rotations under way, and every key of the ring with its
    state and the reason for it.

    Example: hsmcore rotate status --json
    """
    rules = rotation_rules(cli.config)
    cli.show(cli.on_state(lambda store: _status(store, rules), shows=True), _print_status)


def _print_status(found: dict[str, Any]) -> None:
    fields(_HEAD)(found | {"running": "running" if found["running"] else "none runs"})
    print_not_genuine(found["storeNotGenuine"])
    for entry in found["open"]:
        approved = f"{len(entry['approvedBy'])} of {found['approvals']} approvals"
        waits = f", {approved}" if entry["step"] == "approve" else ""
        waits += f"; NOT GENUINE: {', '.join(entry['notGenuine'])}" if entry["notGenuine"] else ""
        waits += "; its handover was called, only the application goes on with it" if entry["needsHandover"] else ""
        waits += f"; it waits for {entry['waitsFor']}" if entry["waitsFor"] else ""
        print(f"rotation {entry['id']} ({entry['cause']}): {entry['status']} at step {entry['step']}{waits}")
    table(_KEYS)([key | {"why": key["note"] or key["origin"]} for key in found["keys"]])


@command(app, "Show past rotations.")
def history(
    cli: Invocation,
    rotation: Annotated[int | None, "All steps of this one."] = None,
    limit: Annotated[int, "At most so many, the latest.", {"min": 1, "max": 10_000}] = 20,
) -> None:
    """Show past rotations, or every step of one, oldest first.

    Example: hsmcore rotate history --rotation 3
    """
    rotation_rules(cli.config)

    async def read(store: Store) -> list[dict[str, Any]]:
        from hsmcore.manager.rotation.store import Rotations

        rotations = Rotations(store)
        if rotation is not None:
            await rotations.get(rotation)
            return await rotations.steps(rotation)
        return [entry.to_json() for entry in await rotations.last(limit)]

    cli.show(cli.on_state(read, shows=True), table(_ROTATIONS) if rotation is None else _print_steps)


def _print_steps(found: list[dict[str, Any]]) -> None:
    details = [", ".join(f"{k}={v}" for k, v in row["details"].items() if k != "sealed") for row in found]
    table(_STEPS)([row | {"text": text} for row, text in zip(found, details, strict=True)])


@command(app, "End the rotation that is under way.")
def abort(cli: Invocation) -> None:
    """Undo the rotation that is under way; the old key goes on signing. Too late once the new key signs.

    Example: hsmcore rotate abort
    """
    rotation_rules(cli.config)

    async def work(store: Store) -> tuple[Rotation, str]:
        from hsmcore.manager.rotation.machine import can_abort
        from hsmcore.manager.rotation.service import ABORT
        from hsmcore.manager.rotation.steps import handover
        from hsmcore.manager.rotation.store import Rotations
        from hsmcore.state import Desired

        found = await _under_way(store, None)
        if not can_abort(found.run):
            raise HsmError(f"rotation {found.id} is about to switch the key", hint="See `hsmcore rotate status`.")
        await Desired(store).set(ABORT, "yes", "")
        if await handover.waiting(Rotations(store)) is not None:
            return found, "its handover was called: the application, which has the handover, undoes it"
        running = await rotates_somewhere(store) or await asyncio.to_thread(is_attended, cli.config)
        return found, "" if running else "no key manager is running; it is undone at the next start"

    with cli.recorded("rotate abort") as entry:
        found, why = cli.on_state(work)
        entry["rotation_id"] = str(found.id)
    cli.show({"rotation": found.id, "status": "aborting"})
    if why:
        note(f"  {why}")


@command(app, "Say that this machine's clock is right.")
def clock(cli: Invocation, reason: RequiredReason) -> None:
    """Vouch for the clock of this machine: rotations, the end of an overlap and the destruction of keys go by it at
    once, and not after a day. For a machine that was off for long, or whose clock was put right. It cannot be undone.

    Example: hsmcore rotate clock --reason "off for a week; compared with the time servers"
    """
    from hsmcore.base.steady import SteadyClock
    from hsmcore.manager.rotation.clock import ACCEPTED
    from hsmcore.manager.rotation.schedule import moment
    from hsmcore.state import Keys

    rotation_rules(cli.config)
    vouched = SteadyClock()
    shown = {"accepted": moment(vouched.now()).isoformat()}
    with cli.recorded("rotate clock", reason=reason, **shown):
        cli.on_state(lambda store: Keys(store).set_setting(ACCEPTED, vouched.mark))
    cli.show(shown)


@command(app, "Go on with the key that the configuration names.")
def adopt(cli: Invocation) -> None:
    """Take the key that the configuration names into the key ring and let it sign from now on. The key that signed
    verifies for `overlapDays` more.

    Example: hsmcore rotate adopt --config new-key.json
    """
    rules = rotation_rules(cli.config)
    with cli.recorded("rotate adopt") as entry:
        adopted = asyncio.run(_adopt(cli.config, rules))
        entry |= {"key_id": adopted["id"], "public_key": adopted["publicKey"]}
    cli.show(adopted)


async def _dry_run(config: Config, rules: KeyRotation) -> dict[str, Any]:
    from hsmcore.manager.rotation.context import ceremony_for
    from hsmcore.manager.rotation.machine import NAMES
    from hsmcore.members.control.backup import WhyNoBackup
    from hsmcore.state import Keys

    current = await in_state(config, lambda store: Keys(store).current(), absent="empty")
    settings = token_settings(config)

    async def why_no_backup(plane: ControlPlane) -> str | None:
        named = [key for key in await plane.list_keys() if is_configured(settings, key)]
        algorithm = current.algorithm if current is not None else next((k.algorithm for k in named), None)
        sealed = ceremony_for(rules, algorithm or "") is not None
        return None if sealed else await plane.do(WhyNoBackup(algorithm or ""))

    why = await with_token(config, why_no_backup) if rules.backup_enabled else None
    skipped = {
        "approve": not rules.approvals,
        "backup-old": not rules.backup_enabled,
        "backup-new": not rules.backup_enabled or why is not None,
        "drill": not rules.backup_enabled or why is not None,
        "destroy": rules.destroy_after_days is None,
    }
    return {
        "dryRun": True,
        "replaces": current.key_id if current is not None else None,
        "steps": [name for name in NAMES if not skipped.get(name)],
        "approvals": rules.approvals,
        "noBackup": why,
        "stops": why if why is not None and rules.backup_policy == "require" else None,
    }


async def _status(store: Store, rules: KeyRotation) -> dict[str, Any]:
    from hsmcore.manager.rotation.schedule import Schedule
    from hsmcore.manager.rotation.steps import handover
    from hsmcore.manager.rotation.store import Rotations
    from hsmcore.state import Keys
    from hsmcore.state.keys import active_of

    known, rotations = await Keys(store).all(), Rotations(store)
    held = await handover.waiting(rotations)
    current = active_of(known)
    coming = [] if current is None else Schedule.of(rules).plan(current.counts_from_ns, time.time_ns(), 1)
    return {
        "running": await rotates_somewhere(store),
        "storeNotGenuine": await not_genuine(store),
        "current": None if current is None else current.to_json(),
        "keys": [key.to_json() for key in known],
        "next": coming[0]["at"] if coming else None,
        "failedInARow": (await rotations.failures_in_a_row())[0],
        "approvals": rules.approvals,
        "open": [
            entry.to_json()
            | {
                "needsHandover": held is not None and held.id == entry.id,
                "waitsFor": await waits_for(rotations, entry),
            }
            | dict(zip(("approvedBy", "notGenuine"), await _approvals_of(store, rules, entry), strict=True))
            for entry in await rotations.open()
        ],
    }


async def _adopt(config: Config, rules: KeyRotation) -> dict[str, Any]:
    from hsmcore.errors import KeyDeactivated, KeyNotFound
    from hsmcore.manager.rotation.clock import RotationClock
    from hsmcore.manager.rotation.pinned import configured_as
    from hsmcore.manager.rotation.schedule import Schedule
    from hsmcore.manager.rotation.store import Rotations
    from hsmcore.state import Keys

    settings = token_settings(config)
    found = [key for key in await with_token(config, lambda plane: plane.list_keys()) if is_configured(settings, key)]
    if len(found) != 1 or found[0].public_key is None or found[0].algorithm is None:
        raise KeyNotFound(f"the configuration names {len(found)} keys of the token that can be adopted, not one")
    key, public_key, algorithm = found[0], found[0].public_key, found[0].algorithm

    async def write(store: Store) -> dict[str, Any]:
        name = config.key_manager.name
        clock = RotationClock(store)
        await clock.take_up()
        retire = Schedule.of(rules).overlap_ends_ns(clock.late())
        rotations = Rotations(store, clock.late)
        try:
            chosen = await rotations.choose("adopted", key.id, public_key, algorithm, key.label, [name], retire)
        except KeyDeactivated as error:
            error.hint = "Name the key that is to sign in the configuration; `hsmcore rotate status` shows the ring's."
            raise
        await Keys(store).set_setting("configured", configured_as(config))
        return chosen.to_json()

    return await in_state(config, write)


async def _approvals_of(store: Store, rules: KeyRotation, entry: Rotation) -> tuple[list[str], list[str]]:
    """Return the names of approvers whose approval counts, and of those whose stored approval is not genuine."""
    from hsmcore.manager.rotation.approvals import genuine
    from hsmcore.state import Approvals

    return genuine(rules.approvers, await _statement(store, entry), await Approvals(store).of(entry.id))


async def _under_way(store: Store, number: int | None) -> Rotation:
    """Return the rotation of that number (None: the only one) while its key does not sign yet. Raises HsmError."""
    from hsmcore.manager.rotation.store import Rotations

    for entry in await Rotations(store).open():
        if entry.run.status == "running" and number in (None, entry.id):
            return entry
    what = "no rotation is under way" if number is None else f"rotation {number} is not under way"
    raise HsmError(f"{what}, or its key signs already", hint="See `hsmcore rotate status`.")


async def _statement(store: Store, entry: Rotation | None = None, number: int | None = None) -> bytes:
    """Return the text that an approver of a rotation signs, or of the one of that number, as of `_under_way`."""
    from hsmcore.manager.rotation.approvals import statement
    from hsmcore.state import Keys

    entry = entry or await _under_way(store, number)
    return statement(entry, next(key for key in await Keys(store).all() if key.version == entry.old))


async def _approve(
    store: Store, *, rules: KeyRotation, number: int | None, name: str, signature: Path
) -> dict[str, Any]:
    from hsmcore.manager.rotation.approvals import by_signature
    from hsmcore.state import Approvals

    approver = next((approver for approver in rules.approvers if approver.name == name), None)
    if approver is None:
        known = ", ".join(approver.name for approver in rules.approvers) or "nobody"
        raise BadUsage(f"{name} is no approver; the configuration has {known}")
    entry = await _under_way(store, number)
    good = by_signature(approver, await _statement(store, entry), _signature(signature))
    await Approvals(store).add(entry.id, good)
    given, _ = await _approvals_of(store, rules, entry)
    return {"rotation": entry.id, "approvedBy": given, "needed": rules.approvals}


def _signature(path: Path) -> bytes:
    raw = read(path)
    if len(raw) == 64:
        return raw
    try:
        return bytes.fromhex(raw.decode("ascii"))
    except ValueError:
        return b""
