"""The positions of a state store as a file: `export` and `import`, of `hsmcore state` and of `hsmcore fleet` alike."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from hsmcore.cli.files import OutputOption, deliver, read
from hsmcore.cli.invocation import Invocation, command
from hsmcore.cli.output import fail
from hsmcore.cli.settings import misconfigured

if TYPE_CHECKING:
    from hsmcore.config import Config, Fleet

_CONFLICT: Final = "position {position} of {domain} is bound to {bound} here, to {digest} in the file"


def add_to(app: typer.Typer) -> None:
    """Add both commands to a group."""
    command(app, "Write what is bound to positions into a file.")(export)
    command(app, "Take over what is bound to positions from a file.", "import")(import_)


def export(cli: Invocation, output: OutputOption = None) -> None:
    """Write the floors of all domains and what is bound above them into a file, for another database or an archive, of
    a fleet or of a single host. The file has no secrets.

    Example: hsmcore state export --output positions.json
    """
    from hsmcore.recovery.interchange import export as exported
    from hsmcore.recovery.interchange import text_of

    rules = _policed(cli.config)
    found = cli.on_state(lambda store: exported(store, None if rules is None else rules.name))
    rows = sum(len(domain.bound) for domain in found.domains)
    shown = {"output": str(output), "domains": len(found.domains), "positions": rows}
    deliver(cli, text_of(found), output, shown if output is not None else None, f"{rows} positions")


def import_(
    cli: Invocation,
    path: Annotated[Path, typer.Argument(metavar="FILE", help="Of `export`.")],
    source: Annotated[str | None, "--from FLEET: The fleet of the file, if it is another one."] = None,
) -> None:
    """Take over what is bound to positions from a file of `export`. It only raises: floors go up, positions are
    added. One that is bound to another payload here stays as it is, and is listed; then the command ends with 1.

    Example: hsmcore state import positions.json --from sequencer-old
    """
    from hsmcore.recovery.interchange import MOST_BYTES, parse, require_fleet
    from hsmcore.recovery.interchange import import_ as imported

    rules = _policed(cli.config)
    own = None if rules is None else rules.name
    text = read(path, MOST_BYTES + 1)
    found = parse(text)
    require_fleet(found, source or own)
    what = "state import" if rules is None else "fleet import"
    with cli.recorded(what, sha256=hashlib.sha256(text).hexdigest()) as entry:
        done = cli.on_state(lambda store: imported(store, found), absent="made")
        entry |= {"count": done.added, "failures": len(done.conflicts)}
    lines = [f"{done.added} positions were added"]
    lines += [f"{domain}: the floor is {floor} now" for domain, floor in done.floors.items()]
    cli.show(asdict(done), "\n".join(lines))
    fail(_CONFLICT.format_map(one) for one in done.conflicts)


def _policed(config: Config) -> Fleet | None:
    """Return the fleet, if there is one. Raises ConfigurationError where nothing binds positions."""
    rules = config.key_manager
    if rules.fleet is None and (rules.policy is None or not rules.policy.ordered):
        problem = "lists no kind that has a position, and there is no fleet"
        raise misconfigured(f"{rules.where}.policy", problem, "See docs/POLICY.md.")
    return rules.fleet
