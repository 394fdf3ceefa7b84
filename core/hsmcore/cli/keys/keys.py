"""The `keys` commands: the keys of a token. No signing engine is started."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from typer.core import TyperGroup

from hsmcore.cli.encoding import base58
from hsmcore.cli.invocation import Invocation, command
from hsmcore.cli.output import FAILED, BadUsage, print_json, print_table, problem, when
from hsmcore.cli.recorded import key_fields, recorded
from hsmcore.cli.settings import token_settings
from hsmcore.cli.state.opened import on_state, on_token
from hsmcore.errors import KeyAmbiguous, KeyNotFound, KeyUnusable, SystemFailure
from hsmcore.members.control.curves import Algorithm

if TYPE_CHECKING:
    from hsmcore.config import Config, Pkcs11Settings
    from hsmcore.members.control import ControlPlane, KeyRecord
    from hsmcore.state import StoredKey
    from hsmcore.tlog.key_set import KeySet


class _ListByDefault(TyperGroup):
    """`hsmcore keys` alone lists the keys."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        # Not while a shell asks what may follow: that is the name of a command, too.
        if not ctx.resilient_parsing and (
            not args or (args[0].startswith("-") and args[0] not in ctx.help_option_names)
        ):
            args = ["list", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(name="keys", cls=_ListByDefault, help="List, make, deactivate and back up the token's keys.")

KeyIdArgument = Annotated[str, typer.Argument(metavar="ID", help="CKA_ID in hexadecimal, as `keys list` prints it.")]


@command(app, "List the private keys.", "list")
def list_(cli: Invocation) -> None:
    """List the private keys on the token. With key rotation, list also the versions of the key ring and the time in
    which signatures of each are to be accepted, for verifiers elsewhere.

    Example: hsmcore keys list --json
    """
    records = on_token(cli.config, lambda plane: plane.list_keys())
    known = {key.public_key: key for key in ring(cli.config)}
    if cli.as_json:
        shown = [shown_key(record) | _validity(known.pop(record.public_key or b"", None)) for record in records]
        print_json(shown + [shown_key(_gone(key)) | _validity(key) for key in known.values()])
        return
    header, rows = ["ID", "LABEL", "ALGORITHM", "SIGNS"], []
    for record in records:
        row = [record.id, record.label, record.algorithm or "unsupported", "yes" if record.can_sign else "no"]
        if known:
            key = known.get(record.public_key or b"")
            row.append("-" if key is None else f"{key.version} ({key.state})")
        rows.append([*row, record.public_key.hex() if record.public_key else "-"])
    print_table([*header, *(["VERSION"] if known else []), "PUBLIC KEY"], rows)


@command(app, "Make a key pair.")
def generate(
    cli: Invocation,
    label: Annotated[str, typer.Option("--label", help="CKA_LABEL of the new key.")],
    algorithm: Annotated[Algorithm, typer.Option(help="Algorithm of the new key.")] = "ed25519",
    extractable: Annotated[
        bool, typer.Option("--extractable", help="Let the HSM wrap it for a backup; can't be changed later.")
    ] = False,
) -> None:
    """Make a key pair on the token; the private half never leaves it in the clear.

    Example: hsmcore keys generate --label sequencer-key-2
    """

    async def make(plane: ControlPlane) -> KeyRecord:
        if any(record.label == label for record in await plane.list_keys()):
            raise KeyAmbiguous(f"a key with the label {label!r} is there already", hint="Choose another label.")
        return await plane.generate_key(algorithm, label, extractable=extractable)

    with recorded(cli.config.key_manager, "keys generate", label=label, algorithm=algorithm) as entry:
        record = on_token(cli.config, make)
        entry.update(key_fields(record))
    cli.show(shown_key(record))


@command(app, "Take the right to sign from a key.")
def deactivate(
    cli: Invocation,
    key_id: KeyIdArgument,
    force: Annotated[bool, typer.Option("--force", help="Even the key that the configuration signs with.")] = False,
) -> None:
    """Take the right to sign away from a key, for every program that uses the token.

    Exit code 1 if the token cannot enforce that.

    Example: hsmcore keys deactivate 0f3a…
    """
    settings = token_settings(cli.config)

    async def work(plane: ControlPlane) -> Any:
        found = [record for record in await plane.list_keys() if record.id == key_id.lower()]
        if found and not force and is_configured(settings, found[0]):
            raise KeyUnusable(
                f"key {key_id} is the one that the configuration signs with",
                hint="Name another key in the configuration first, or give --force.",
            )
        return await plane.deactivate(key_id.lower())

    with recorded(cli.config.key_manager, "keys deactivate", key_id=key_id.lower(), forced=force) as entry:
        done = on_token(cli.config, work)
        entry |= {"enforced": done.enforced, "reason": done.reason}
    if done.enforced or cli.as_json:
        cli.show(
            {"keyId": done.key_id, "enforced": done.enforced, "reason": done.reason},
            f"key {done.key_id} signs no more: the token refuses it",
        )
    else:
        problem(
            f"key {done.key_id} still signs: {done.reason}",
            "Deactivate it through the key manager, and destroy it when it is no longer needed.",
        )
    if not done.enforced:
        raise typer.Exit(FAILED)


@command(app, "Write a wrapped backup of a key.")
def export(
    cli: Invocation,
    key_id: KeyIdArgument,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="PATH", help="The backup; -: standard output.")],
) -> None:
    """Write a backup of a key, wrapped inside the HSM by a key that never leaves it.

    It can be put back only where that wrapping key is: on the same token, or on a clone of it.

    Example: hsmcore keys export 0f3a… --output key.backup
    """
    from hsmcore.members.control.backup import ExportWrapped

    with recorded(cli.config.key_manager, "keys export", key_id=key_id.lower(), file=str(output)) as entry:
        blob = on_token(cli.config, lambda plane: plane.do(ExportWrapped(key_id.lower())))
        entry |= {"bytes": len(blob), "backup_sha256": hashlib.sha256(blob).digest()}
    if str(output) == "-":
        sys.stdout.buffer.write(blob + b"\n")
        return
    write(output, blob)
    cli.show(
        {"keyId": key_id.lower(), "output": str(output), "bytes": len(blob)}, f"{len(blob)} bytes written to {output}"
    )


