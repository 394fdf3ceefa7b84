"""`hsmcore state`: the backups of a state store, its way back, and its seal; its positions are in positions.py."""

from __future__ import annotations

import asyncio
from mmap import mmap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from hsmcore.cli import positions
from hsmcore.cli.invocation import Invocation, command
from hsmcore.cli.output import BadUsage, fail, fields, plain, print_fields, progress_bar, table, when
from hsmcore.cli.settings import RequiredReason, misconfigured

if TYPE_CHECKING:
    from hsmcore.base.places import BackupPlace
    from hsmcore.config import Config
    from hsmcore.state import Store
    from hsmcore.state.backup import BackupStatement
    from hsmcore.state.database import Told

app = typer.Typer()
PathArgument = Annotated[str, typer.Argument(metavar="PATH", help="A backup: a file, or s3://bucket/prefix/name.")]
FromOption = Annotated[str | None, "--from NAME: Whose the backup is, if not this store's: fleet, or log's origin."]
RingOption = Annotated[bool, "The key ring changed since, and is as it should be all the same."]
_TABLES: Final = {
    "keys": "id, key_id, state, public_key, members, note",
    "openRotations": "id, cause, status, step, old_version, new_version",
    "budget": "id, reserved, max_transactions, max_seconds",
    "orders": "name, value, reason",
    "domains": "public_key, domain, forms, reason",
}
_NEXT: Final = 'hsmcore state reconcile --reason "…"'
_NEXT_FLEET: Final = "start each host; see `hsmcore fleet status`"
_NEXT_BLIND: Final = "there is no audit log to say what it lacks: compare it with the token and the chain, then start"
_CONFLICT: Final = "position {position} of {domain} was bound to {bound} here, and to {digest} in the audit log"
_CHECKED: Final = (
    "made madeNs, of subject, sealed, audit checkpoint checkpoint, records behind recordsBehind, "
    "positions behind missingPositions, state"
)


@command(app, "Back up the state store, while it is in use.")
def backup(cli: Invocation, to: Annotated[str, "PATH: A file, a folder, or s3://bucket/prefix."]) -> None:
    """Back up the state store, a file or a fleet's database, as it is at one moment. Key managers go on meanwhile. The
    backup has digests, with stateSecret also a MAC, and names the audit log's last checkpoint. It has no secrets.

    Examples:

      hsmcore state backup --to /backups/

      hsmcore state backup --to s3://backups/sequencer
    """
    from hsmcore.recovery.restore import back_up
    from hsmcore.recovery.state_backup import name_of, put

    async def made(told: Told | None) -> tuple[BackupStatement, BackupPlace, str, int]:
        async with back_up(cli.config, told) as (statement, head, body):
            location, name = _target(cli.config, to, name_of(cli.config, statement))
            await put(location, name, statement, head, body)
            return statement, location, name, len(head) + len(body)

    with cli.recorded("state backup") as entry, progress_bar(cli.as_json) as told:
        statement, location, name, size = asyncio.run(made(told))
        entry |= {"sha256": statement.sha256, "bytes": size, "file": name}
    shown = {"name": name, "place": location.location, **statement.as_data()}
    cli.show(shown, f"{name} written to {location.location}: {size} bytes")


@command(app, "Check a backup without restoring it.")
def verify(cli: Invocation, path: PathArgument, source: FromOption = None) -> None:
    """Restore a backup into a temporary place: form, version, digests, MAC and seal if the secret is there, and how far
    the audit log has gone on since. Nothing is changed. Ends with 1 if the backup is no good; one that is older than
    the log is good, and is reconciled after it was restored.

    Example: hsmcore state verify /backups/sequencer.20261128T100000Z.hsmstate
    """
    from hsmcore.recovery.restore import check

    found = asyncio.run(check(cli.config, _read(cli.config, path), source))
    shown = {
        **found.statement.as_data(),
        "older": None if found.problem is None else bool(found.problem),
        "why": found.problem or None,
        "missingPositions": found.missing,
        "recordsBehind": found.records,
    }
    cli.show(shown, _print_checked)


