"""`hsmcore policy`: what a message is and whether the key may sign it; the floors of positions."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hsmcore.cli.invocation import Invocation, command
from hsmcore.cli.output import FAILED, BadUsage, print_fields, print_json, when
from hsmcore.cli.recorded import recorded
from hsmcore.cli.settings import RequiredReason
from hsmcore.cli.state.opened import on_state
from hsmcore.errors import ConfigFault, ConfigurationError

if TYPE_CHECKING:
    from hsmcore.config import Config, Policy
    from hsmcore.state import Store

app = typer.Typer(name="policy", help="Explain what may be signed; look at floors, raise them.", no_args_is_help=True)
floor = typer.Typer(name="floor", help="The positions at and below which nothing is signed.", no_args_is_help=True)
app.add_typer(floor)

KindOption = Annotated[str | None, typer.Option("--kind", help="What the caller takes the message for.")]


@command(app, "Say what a message is, and whether it would be signed.")
def explain(
    cli: Invocation,
    message: Annotated[str, typer.Argument(metavar="FILE|HEX", help="The message: a file, or hexadecimal.")],
    kind: KindOption = None,
    position: Annotated[
        int | None, typer.Option("--position", min=0, help="Of a bare digest of an ordered kind.")
    ] = None,
) -> None:
    """Say what a message is, whether the configured key would sign it, and why not. Nothing is signed or bound. Ends
    with 1 if it would be refused. Limits of callers and of amounts a minute are not looked at.

    Examples:

      hsmcore policy explain block.bin --kind block

      hsmcore policy explain ff68736d636f7265…
    """
    from hsmcore.manager.policy.explain import explained

    policy = _policy(cli.config)
    data = _bytes_of(message)
    if policy.ordered:
        found = on_state(cli.config, lambda store: explained(policy, data, kind, position, store), shows=True)
    else:
        found = asyncio.run(explained(policy, data, kind, position, None))
    if cli.as_json:
        print_json(found)
    else:
        shown = {name: value for name, value in found.items() if value is not None}
        if "boundNs" in shown:
            shown["bound at"] = when(shown.pop("boundNs"), "milliseconds")
        print_fields(shown)
    if not found["signed"]:
        raise typer.Exit(FAILED)


@command(floor, "Show the floor and the highest position of each domain.")
def show(cli: Invocation) -> None:
    """Show the floor and the highest position of each domain, and why each floor was set.

    Example: hsmcore policy floor show --json
    """
    from hsmcore.manager.policy.watermark import marks_of

    _policy(cli.config)
    found: list[dict[str, Any]] = [
        {"domain": name, "floor": mark.floor, "highest": mark.high, "reason": mark.reason}
        for name, mark in sorted(on_state(cli.config, marks_of, shows=True).items())
    ]
    rows = [(row["domain"], _shown(row["floor"]), _shown(row["highest"]), str(row["reason"]) or "-") for row in found]
    cli.show_table(found, ("DOMAIN", "FLOOR", "HIGHEST", "REASON"), rows)


@command(floor, "Raise a floor; it never goes down.")
def set(  # noqa: A001  # the command's name
    cli: Invocation,
    kind: Annotated[str, typer.Argument(metavar="KIND", help="An ordered kind of the policy, such as block.")],
    position: Annotated[int, typer.Argument(min=0, max=2**63 - 1, help="The last position that is given up.")],
    reason: RequiredReason,
) -> None:
    """Have nothing signed at or below a position from now on, by no key of the domain, and forget what was bound there.
    A floor never goes down. Running key managers obey it at once.

    Example: hsmcore policy floor set block 1200000 --reason "snapshot of November is final"
    """
    from hsmcore.manager.policy.watermark import Watermark

    policy = _policy(cli.config)
    if kind not in policy.ordered:
        raise BadUsage(
            f"{kind!r} is no ordered kind of the policy; it has {', '.join(sorted(policy.ordered)) or 'none'}"
        )
    domain = policy.chain(kind)

    async def work(store: Store) -> int:
        return await Watermark(store, "").raise_floor(domain, position, reason)

    with recorded(cli.config.key_manager, "policy floor set", domain=domain, position=position, reason=reason):
        gone = on_state(cli.config, work, absent="made")
    shown = {"domain": domain, "floor": position, "reason": reason, "forgotten": gone}
    cli.show(shown, f"{domain}: nothing is signed at or below {position} any more; {gone} positions are forgotten")


def _policy(config: Config) -> Policy:
    rules = config.key_manager
    if rules.policy is None:
        raise ConfigurationError.of(
            [ConfigFault(f"{rules.where}.policy", "is missing, so the key signs any bytes")],
            hint='Add "policy": {"kinds": ["tx-v0"]} to the configuration; see docs/POLICY.md.',
        )
    return rules.policy


def _bytes_of(given: str) -> bytes:
    if re.fullmatch(r"(0x)?([0-9a-fA-F]{2})+", given) and not Path(given).exists():
        return bytes.fromhex(given.removeprefix("0x"))
    try:
        return Path(given).read_bytes()
    except OSError as error:
        raise BadUsage(f"{given!r} is neither hexadecimal nor a file that can be read: {error.strerror}") from None


def _shown(position: int) -> str:
    return "-" if position < 0 else str(position)
