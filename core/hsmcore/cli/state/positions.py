"""The positions of a state store as a file: `export` and `import`, of `hsmcore state` and of `hsmcore fleet` alike."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hsmcore.cli.audit.shared import deliver
from hsmcore.cli.invocation import Invocation, command
from hsmcore.cli.output import FAILED, BadUsage, problem
from hsmcore.cli.recorded import recorded
from hsmcore.cli.state.opened import on_state
from hsmcore.errors import ConfigFault, ConfigurationError

if TYPE_CHECKING:
    from hsmcore.config import Config, Fleet


def add_to(app: typer.Typer) -> None:
    """Add both commands to a group."""
    command(app, "Write what is bound to positions into a file.")(export)
    command(app, "Take over what is bound to positions from a file.", "import")(import_)


def export(
    cli: Invocation,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="PATH", help="Default: standard output.")
    ] = None,
) -> None:
    """Write the floors of all domains and what is bound above them into a file, for another database or an archive, of
    a fleet or of a single host. The file has no secrets.

    Example: hsmcore state export --output positions.json
    """
    from hsmcore.recovery.interchange import export as exported
    from hsmcore.recovery.interchange import text_of

    rules = _policed(cli.config)
    found = on_state(cli.config, lambda store: exported(store, None if rules is None else rules.name))
    rows = sum(len(domain.bound) for domain in found.domains)
    where = None if output is None else str(output)
    shown = {"output": where, "domains": len(found.domains), "positions": rows}
    deliver(text_of(found), output, shown if cli.as_json and output is not None else None, f"{rows} positions")


def import_(
    cli: Invocation,
    path: Annotated[Path, typer.Argument(metavar="FILE", help="Of `export`.")],
    source: Annotated[
        str | None, typer.Option("--from", metavar="FLEET", help="The fleet of the file, if it is another one.")
    ] = None,
) -> None:
    """Take over what is bound to positions from a file of `export`. It only raises: floors go up, positions are
    added. One that is bound to another payload here stays as it is, and is listed; then the command ends with 1.

    Example: hsmcore state import positions.json --from sequencer-old
    """
    from hsmcore.recovery.interchange import MOST_BYTES, as_data, parse, require_fleet
    from hsmcore.recovery.interchange import import_ as imported

    rules = _policed(cli.config)
    own = None if rules is None else rules.name
    try:
        with path.open("rb") as file:
            text = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise BadUsage(f"{str(path)!r} cannot be read: {error.strerror}") from None
    found = parse(text)
    require_fleet(found, source or own)
    what = "state import" if rules is None else "fleet import"
    with recorded(cli.config.key_manager, what, sha256=hashlib.sha256(text).hexdigest()) as entry:
        done = on_state(cli.config, lambda store: imported(store, found), absent="made")
        entry |= {"count": done.added, "failures": len(done.conflicts)}
    lines = [f"{done.added} positions were added"]
    lines += [f"{domain}: the floor is {floor} now" for domain, floor in done.floors.items()]
    cli.show(as_data(done), "\n".join(lines))
    for conflict in done.conflicts:
        where = f"position {conflict['position']} of {conflict['domain']}"
        problem(f"{where} is bound to {conflict['bound']} here, to {conflict['digest']} in the file")
    if done.conflicts:
        raise typer.Exit(FAILED)


def _policed(config: Config) -> Fleet | None:
    """Return the fleet, if there is one. Raises ConfigurationError where nothing binds positions."""
    rules = config.key_manager
    if rules.fleet is None and (rules.policy is None or not rules.policy.ordered):
        where = f"{rules.where}.policy"
        raise ConfigurationError.of(
            [ConfigFault(where, "lists no kind that has a position, and there is no fleet")],
            hint="See docs/POLICY.md.",
        )
    return rules.fleet
