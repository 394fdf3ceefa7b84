"""`hsmcore rotate approve`: approve a rotation; the approvals that it has."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hsmcore.cli.invocation import Invocation
from hsmcore.cli.output import BadUsage
from hsmcore.cli.recorded import recorded
from hsmcore.cli.state.opened import on_state, rotation_rules
from hsmcore.errors import HsmError

if TYPE_CHECKING:
    from hsmcore.config import KeyRotation
    from hsmcore.manager.rotation.store import Rotation
    from hsmcore.state import Store

IdArgument = Annotated[int | None, typer.Argument(metavar="ROTATION", help="Its number (default: the one under way).")]


def approve(
    cli: Invocation,
    rotation: IdArgument = None,
    name: Annotated[str | None, typer.Option("--as", metavar="NAME", help="The approver's name.")] = None,
    code: Annotated[str | None, typer.Option("--code", help="A one-time code.")] = None,
    signature: Annotated[
        Path | None, typer.Option("--signature", metavar="FILE", help="An Ed25519 signature: 64 bytes, or hexadecimal.")
    ] = None,
) -> None:
    """Approve a rotation with a one-time code or a signature; without either, print the text that is to be signed.

    Examples:

      hsmcore rotate approve --as alice --code 123456

      hsmcore rotate approve > statement; sign it; hsmcore rotate approve --as bob --signature statement.sig
    """
    rules = rotation_rules(cli.config)
    if code is None and signature is None:
        print(on_state(cli.config, lambda store: _text(store, rotation), absent="empty"), end="")
        return
    if name is None or (code is not None and signature is not None):
        raise BadUsage("give --as NAME and one of --code and --signature")
    with recorded(cli.config.key_manager, "rotate approve", approver=name) as entry:
        given = on_state(
            cli.config, lambda store: _approve(store, rules, rotation, name, code, signature), absent="empty"
        )
        entry["rotation_id"] = str(given["rotation"])
    cli.show(given)


async def approvals_of(store: Store, rules: KeyRotation, entry: Rotation) -> tuple[list[str], list[str]]:
    """Return the names of approvers whose approval counts, and of those whose stored approval is not genuine."""
    from hsmcore.manager.rotation.approvals import genuine
    from hsmcore.state import Approvals

    return genuine(rules.approvers, await _statement(store, entry), await Approvals(store).of(entry.id))


async def under_way(store: Store, number: int | None) -> Rotation:
    """Return the rotation of that number (None: the only one) while its key does not sign yet. Raises HsmError."""
    from hsmcore.manager.rotation.store import Rotations

    for entry in await Rotations(store).open():
        if entry.run.status == "running" and number in (None, entry.id):
            return entry
    what = "no rotation is under way" if number is None else f"rotation {number} is not under way"
    raise HsmError(f"{what}, or its key signs already", hint="See `hsmcore rotate status`.")


async def _text(store: Store, number: int | None) -> str:
    return (await _statement(store, await under_way(store, number))).decode()


async def _statement(store: Store, entry: Rotation) -> bytes:
    """Return the text that an approver signs."""
    from hsmcore.manager.rotation.approvals import statement
    from hsmcore.state import Keys

    return statement(entry, next(key for key in await Keys(store).all() if key.version == entry.old))


async def _approve(
    store: Store, rules: KeyRotation, number: int | None, name: str, code: str | None, signature: Path | None
) -> dict[str, Any]:
    from hsmcore.manager.rotation.approvals import by_code, by_signature
    from hsmcore.state import Approvals

    approver = next((approver for approver in rules.approvers if approver.name == name), None)
    if approver is None:
        known = ", ".join(approver.name for approver in rules.approvers) or "nobody"
        raise BadUsage(f"{name} is no approver; the configuration has {known}")
    entry = await under_way(store, number)
    text = await _statement(store, entry)
    good = by_signature(approver, text, _signature(signature)) if code is None else by_code(approver, text, code)
    await Approvals(store).add(entry.id, good)
    given, _ = await approvals_of(store, rules, entry)
    return {"rotation": entry.id, "approvedBy": given, "needed": rules.approvals}


def _signature(path: Path | None) -> bytes:
    if path is None:
        return b""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise BadUsage(f"{path} cannot be read: {error.strerror}") from None
    if len(raw) == 64:
        return raw
    try:
        return bytes.fromhex(raw.decode("ascii"))
    except ValueError:
        return b""
