"""`hsmcore rotate`: rotate the signing key; show, approve and abort rotations."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hsmcore.cli.invocation import Invocation, command
from hsmcore.cli.keys.keys import is_configured
from hsmcore.cli.output import FAILED, cells, note, print_fields, print_json, print_table, when
from hsmcore.cli.recorded import recorded
from hsmcore.cli.rotate.approve import approvals_of, approve, under_way
from hsmcore.cli.settings import YesOption, token_settings
from hsmcore.cli.state.opened import (
    in_state,
    is_attended,
    not_genuine,
    on_state,
    print_not_genuine,
    rotates_somewhere,
    rotation_rules,
    with_token,
)
from hsmcore.errors import HsmError

if TYPE_CHECKING:
    from hsmcore.config import Config, KeyRotation
    from hsmcore.manager.rotation.store import Rotation, Rotations
    from hsmcore.members.control import ControlPlane
    from hsmcore.state import Store

app = typer.Typer(name="rotate", help="Rotate the signing key, plan, approve, abort.", no_args_is_help=True)
ReasonOption = Annotated[str, typer.Option("--reason", help="Why; it is kept in the history.")]
command(app, "Approve a rotation.")(approve)


@command(app, "Rotate now.")
def now(
    cli: Invocation,
    reason: ReasonOption = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done; change nothing.")] = False,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until the new key signs.")] = True,
    timeout: Annotated[float, typer.Option("--timeout", min=1, help="Seconds to wait.")] = 300.0,
    yes: YesOption = False,
) -> None:
    """Replace the signing key now. A running key manager does it; if none runs, this command does, unless
    requireHandover is set or a rotation waits for the application, which has the handover.

    Example: hsmcore rotate now --reason "an operator has left"
    """
    rules = rotation_rules(cli.config)
    if dry_run:
        found = asyncio.run(_dry_run(cli.config, rules))
        cli.show(found)
        if found["stops"] is not None:
            raise typer.Exit(FAILED)
        return
    if rules.require_handover and not on_state(cli.config, rotates_somewhere, absent="empty"):
        raise HsmError(
            "keyRotation.requireHandover is true: only the application, which has the handover, may rotate",
            hint="Start the application, then repeat this command.",
        )
    cli.confirm("", "Replace the signing key now?", yes=yes)
    with recorded(cli.config.key_manager, "rotate now", reason=reason) as entry:
        done = asyncio.run(_rotate(cli.config, reason, timeout if wait else 0.0))
        entry |= {"rotation_id": str(done.get("id", "")), "status": done["status"]}
        cli.show(done)
        if done["status"] in ("failed", "aborted"):
            raise typer.Exit(FAILED)


@command(app, "Show the coming rotations.", "plan")
def plan_(
    cli: Invocation,
    count: Annotated[int, typer.Option("--count", min=1, max=10_000, help="How many.")] = 12,
) -> None:
    """Show when the coming rotations are, if each is on time.

    Example: hsmcore rotate plan --count 24 --json
    """
    rules = rotation_rules(cli.config)

    async def read(store: Store) -> list[dict[str, Any]]:
        from hsmcore.manager.rotation.schedule import Schedule
        from hsmcore.state import Keys

        current = await Keys(store).current()
        return [] if current is None else Schedule.of(rules).plan(current.counts_from_ns, time.time_ns(), count)

    found = on_state(cli.config, read, shows=True)
    if not found and not cli.as_json:
        print("no key has signed yet: the first start of a key manager begins the key ring")
        return
    header = ("ROTATION", f"IN {rules.time_zone}", "OLD KEY VERIFIES UNTIL")
    cli.show_table(found, header, [(row["at"], row["local"], row["oldKeyVerifiesUntil"]) for row in found])


@command(app, "Show the key that signs and what is under way.")
def status(cli: Invocation) -> None:
    """Show the key that signs, the time of its replacement, the rotations under way, and every key of the ring with its
    state and the reason for it.

    Example: hsmcore rotate status --json
    """
    rules = rotation_rules(cli.config)
    found = on_state(cli.config, lambda store: _status(store, rules), shows=True)
    if cli.as_json:
        print_json(found)
        return
    current = found["current"] or {}
    print_fields(
        {
            "current key": current.get("id"),
            "public key": current.get("publicKey"),
            "signs since": when(current.get("validFromNs")),
            "next rotation": found["next"],
            "key manager": "running" if found["running"] else "none runs",
            "failed in a row": found["failedInARow"],
        }
    )
    print_not_genuine(found["storeNotGenuine"])
    for entry in found["open"]:
        waits = f", {len(entry['approvedBy'])} of {rules.approvals} approvals" if entry["step"] == "approve" else ""
        waits += f"; NOT GENUINE: {', '.join(entry['notGenuine'])}" if entry["notGenuine"] else ""
        waits += "; its handover was called, only the application goes on with it" if entry["needsHandover"] else ""
        waits += f"; it waits for {entry['waitsFor']}" if entry["waitsFor"] else ""
        print(f"rotation {entry['id']} ({entry['cause']}): {entry['status']} at step {entry['step']}{waits}")
    keys = [key | {"id": key["id"] or None, "why": key["note"] or key["origin"]} for key in found["keys"]]
    print_table(
        ("VERSION", "KEY", "STATE", "FROM", "UNTIL", "WHY"),
        [cells(key, "version", "id", "state", "validFromNs", "validUntilNs", "why") for key in keys],
    )


@command(app, "Show past rotations.")
def history(
    cli: Invocation,
    rotation: Annotated[int | None, typer.Option("--rotation", help="All steps of this one.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=10_000, help="At most so many, the latest.")] = 20,
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

    found = on_state(cli.config, read, shows=True)
    if rotation is not None:
        details = [", ".join(f"{k}={v}" for k, v in row["details"].items() if k != "sealed") for row in found]
        rows = [[*cells(row, "time_ns", "step", "outcome"), text] for row, text in zip(found, details, strict=True)]
        cli.show_table(found, ("TIME", "STEP", "OUTCOME", "DETAILS"), rows)
    else:
        rows = [cells(row, "id", "begunNs", "endedNs", "cause", "status", "error") for row in found]
        cli.show_table(found, ("ROTATION", "BEGUN", "ENDED", "CAUSE", "STATUS", "ERROR"), rows)


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

        found = await under_way(store, None)
        if not can_abort(found.run):
            raise HsmError(f"rotation {found.id} is about to switch the key", hint="See `hsmcore rotate status`.")
        await Desired(store).set(ABORT, "yes", "")
        if await handover.waiting(Rotations(store)) is not None:
            return found, "its handover was called: the application, which has the handover, undoes it"
        running = await rotates_somewhere(store) or await asyncio.to_thread(is_attended, cli.config)
        return found, "" if running else "no key manager is running; it is undone at the next start"

    with recorded(cli.config.key_manager, "rotate abort") as entry:
        found, why = on_state(cli.config, work)
        entry["rotation_id"] = str(found.id)
    cli.show({"rotation": found.id, "status": "aborting"})
    if why:
        note(f"  {why}")


@command(app, "Go on with the key that the configuration names.")
def adopt(cli: Invocation) -> None:
    """Take the key that the configuration names into the key ring and let it sign from now on. The key that signed
    verifies for `overlapDays` more.

    Example: hsmcore rotate adopt --config new-key.json
    """
    rules = rotation_rules(cli.config)
    with recorded(cli.config.key_manager, "rotate adopt") as entry:
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


async def _rotate(config: Config, reason: str, seconds: float) -> dict[str, Any]:
    from hsmcore.manager.rotation.service import ROTATE
    from hsmcore.manager.rotation.steps import handover
    from hsmcore.manager.rotation.store import Rotations
    from hsmcore.state import Desired

    async def ask(store: Store) -> dict[str, Any] | None:
        held = await handover.waiting(Rotations(store))
        if held is not None:
            raise handover.refusal(held)
        if not await rotates_somewhere(store):
            return None
        rotations, until = Rotations(store), time.monotonic() + seconds
        before = max((entry.id for entry in await rotations.last(1)), default=0)
        await Desired(store).set(ROTATE, "now", reason)
        while time.monotonic() < until:
            for entry in await rotations.last():
                if entry.id > before and entry.cause == "manual" and entry.run.status not in ("running", "undoing"):
                    return entry.to_json()
            await asyncio.sleep(0.1)
        return {"status": "asked for", "reason": reason}

    asked = await in_state(config, ask, absent="empty")
    if asked is not None:
        return asked
    from hsmcore.manager.key_managers import create_key_manager

    async with create_key_manager(config) as manager:
        try:
            async with asyncio.timeout(seconds or None):
                await manager.rotate_key(reason)
        except TimeoutError:
            note("hsmcore: not done in time; it goes on when a key manager runs")
    return await in_state(config, _last)


async def _last(store: Store) -> dict[str, Any]:
    from hsmcore.manager.rotation.store import Rotations

    return (await Rotations(store).last(1))[0].to_json()


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
                "waitsFor": await _waits_for(rotations, entry),
            }
            | dict(zip(("approvedBy", "notGenuine"), await approvals_of(store, rules, entry), strict=True))
            for entry in await rotations.open()
        ],
    }


async def _waits_for(rotations: Rotations, entry: Rotation) -> str | None:
    """Return what a step that cannot be done yet waits for, and why."""
    [*_, last] = [{"outcome": "", "details": {}}, *await rotations.steps(entry.id)]
    found = last["details"].get("waitsFor") if last["outcome"] == "waiting" else None
    why = last["details"].get("why")
    return f"{found}: {why}" if found and why else found


async def _adopt(config: Config, rules: KeyRotation) -> dict[str, Any]:
    from hsmcore.errors import KeyNotFound
    from hsmcore.manager.rotation.pinned import configured_as
    from hsmcore.manager.rotation.schedule import Schedule
    from hsmcore.manager.rotation.store import Rotations
    from hsmcore.state import Keys

    settings = token_settings(config)
    found = [key for key in await with_token(config, lambda plane: plane.list_keys()) if is_configured(settings, key)]
    if len(found) != 1 or found[0].public_key is None or found[0].algorithm is None:
        raise KeyNotFound(f"the configuration names {len(found)} keys of the token that can be adopted, not one")
    key, public_key, algorithm = found[0], found[0].public_key, found[0].algorithm
    retire = Schedule.of(rules).overlap_ends_ns(time.time_ns())

    async def write(store: Store) -> dict[str, Any]:
        name = config.key_manager.name
        chosen = await Rotations(store).choose("adopted", key.id, public_key, algorithm, key.label, [name], retire)
        await Keys(store).set_setting("configured", configured_as(config))
        return chosen.to_json()

    return await in_state(config, write)
