"""`hsmcore backup`: list and verify the backups that rotation made, and restore a key."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from hsmcore.cli.invocation import Invocation, command
from hsmcore.cli.keys import note_holder, shown_key
from hsmcore.cli.opened import in_state, with_token
from hsmcore.cli.output import BadUsage, fail, table
from hsmcore.cli.recorded import key_fields
from hsmcore.cli.settings import member_named, misconfigured
from hsmcore.errors import HsmError

if TYPE_CHECKING:
    from hsmcore.base.places import BackupPlace
    from hsmcore.config import Config
    from hsmcore.manager.rotation.backup.inspect import Found
    from hsmcore.state import Store, StoredKey
    from hsmcore.state.backups import BackupRow

app = typer.Typer()
RecoveryOption = Annotated[
    Path | None, "--recovery-key FILE: The X25519 private key for sealed ones: 32 bytes, or hex."
]
_BACKUPS: Final = "NAME name, METHOD method, MADE madeNs, RESTORED FOR A TRY drilledNs:never, STATE problem:good"


@command(app, "List the backups at backupLocation.", "list")
def list_(cli: Invocation) -> None:
    """List the backups at keyRotation.backupLocation, with the faults of each.

    Exit code 1 if one of them is no good, or one that was made is missing.

    Example: hsmcore backup list --json
    """
    _print(cli, *asyncio.run(_look(cli.config, None)))


@command(app, "Verify backups without importing anything.")
def verify(
    cli: Invocation,
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Which one (default: all).")] = None,
    recovery_key: RecoveryOption = None,
) -> None:
    """Check the signature of each backup, and compare it with the key ring and with the record of its writing. With
    the recovery key, open sealed ones as a test, in locked memory. Nothing is imported.

    Exit code 1 if one of them is no good.

    Example: hsmcore backup verify --recovery-key recovery.key
    """
    from hsmcore.manager.rotation.backup.inspect import opens

    found, rows = asyncio.run(_look(cli.config, name))
    for index, file in enumerate(found):
        if recovery_key is None or file.statement is None or file.problem or file.statement.method != "sealed":
            continue
        if not opens(file.statement, _recovery(recovery_key)):
            found[index] = replace(file, problem="the recovery key does not open it")
    _print(cli, found, rows)


@command(app, "Put a key back on the token.")
def restore(
    cli: Invocation,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The backup's name, as `backup list` prints it.")],
    recovery_key: RecoveryOption = None,
    to: Annotated[str | None, "MEMBER: Another member than the first, as in `failover status`."] = None,
) -> None:
    """Restore a key on the token. A signature must prove that it is the one that the backup names; else it is destroyed
    again. A damaged backup, or one of another key than the key ring has, is not imported.

    Examples:

      hsmcore backup restore sequencer-key-1a2b3c4d.0f3a….hsmbackup

      hsmcore backup restore NAME --recovery-key recovery.key --to softhsm:second
    """
    with cli.recorded("backup restore", file=name) as entry:
        record = asyncio.run(_restore(cli.config, name, recovery_key, to))
        entry.update(key_fields(record))
    shown = shown_key(record)
    cli.show({name: shown[name] for name in ("id", "label", "algorithm", "publicKey")})


@command(app, "Make a key pair for keyCeremony.", "recovery-key")
def recovery_key_(cli: Invocation, output: Annotated[Path, "-o FILE: A new file for the private key."]) -> None:
    """Make an X25519 key pair for keyRotation.keyCeremony: print the public key, which the configuration gets, and
    write the private key, in hexadecimal, to a file that only you may read. It opens every key that is sealed to it:
    make it where it is kept, offline. No configuration is read.

    Example: hsmcore backup recovery-key --output recovery.key
    """
    from nacl.public import PrivateKey

    pair = PrivateKey.generate()
    try:
        with os.fdopen(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(bytes(pair).hex() + "\n")
    except FileExistsError:
        raise BadUsage(f"{output} exists, and a key that others are sealed to is not overwritten") from None
    cli.show({"recoveryPublicKey": bytes(pair.public_key).hex(), "privateKeyFile": str(output)})


async def _known(store: Store) -> tuple[list[StoredKey], list[BackupRow]]:
    from hsmcore.state import Backups, Keys

    return await Keys(store).all(), await Backups(store).of()


async def _look(config: Config, name: str | None) -> tuple[list[Found], list[BackupRow]]:
    from hsmcore.manager.rotation.backup.inspect import look

    place = _place(config)
    keys, rows = await in_state(config, _known, absent="empty")
    rows = [row for row in rows if row.place == place.location]
    names = [name] if name is not None else sorted({*await place.names(), *(row.name for row in rows)})
    return [await look(place, each, keys, rows) for each in names], rows


async def _restore(config: Config, name: str, recovery_key: Path | None, to: str | None) -> Any:
    from hsmcore.manager.rotation.backup.envelope import BackupInvalid
    from hsmcore.manager.rotation.backup.inspect import put_back

    [found], _ = await _look(config, name)
    if found.problem is not None or found.statement is None:
        names = None if found.sha256 else "`hsmcore backup list` shows those that are there."
        raise BackupInvalid(f"{name}: {found.problem}; nothing was restored", hint=names)
    statement = found.statement
    settings: Any = None if to is None else member_named(config, to, pkcs11=True).config
    recovery = None if recovery_key is None else _recovery(recovery_key)
    record = await with_token(config, lambda plane: put_back(statement, plane, recovery), settings)
    if to is not None:
        await note_holder(config, record.id, to)
    return record


def _place(config: Config) -> BackupPlace:
    from hsmcore.base.places import place_at

    rules = config.key_manager.key_rotation
    if rules is None or rules.backup_location is None:
        where = f"{config.key_manager.where}.keyRotation.backupLocation"
        raise misconfigured(where, "is missing, so there is no place for backups")
    return place_at(rules.backup_location, rules.backup_endpoint_url)


def _recovery(path: Path) -> bytearray:
    try:
        with path.open("rb", buffering=0) as file:
            raw = bytearray(65)
            size = file.readinto(raw) or 0
    except OSError as error:
        raise BadUsage(f"{path} cannot be read: {error.strerror}") from None
    del raw[size:]
    if len(raw) == 32:
        return raw
    try:
        return bytearray.fromhex(raw.decode("ascii").strip())
    except ValueError:
        raise HsmError(f"{path} is no X25519 private key: 32 bytes, or 64 hexadecimal digits") from None
    finally:
        raw[:] = bytes(len(raw))


def _print(cli: Invocation, found: list[Found], rows: list[BackupRow]) -> None:
    drilled = {row.name: row.drilled_ns for row in rows}
    shown = [
        {
            "name": file.name,
            "ok": file.problem is None,
            "problem": file.problem,
            "sha256": file.sha256 or None,
            "drilledNs": drilled.get(file.name),
            **(file.statement.to_json() if file.statement is not None else {}),
        }
        for file in found
    ]
    cli.show(shown, table(_BACKUPS))
    bad = [row for row in shown if not row["ok"]]
    fail([f"{len(bad)} of {len(shown)} backups are no good"] if bad else [])