@command(app, "Put a key back from its backup.", "import")
def import_(
    cli: Invocation,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A backup that `keys export` wrote.", exists=True)],
) -> None:
    """Put a key back from its backup.

    Example: hsmcore keys import key.backup
    """
    from hsmcore.members.control.backup import ImportWrapped

    backup = file.read_bytes()
    digest = hashlib.sha256(backup).digest()
    with recorded(cli.config.key_manager, "keys import", file=str(file), backup_sha256=digest) as entry:
        record = on_token(cli.config, lambda plane: plane.do(ImportWrapped(backup)))
        entry.update(key_fields(record))
    cli.show(shown_key(record))


@command(app, "Show where a key comes from, as its device says.")
def attest(
    cli: Invocation,
    key_id: KeyIdArgument,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="PATH", help="Write the evidence to a file, too.")
    ] = None,
    kept: Annotated[
        bool, typer.Option("--kept", help="What was kept when the key came into the key set; asks no device.")
    ] = False,
) -> None:
    """Ask the device for evidence about a key: whether it was made there and could ever leave it. A YubiHSM 2 gives a
    certificate, which is checked against the roots of `attestationRoots`; what other tokens say is their own word.

    Exit code 1 if there is no certificate, or it does not show that the device generated this key.

    Example: hsmcore keys attest 0f3a… --output evidence.json
    """
    from hsmcore.manager.evidence import collect, judged

    provider = cli.config.key_manager.own
    token_settings(cli.config)
    public_key: bytes | None = None
    if kept:
        document, public_key = _kept_evidence(cli.config, key_id.lower())
    else:
        with recorded(cli.config.key_manager, "keys attest", key_id=key_id.lower()) as entry:
            document = on_token(cli.config, lambda plane: collect(plane, provider, key_id.lower()))
            entry["evidence_sha256"] = hashlib.sha256(document).digest()
    found = judged(document, provider, key_id.lower(), public_key)
    if output is not None:
        write(output, document)
    cli.show({**found, "sha256": hashlib.sha256(document).hexdigest()})
    if not found["proven"]:
        raise typer.Exit(FAILED)


@command(app, "Print the signed set of the keys.", "set")
def set_(
    cli: Invocation,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="PATH", help="Write the note to a file instead.")
    ] = None,
    since: Annotated[
        int | None, typer.Option("--since", metavar="SERIAL", min=-1, help="All notes after this serial; -1: all.")
    ] = None,
) -> None:
    """Print the newest signed set of the keys, as the key manager keeps it: a note that says which keys are good, from
    when to when. Verifiers elsewhere check it: docs/KEYSET.md. No token is needed.

    Examples:

      hsmcore keys set --output keys.note

      hsmcore keys set --since 3 --json
    """
    from hsmcore.config.policy import KEY_SET
    from hsmcore.state.key_sets import KeySetNotes
    from hsmcore.tlog.key_set import KeySet

    policy = cli.config.key_manager.policy
    if policy is None or KEY_SET not in policy.kinds:
        raise BadUsage(f'the policy does not list "{KEY_SET}": no set is signed')
    least = -1 if since is None else since
    rows = on_state(cli.config, lambda store: KeySetNotes(store).since(policy.domain, least), shows=True)
    notes = [note for _, note in (rows if since is not None else rows[-1:])]
    if not notes and since is None:
        raise KeyNotFound("no set was signed yet", hint="A running key manager that may rotate keys has one signed.")
    data = b"".join(notes)
    if output is not None:
        write(output, data)
        cli.show({"output": str(output), "bytes": len(data)}, f"{len(data)} bytes written to {output}")
    elif cli.as_json:
        print_json([shown_set(KeySet.remembered(note)) for note in notes])
    else:
        sys.stdout.buffer.write(data)


