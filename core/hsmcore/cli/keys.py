"""The `keys` commands: the keys of a token. No signing engine is started."""

from __future__ import annotations

import asyncio
import hashlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, cast

import typer
from typer.core import TyperGroup

from hsmcore.base.base58 import base58
from hsmcore.cli.files import deliver, write
from hsmcore.cli.invocation import SIGNER, Invocation, command
from hsmcore.cli.opened import in_state, with_token
from hsmcore.cli.output import BadUsage, fail, table, when
from hsmcore.cli.recorded import key_fields
from hsmcore.cli.settings import member_named, token_settings
from hsmcore.cli.signing import told_keys
from hsmcore.errors import HsmError, KeyAmbiguous, KeyMismatch, KeyNotFound, KeyUnusable
from hsmcore.members.control.curves import Algorithm

if TYPE_CHECKING:
    from hsmcore.config import Config, Pkcs11Settings, Provider
    from hsmcore.members.control import ControlPlane, KeyRecord
    from hsmcore.state import Store, StoredKey
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


app = typer.Typer(
    cls=_ListByDefault, epilog="`hsmcore keys` alone is `hsmcore keys list`, with its options: --json too."
)


KeyIdArgument = Annotated[str, typer.Argument(metavar="ID", help="CKA_ID in hexadecimal, as `keys list` prints it.")]
_KEYS: Final = "ID id, LABEL label, ALGORITHM algorithm:unsupported, SIGNS canSign, PUBLIC KEY publicKey"
_AT_GATEWAY: Final = "ID id, VERSION version, ALGORITHM algorithm, SIGNS signs, PUBLIC KEY publicKey"
_RING: Final = _KEYS.replace(", PUBLIC", ", VERSION version, STATE state, PUBLIC")


@command(app, "List the private keys.", "list", SIGNER)
def list_(cli: Invocation) -> None:
    """List the private keys on the token. With key rotation, list also the versions of the key ring and the time in
    which signatures of each are to be accepted, for verifiers elsewhere. With --gateway, list the versions that it
    tells.

    Example: hsmcore keys list --gateway unix:/run/hsmcore/sign.sock --json
    """
    if cli.gateway is not None:
        cli.show(cli.on_gateway(cli.gateway, told_keys), table(_AT_GATEWAY))
        return
    records = asyncio.run(_listed(cli))
    versions = ring(cli)
    known = {key.public_key: key for key in versions}
    shown = [shown_key(record) | _validity(known.pop(record.public_key or b"", None)) for record in records]
    gone = [shown_key(_gone(key)) | _validity(key) for key in known.values()]
    cli.show(shown + gone, lambda _: table(_RING if versions else _KEYS)(shown))


@command(app, "Make a key pair.")
def generate(
    cli: Invocation,
    label: Annotated[str, "CKA_LABEL of the new key."],
    algorithm: Annotated[Algorithm, "Algorithm of the new key."] = "ed25519",
    extractable: Annotated[bool, "Let the HSM wrap it for a backup; can't be changed later."] = False,
) -> None:
    """Make a key pair on the token; the private half never leaves it in the clear.

    Example: hsmcore keys generate --label sequencer-key-2
    """

    async def make(plane: ControlPlane) -> KeyRecord:
        if any(record.label == label for record in await plane.list_keys()):
            raise KeyAmbiguous(f"a key with the label {label!r} is there already", hint="Choose another label.")
        return await plane.generate_key(algorithm, label, extractable=extractable)

    with cli.recorded("keys generate", label=label, algorithm=algorithm) as entry:
        record = cli.on_token(make)
        entry.update(key_fields(record))
    cli.show(shown_key(record))


@command(app, "Take the right to sign from a key.")
def deactivate(
    cli: Invocation,
    key_id: KeyIdArgument,
    force: Annotated[bool, "Even the key that the configuration signs with."] = False,
) -> None:
    """Take the right to sign away from a key, for every program that uses the token. The overlap of a key that was
    rotated away ends, and no proof of its batches stays good: running key managers and the set of the keys follow.

    Exit code 1 if the token cannot enforce that.

    Example: hsmcore keys deactivate 0f3a…
    """
    from hsmcore.state import Keys

    settings = token_settings(cli.config)
    # Not with --force: a store that is damaged keeps no key from being stopped.
    versions = [] if force else ring(cli)
    states = {key.state: key.public_key for key in versions if key.key_id == key_id.lower()}

    async def work(plane: ControlPlane) -> Any:
        found = [record for record in await plane.list_keys() if record.id == key_id.lower()]
        if found and not versions and not force and is_configured(settings, found[0]):
            raise KeyUnusable(
                f"key {key_id} is the one that the configuration signs with",
                hint="Name another key in the configuration first, or give --force.",
            )
        return await plane.deactivate(key_id.lower())

    with cli.recorded("keys deactivate", key_id=key_id.lower(), forced=force) as entry:
        if "active" in states:
            raise KeyUnusable(f"key {key_id} is the one that signs", hint="Rotate it first, or give --force.")
        if (public_key := states.get("overlap") or states.get("deactivated")) is not None:
            cli.on_state(lambda store: Keys(store).deactivate(public_key))
        done = cli.on_token(work)
        entry |= {"enforced": done.enforced, "reason": done.reason}
    shown = {"keyId": done.key_id, "enforced": done.enforced, "reason": done.reason}
    if done.enforced or cli.as_json:
        cli.show(shown, f"key {done.key_id} signs no more: the token refuses it", ok=done.enforced)
    else:
        next_step = "Deactivate it through the key manager, and destroy it when it is no longer needed."
        fail([f"key {done.key_id} still signs: {done.reason}"], next_step)