@command(app, "Put the store of a backup in the place of the present one.")
def restore(
    cli: Invocation,
    path: PathArgument,
    reason: RequiredReason,
    replace: Annotated[bool, "There is a store: keep it beside the restored one, under another name."] = False,
    source: FromOption = None,
    also: Annotated[bool, "--reconcile: Also reconcile it with the audit log."] = False,
    ring_compared: RingOption = False,
) -> None:
    """Put the store of a backup in the place of the present one, which no process may use. Nothing with a position is
    signed on it before it is reconciled: by `state reconcile`, in a fleet by its hosts when they start.

    Examples:

      hsmcore state restore BACKUP --replace --reconcile --reason "the disk is gone"

      hsmcore state restore BACKUP --reason "the disk is gone"
    """
    from hsmcore.recovery.marks import witness_of
    from hsmcore.recovery.restore import restore as restored

    fleet, compared, done = cli.config.key_manager.fleet is not None, witness_of(cli.config), None
    if also and not fleet and not compared:
        raise BadUsage("--reconcile needs an audit log and something that is kept in the state store")
    data = _read(cli.config, path)
    with (
        cli.recorded("state restore", file=Path(path).name, reason=reason) as entry,
        progress_bar(cli.as_json) as told,
    ):
        statement, aside = asyncio.run(restored(cli.config, data, replace=replace, source=source, told=told))
        entry |= {"sha256": statement.sha256}
    text = f"the store of {when(statement.made_ns)} is in its place"
    text += f"; the former one is kept as {aside}" if aside else ""
    if also and not fleet:
        done = _reconciled(cli, reason, ring_compared=ring_compared)
    shown = {"restored": statement.as_data(), "formerKeptAs": aside or None, "reconciled": done}
    cli.show(shown, text if done is None else f"{text}\n{_in_words(done)}")
    if done is None:
        cli.note(f"next: {_NEXT if compared else _NEXT_FLEET if fleet else _NEXT_BLIND}")
    else:
        fail(_CONFLICT.format_map(one) for one in done["conflicts"])


@command(app, "Raise an older store to what the audit log says.")
def reconcile(cli: Invocation, reason: RequiredReason, ring_compared: RingOption = False) -> None:
    """Raise a store that is older than the audit log to what the log says: positions, emergency budget, bindings of
    messages to keys. Nothing is lowered, so a repetition does no harm. Where log and store have two payloads for one
    position, neither is signed again, and the command ends with 1.

    The key ring cannot be put back from the log. If it changed since, compare `hsmcore rotate status` with the records
    that are named and with the chain, and say so with --ring-compared.

    Example: hsmcore state reconcile --reason "state.db was put back by hand"
    """
    done = _reconciled(cli, reason, ring_compared=ring_compared)
    cli.show(done, _in_words(done))
    fail(_CONFLICT.format_map(one) for one in done["conflicts"])


positions.add_to(app)


@command(app, "Show what the state store says, or adopt it.")
def seal(
    cli: Invocation, adopt: Annotated[str | None, "DIGEST: Seal the rows with this digest, as it was shown."] = None
) -> None:
    """Show whether the seal of the state store holds, and what the store says: keys, open rotations, emergency budget,
    orders. Ends with 1 if a row is not one that hsmcore has sealed.

    Compare what is shown with what you know. Then adopt it: the rows that have that digest are sealed as they are. Do
    this once when stateSecret is given to a store that has rows, and after an incident.

    Example: hsmcore state seal --adopt 6254f205b2cac161a3fe70252976e5620c5480cdb054b39bbc0e1d22ff997482
    """
    if cli.config.state_secret is None:
        problem = "is missing, so the state store has no seal"
        hint = 'Make one: `openssl rand -hex 32`; then name it, such as "stateSecret": {"file": "…/state-secret"}.'
        raise misconfigured(f"{cli.config.where}.stateSecret", problem, hint)
    if adopt is not None:
        digest = adopt
        with cli.recorded("state seal", sha256=digest):
            cli.on_state(lambda store: store.adopt(digest))
    found = cli.on_state(_rows, shows=True)
    cli.show(found, _print_seal, ok=not found["problems"])


@command(app, "Let another store begin in the place of one that is lost.")
def begin(
    cli: Invocation,
    key: Annotated[str, typer.Argument(metavar="KEY", help="The public key, as the refused start names it.")],
    reason: RequiredReason,
) -> None:
    """Let the store that the configuration names go on, or begin with nothing, although this host knows another one
    that keeps what the key has promised: positions, key ring, budget, orders. What only that one knows is forgotten:
    compare with the chain first, and raise what can be raised (`state restore`, `state reconcile`, `policy floor set`).
    Run it as the key manager's user. With `requireState` it is also what lets a key's first store begin.

    Example: hsmcore state begin 5c0fae23d9bd… --reason "the disk is gone, and the chain is at 4711"
    """
    from hsmcore.recovery.own_store import register
    from hsmcore.state.register import identify

    rules = cli.config.key_manager
    if rules.fleet is not None or not rules.keeps_state:
        raise misconfigured(rules.where, "keeps nothing in a state store of this host")
    with cli.recorded("state begin", reason=reason, public_key=_key(key)) as entry:
        before = register().begin(_key(key), rules.state_path, first=rules.require_state)
        if rules.require_state:
            cli.on_state(lambda store: store.run(identify), absent="made")
        former = entry["previous"] = None if before is None else str(before.store)
    shown = {"publicKey": key, "store": rules.state_name, "formerStore": former, "reason": reason}
    text = f"the store at {rules.state_name} may begin"
    cli.show(shown, text if former is None else f"{text}; {former} no longer counts for the key")