def _kept_evidence(config: Config, key_id: str) -> tuple[bytes, bytes]:
    """Return what is kept about a version of the key ring, and its public key. The document is in no sealed row: it
    counts if the newest set that lists the key, which a key of the ring has signed, has its digest."""
    from hsmcore.state import StoreNotGenuine
    from hsmcore.state.key_sets import KeySetNotes
    from hsmcore.tlog.key_set import KeySet

    versions, policy = ring(config), config.key_manager.policy
    known = next((key for key in versions if key.key_id == key_id), None)

    async def read(store: Any) -> tuple[bytes | None, list[tuple[int, bytes]]]:
        rows = KeySetNotes(store)
        asked = b"" if known is None else known.public_key
        return await rows.evidence(asked), [] if policy is None else await rows.since(policy.domain, -1)

    document, notes = on_state(config, read, shows=True)
    if known is None or document is None:
        raise KeyNotFound(f"nothing is kept about key {key_id}", hint="Ask the device: leave --kept out.")
    signers = {key.public_key for key in versions}
    try:
        sets = (KeySet.remembered(note) for _, note in reversed(notes))
        found = next((one for one in sets if one.entry(known.public_key) and one.current.public_key in signers), None)
    except ValueError as error:
        raise StoreNotGenuine(f"a set of keys in the state store is none: {error}") from error
    entry = None if found is None else found.entry(known.public_key)
    if entry is None or entry.evidence != hashlib.sha256(document).digest():
        what = "no set of keys lists it" if entry is None else "it is not what the set of keys has the digest of"
        raise StoreNotGenuine(f"what is kept about key {key_id} is not to be believed: {what}")
    return document, known.public_key


def shown_set(found: KeySet) -> dict[str, Any]:
    """Return a set of keys for output."""
    keys = [
        {
            "version": key.version,
            "algorithm": key.algorithm,
            "publicKey": key.public_key.hex(),
            "state": key.state,
            "notBefore": when(key.not_before * 1_000_000_000),
            "notAfter": when(None if key.not_after is None else key.not_after * 1_000_000_000),
            "successor": key.successor,
            "evidenceSha256": None if key.evidence is None else key.evidence.hex(),
        }
        for key in found.keys
    ]
    head = {"domain": found.domain, "serial": found.serial, "time": when(found.time * 1_000_000_000)}
    return {**head, "kinds": list(found.kinds), "keys": keys, "note": found.note.decode()}


def write(output: Path, data: bytes) -> None:
    """Write a file that its owner alone can read. Raises SystemFailure."""
    try:
        output.touch(mode=0o600)
        output.write_bytes(data)
    except OSError as error:
        raise SystemFailure(f"{output} cannot be written: {error.strerror}", hint="Name another file.") from error


def is_configured(settings: Pkcs11Settings, record: KeyRecord) -> bool:
    """Return whether the configuration names this key."""
    return settings.key_label in (None, record.label) and (settings.key_id or record.id).lower() == record.id


def shown_key(record: KeyRecord) -> dict[str, Any]:
    """Return a key of a token for output."""
    shown: dict[str, Any] = {
        "id": record.id,
        "label": record.label,
        "algorithm": record.algorithm,
        "publicKey": record.public_key.hex() if record.public_key else None,
        "canSign": record.can_sign,
        "sensitive": record.sensitive,
        "extractable": record.extractable,
    }
    if record.algorithm == "ed25519" and record.public_key:
        shown["address"] = base58(record.public_key)
    return shown


def ring(config: Config) -> list[StoredKey]:
    """Return the versions of the key ring that have signed; none without rotation."""
    from hsmcore.state import Keys

    rules = config.key_manager
    if rules.active_rotation is None or (rules.fleet is None and not rules.state_path.is_file()):
        return []
    return [key for key in on_state(config, lambda store: Keys(store).all()) if key.activated_ns is not None]


def _validity(key: StoredKey | None) -> dict[str, Any]:
    if key is None:
        return {}
    return {
        "version": key.version,
        "state": key.state,
        "validFrom": when(key.activated_ns),
        "validUntil": when(key.valid_until_ns),
    }


def _gone(key: StoredKey) -> KeyRecord:
    """Return a version that is no longer on this token, as its token would list it."""
    from hsmcore.members.control import KeyRecord

    return KeyRecord(key.key_id, key.label, cast("Algorithm", key.algorithm), key.public_key, False, True, False)