@command(app, "Write a wrapped backup of a key.")
def export(
    cli: Invocation, key_id: KeyIdArgument, output: Annotated[Path, "-o PATH: The backup; -: standard output."]
) -> None:
    """Write a backup of a key, wrapped inside the HSM by a key that never leaves it.

    It can be put back only where that wrapping key is: on the same token, or on a clone of it.

    Example: hsmcore keys export 0f3a… --output key.backup
    """
    from hsmcore.members.control.backup import ExportWrapped

    with cli.recorded("keys export", key_id=key_id.lower(), file=str(output)) as entry:
        blob = cli.on_token(lambda plane: plane.do(ExportWrapped(key_id.lower())))
        entry |= {"bytes": len(blob), "backup_sha256": hashlib.sha256(blob).digest()}
    if str(output) == "-":
        sys.stdout.buffer.write(blob + b"\n")
        return
    write(output, blob)
    shown = {"keyId": key_id.lower(), "output": str(output), "bytes": len(blob)}
    cli.show(shown, f"{len(blob)} bytes written to {output}")


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
    with cli.recorded("keys import", file=str(file), backup_sha256=digest) as entry:
        record = cli.on_token(lambda plane: plane.do(ImportWrapped(backup)))
        entry.update(key_fields(record))
    cli.show(shown_key(record))


@command(app, "Show where a key comes from, as its device says.")
def attest(
    cli: Invocation,
    key_id: KeyIdArgument,
    output: Annotated[Path | None, "-o PATH: Write the evidence to a file, too."] = None,
    kept: Annotated[bool, "What was kept when the key came into the key set; asks no device."] = False,
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
        document, public_key = _kept_evidence(cli, key_id.lower())
    else:
        with cli.recorded("keys attest", key_id=key_id.lower()) as entry:
            document = cli.on_token(lambda plane: collect(plane, provider, key_id.lower()))
            entry["evidence_sha256"] = hashlib.sha256(document).digest()
    found = judged(document, provider, key_id.lower(), public_key)
    if output is not None:
        write(output, document)
    cli.show({**found, "sha256": hashlib.sha256(document).hexdigest()}, ok=found["proven"])


@command(app, "Print the signed set of the keys.", "set")
def set_(
    cli: Invocation,
    output: Annotated[Path | None, "-o PATH: Write the note to a file instead."] = None,
    since: Annotated[int | None, "SERIAL: All notes after this serial; -1: all.", {"min": -1}] = None,
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
    rows = cli.on_state(lambda store: KeySetNotes(store).since(policy.domain, least), shows=True)
    notes = [note for _, note in (rows if since is not None else rows[-1:])]
    if not notes and since is None:
        raise KeyNotFound("no set was signed yet", hint="A running key manager that may rotate keys has one signed.")
    data = b"".join(notes)
    written = {"output": str(output), "bytes": len(data)}
    sets = [shown_set(KeySet.remembered(note)) for note in notes] if output is None and cli.as_json else written
    deliver(cli, data, output, sets, f"{len(data)} bytes", 0o600)


@command(app, "Put a key on another member, too.")
def replicate(
    cli: Invocation,
    to: Annotated[str, "MEMBER: The member, as in `failover status`."],
    key_id: Annotated[str | None, typer.Argument(metavar="[ID]", help="CKA_ID (default: the key that signs).")] = None,
) -> None:
    """Copy a key from the first member to another one, wrapped by a key that both hold.

    Example: hsmcore keys replicate --to yubihsm:http://10.0.0.2:12345
    """
    target = member_named(cli.config, to, pkcs11=True)
    identity = key_id.lower() if key_id is not None else _current(cli)
    with cli.recorded("keys replicate", key_id=identity, to_member=to) as entry:
        record, copied = asyncio.run(_replicate(cli.config, target, identity))
        entry.update(key_fields(record))
    shown = shown_key(record) | {"member": to, "copied": copied}
    cli.show(shown, f"{to} holds key {record.id}{'' if copied else ' already'}")


async def _listed(cli: Invocation) -> list[KeyRecord]:
    """Return the keys of the first member's token, or of the next one that answers."""
    from hsmcore.config import Pkcs11Settings

    token_settings(cli.config)
    signing = [member for level, member in cli.config.key_manager.members() if level != "emergency"]
    *others, last = [(each.name, each.config) for each in signing if isinstance(each.config, Pkcs11Settings)]
    for name, settings in others:
        try:
            return await with_token(cli.config, lambda plane: plane.list_keys(), settings)
        except HsmError as error:
            if not error.may_pass:  # a device that is gone takes its slot along
                raise
            cli.note(f"{name} does not answer: the next member's keys are listed")
    return await with_token(cli.config, lambda plane: plane.list_keys(), last[1])


def _kept_evidence(cli: Invocation, key_id: str) -> tuple[bytes, bytes]:
    """Return what is kept about a version of the key ring, and its public key. The document is in no sealed row: it
    counts if the newest set that lists the key, which a key of the ring has signed, has its digest."""
    from hsmcore.state import StoreNotGenuine
    from hsmcore.state.key_sets import KeySetNotes
    from hsmcore.tlog.key_set import KeySet

    versions, policy = ring(cli), cli.config.key_manager.policy
    known = next((key for key in versions if key.key_id == key_id), None)

    async def read(store: Any) -> tuple[bytes | None, list[tuple[int, bytes]]]:
        rows = KeySetNotes(store)
        asked = b"" if known is None else known.public_key
        return await rows.evidence(asked), [] if policy is None else await rows.since(policy.domain, -1)

    document, notes = cli.on_state(read, shows=True)
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
            "lastBatched": key.last_batched,
        }
        for key in found.keys
    ]
    head = {"domain": found.domain, "serial": found.serial, "time": when(found.time * 1_000_000_000)}
    head["goodUntil"] = when(None if found.good_until is None else found.good_until * 1_000_000_000)
    return {**head, "kinds": list(found.kinds), "keys": keys, "note": found.note.decode()}