def _reconciled(cli: Invocation, reason: str, *, ring_compared: bool) -> dict[str, Any]:
    from hsmcore.recovery.reconcile import reconcile as reconciled

    with cli.recorded("state reconcile", reason=reason) as entry:
        done = asyncio.run(reconciled(cli.config, ring_compared=ring_compared))
        entry |= {"count": done["added"], "failures": len(done["conflicts"]), "why": done["problem"]}
    return done


def _in_words(done: dict[str, Any]) -> str:
    said = [f"{done['added']} positions were put back" if done["problem"] else "the store was not behind the log"]
    said += [
        f"{domain}: nothing is signed at or below {floor} any more: the log was not read so far back"
        for domain, floor in done["floors"].items()
    ]
    if done["emergencySignatures"]:
        said.append(f"{done['emergencySignatures']} signatures of the emergency level were counted again")
    return "\n".join(said)


def _print_checked(shown: dict[str, Any]) -> None:
    audit, why = shown["audit"], shown["why"]
    checkpoint = audit and f"{audit['size']} records of {audit['origin']}"
    state = "good" if why is None else f"good, and older than the audit log: {why}"
    subject = shown["subject"] or "a store without audit log"
    fields(_CHECKED)(shown | {"subject": subject, "checkpoint": checkpoint, "state": state})


def _target(config: Config, to: str, name: str) -> tuple[BackupPlace, str]:
    """Return the place and the name that a path means."""
    from hsmcore.recovery.state_backup import place_of

    if "://" in to or to.endswith("/") or Path(to).is_dir():
        return place_of(config, to), name
    return place_of(config, str(Path(to).parent)), Path(to).name


def _read(config: Config, path: str) -> bytes | mmap:
    from hsmcore.recovery.state_backup import place_of
    from hsmcore.state.backup import folder, mapped

    where, _, name = path.rpartition("/")
    place = place_of(config, where or ("/" if path.startswith("/") else "."))
    with folder() as temporary:
        found = temporary / "backup"
        if not asyncio.run(place.fetch(name, found)):
            raise BadUsage(f"there is no backup {path!r}")
        return mapped(found)


def _key(text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError:
        raise BadUsage(f"{text!r} is no public key in hexadecimal") from None


async def _rows(store: Store) -> dict[str, Any]:
    """Return the rows as they are: any of them may be forged."""
    from sqlalchemy import select

    from hsmcore.state import StoreError, schema

    status = await store.seal_status()
    if status is None:
        raise StoreError("the seal cannot be checked without the secret", hint="Give this process the stateSecret.")

    async def rows(query: Any) -> list[dict[str, Any]]:
        known = (str, int, type(None))
        found = await store.rows(query)
        return [{name: v if isinstance(v, known) else ascii(v) for name, v in row.items()} for row in found]

    keys, rotations, episodes = schema.KEY_VERSION, schema.ROTATION, schema.EMERGENCY_EPISODE
    open_ = rotations.c.status.in_(("running", "undoing", "overlap"))
    return {
        "sealed": status.sealed,
        "problems": dict(status.problems),
        "counter": status.counter,
        "digest": status.digest,
        "keys": await rows(select(keys).order_by(keys.c.id)),
        "openRotations": await rows(select(rotations).where(open_).order_by(rotations.c.id)),
        "budget": await rows(select(episodes).where(episodes.c.ended_ns.is_(None))),
        "orders": await rows(select(schema.DESIRED_STATE).order_by(schema.DESIRED_STATE.c.name)),
        "domains": await rows(select(schema.KEY_DOMAIN).order_by(schema.KEY_DOMAIN.c.public_key)),
    }


def _print_seal(found: dict[str, Any]) -> None:
    state = "holds" if found["sealed"] and not found["problems"] else "does not hold" if found["sealed"] else "none"
    print_fields({"seal": state, "counter": found["counter"], "digest": found["digest"]})
    for scope, problem in found["problems"].items():
        print(f"NOT GENUINE: {scope}: {plain(problem)}")
    for name, columns in _TABLES.items():
        print(f"\n{name}:")
        table(columns, name)(found)
