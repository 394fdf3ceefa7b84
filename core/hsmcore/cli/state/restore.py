"""`hsmcore state backup`, `verify`, `restore` and `reconcile`: a state store's way back."""

from __future__ import annotations

import asyncio
from mmap import mmap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from hsmcore.cli.invocation import Invocation, command
from hsmcore.cli.output import FAILED, BadUsage, note, print_fields, print_json, problem, when
from hsmcore.cli.recorded import recorded
from hsmcore.cli.settings import RequiredReason

if TYPE_CHECKING:
    from hsmcore.base.places import BackupPlace
    from hsmcore.config import Config
    from hsmcore.state.backup import BackupStatement

PathArgument = Annotated[str, typer.Argument(metavar="PATH", help="A backup: a file, or s3://bucket/prefix/name.")]
FromOption = Annotated[
    str | None,
    typer.Option("--from", metavar="NAME", help="Whose the backup is, if not this store's: fleet, or log's origin."),
]
RingOption = Annotated[
    bool, typer.Option("--ring-compared", help="The key ring changed since, and is as it should be all the same.")
]


_NEXT: Final = 'hsmcore state reconcile --reason "…"'
_NEXT_FLEET: Final = "start each host; see `hsmcore fleet status`"
_NEXT_BLIND: Final = "there is no audit log to say what it lacks: compare it with the token and the chain, then start"


def add_to(app: typer.Typer) -> None:
    """Add the commands to a group."""
    command(app, "Back up the state store, while it is in use.")(backup)
    command(app, "Check a backup without restoring it.")(verify)
    command(app, "Put the store of a backup in the place of the present one.")(restore)
    command(app, "Raise an older store to what the audit log says.")(reconcile)


def backup(
    cli: Invocation,
    to: Annotated[str, typer.Option("--to", metavar="PATH", help="A file, a folder, or s3://bucket/prefix.")],
) -> None:
    """Back up the state store, a file or a fleet's database, as it is at one moment. Key managers go on meanwhile. The
    backup has digests, with stateSecret also a MAC, and names the audit log's last checkpoint. It has no secrets.

    Examples:

      hsmcore state backup --to /backups/

      hsmcore state backup --to s3://backups/sequencer
    """
    from hsmcore.recovery.restore import back_up
    from hsmcore.recovery.state_backup import name_of

    async def made() -> tuple[BackupStatement, BackupPlace, str, int]:
        async with back_up(cli.config) as (statement, head, body):
            location, name = _target(cli.config, to, name_of(cli.config, statement))
            await location.create(name, head, body)
            return statement, location, name, len(head) + len(body)

    with recorded(cli.config.key_manager, "state backup") as entry:
        statement, location, name, size = asyncio.run(made())
        entry |= {"sha256": statement.sha256, "bytes": size, "file": name}
    shown = {"name": name, "place": location.location, **statement.as_data()}
    cli.show(shown, f"{name} written to {location.location}: {size} bytes")


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
    if cli.as_json:
        print_json(shown)
    else:
        _print(found.statement, found.problem or None, found.missing, found.records)


def restore(
    cli: Invocation,
    path: PathArgument,
    reason: RequiredReason,
    replace: Annotated[
        bool, typer.Option("--replace", help="There is a store: keep it beside the restored one, under another name.")
    ] = False,
    source: FromOption = None,
    also: Annotated[bool, typer.Option("--reconcile", help="Also reconcile it with the audit log.")] = False,
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
    with recorded(cli.config.key_manager, "state restore", file=Path(path).name, reason=reason) as entry:
        statement, aside = asyncio.run(restored(cli.config, data, replace=replace, source=source))
        entry |= {"sha256": statement.sha256}
    text = f"the store of {when(statement.made_ns)} is in its place"
    text += f"; the former one is kept as {aside}" if aside else ""
    if also and not fleet:
        done = _reconciled(cli.config, reason, ring_compared=ring_compared)
    cli.show({"restored": statement.as_data(), "formerKeptAs": aside or None, "reconciled": done}, text)
    _conclude(done, as_json=cli.as_json)
    if done is None and not cli.as_json:
        note(f"  next: {_NEXT if compared else _NEXT_FLEET if fleet else _NEXT_BLIND}")


def reconcile(cli: Invocation, reason: RequiredReason, ring_compared: RingOption = False) -> None:
    """Raise a store that is older than the audit log to what the log says: positions, emergency budget, bindings of
    messages to keys. Nothing is lowered, so a repetition does no harm. Where log and store have two payloads for one
    position, neither is signed again, and the command ends with 1.

    The key ring cannot be put back from the log. If it changed since, compare `hsmcore rotate status` with the records
    that are named and with the chain, and say so with --ring-compared.

    Example: hsmcore state reconcile --reason "state.db was put back by hand"
    """
    done = _reconciled(cli.config, reason, ring_compared=ring_compared)
    if cli.as_json:
        print_json(done)
    _conclude(done, as_json=cli.as_json)


def _reconciled(config: Config, reason: str, *, ring_compared: bool) -> dict[str, Any]:
    from hsmcore.recovery.reconcile import reconcile as reconciled

    with recorded(config.key_manager, "state reconcile", reason=reason) as entry:
        done = asyncio.run(reconciled(config, ring_compared=ring_compared))
        entry |= {"count": done["added"], "failures": len(done["conflicts"]), "why": done["problem"]}
    return done


def _conclude(done: dict[str, Any] | None, *, as_json: bool) -> None:
    if done is None:
        return
    if not as_json:
        print(f"{done['added']} positions were put back" if done["problem"] else "the store was not behind the log")
        for domain, floor in done["floors"].items():
            print(f"{domain}: nothing is signed at or below {floor} any more: the log was not read so far back")
        if done["emergencySignatures"]:
            print(f"{done['emergencySignatures']} signatures of the emergency level were counted again")
    for one in done["conflicts"]:
        where = f"position {one['position']} of {one['domain']}"
        problem(f"{where} was bound to {one['bound']} here, and to {one['digest']} in the audit log")
    if done["conflicts"]:
        raise typer.Exit(FAILED)


def _print(statement: BackupStatement, why: str | None, missing: int | None, records: int | None) -> None:
    audit = statement.audit
    print_fields(
        {
            "made": when(statement.made_ns),
            "of": statement.subject or "a store without audit log",
            "sealed": statement.sealed,
            "audit checkpoint": None if audit is None else f"{audit['size']} records of {audit['origin']}",
            "records behind": records,
            "positions behind": missing,
            "state": "good" if why is None else f"good, and older than the audit log: {why}",
        }
    )


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