def is_configured(settings: Pkcs11Settings, record: KeyRecord) -> bool:
    """Return whether the configuration names this key."""
    return _is_named(settings, record.label, record.id)


def _is_named(settings: Pkcs11Settings, label: str, key_id: str) -> bool:
    return settings.key_label in (None, label) and (settings.key_id or key_id).lower() == key_id


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


def ring(cli: Invocation) -> list[StoredKey]:
    """Return the versions of the key ring that have signed; none without rotation."""
    from hsmcore.state import Keys

    rules = cli.config.key_manager
    if rules.active_rotation is None or (rules.fleet is None and not rules.state_path.is_file()):
        return []
    return [key for key in cli.on_state(lambda store: Keys(store).all()) if key.activated_ns is not None]


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


def _current(cli: Invocation) -> str:
    found = [key.key_id for key in ring(cli) if key.state == "active"]
    settings = token_settings(cli.config)
    if not found:
        records = cli.on_token(lambda plane: plane.list_keys())
        found = [record.id for record in records if is_configured(settings, record)]
    if len(found) != 1:
        raise KeyAmbiguous(f"{len(found)} keys may be meant", hint="Give the key's id.")
    return found[0]


async def _replicate(config: Config, target: Provider, key_id: str) -> tuple[KeyRecord, bool]:
    from hsmcore.config import Pkcs11Settings, all_members
    from hsmcore.members.control import ControlPlane
    from hsmcore.members.control.backup import ExportWrapped, ImportWrapped

    [source] = all_members((config.key_manager.own,))[:1]
    if not isinstance(source.config, Pkcs11Settings) or not isinstance(target.config, Pkcs11Settings):
        raise BadUsage("only keys behind PKCS#11 modules are copied")
    # Isolated: two modules may not tolerate each other in one process.
    options: Any = {"log_in": True, "hidden": config.secret_variables, "isolated": True}
    options["refused"] = config.key_manager.refused_logins
    async with (
        ControlPlane.for_settings(source.config, member=source.name, **options) as here,
        ControlPlane.for_settings(target.config, member=target.name, **options) as there,
    ):
        known = {record.id: record for record in await here.list_keys()}
        if key_id not in known:
            raise KeyNotFound(f"{source.name} holds no key {key_id}")
        present = [record for record in await there.list_keys() if record.id == key_id]
        record = present[0] if present else await there.do(ImportWrapped(await here.do(ExportWrapped(key_id))))
        if record.public_key != known[key_id].public_key:
            if not present:
                await there.destroy(key_id)
            raise KeyMismatch(f"{target.name} has another key under the id {key_id}", member=target.name)
    await note_holder(config, key_id, target.name)
    return record, not present


async def note_holder(config: Config, key_id: str, member: str) -> None:
    """Note in the key ring that a member holds a key. The key that the ring began with is found by its configured name:
    a member whose configuration names another key signs with that one."""
    from hsmcore.state import Keys

    if config.key_manager.active_rotation is None:
        return
    settings: Any = member_named(config, member, pkcs11=True).config

    async def work(store: Store) -> None:
        keys = Keys(store)
        for key in await keys.all():
            signs = key.origin != "configured" or _is_named(settings, key.label, key.key_id)
            if key.key_id == key_id and member not in key.members and signs:
                await keys.change(key.version, members=[*key.members, member])

    await in_state(config, work, absent="empty")
