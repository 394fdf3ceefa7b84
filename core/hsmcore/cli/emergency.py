"""`hsmcore emergency`: the emergency level's budget, and whether it may be used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from hsmcore.cli.failover import on_levels, wish
from hsmcore.cli.invocation import Invocation, command
from hsmcore.cli.opened import not_genuine
from hsmcore.cli.output import when
from hsmcore.cli.settings import RequiredReason, misconfigured

if TYPE_CHECKING:
    from hsmcore.config import Config
    from hsmcore.state import Store

app = typer.Typer()
ReasonOption = Annotated[str, "Why; it is kept in the history and in the audit log."]
_ONLY: Final = "Only the configuration can say that the chain accepts an emergency key."


@command(app, "Show the emergency budget.")
def status(cli: Invocation) -> None:
    """Show what is left of the emergency budget and until when it can be used.

    Example: hsmcore emergency status --json
    """
    config = cli.config
    enabled = _configured(config)

    async def read(store: Store) -> dict[str, Any]:
        from hsmcore.state import Desired

        found, problems = await _budget(config, store).status(), await not_genuine(store)
        asked = (await Desired(store).all()).get("emergency")
        return {
            "enabled": enabled and (asked is None or asked.value != "disabled"),
            "episode": found.episode,
            "firstSignature": when(found.first_ns),
            "expires": when(found.expires_ns),
            "maxTransactions": found.max_transactions,
            "maxTimeSeconds": found.max_seconds,
            "reserved": found.reserved,
            "left": found.left,
            "usable": found.usable and "budget" not in problems,
            "notGenuine": [f"{scope}: {problem}" for scope, problem in problems.items()],
        }

    cli.show(on_levels(cli, read, shows=True))


@command(app, "Allow the emergency level again after `disable`.")
def enable(cli: Invocation, reason: ReasonOption = "") -> None:
    """Allow the emergency level again. What the configuration does not enable stays disabled.

    Example: hsmcore emergency enable --reason "inquiry is over"
    """
    if not _configured(cli.config):
        where = f"{cli.config.key_manager.where}.failover.emergencyModeEnabled"
        raise misconfigured(where, "is not true", _ONLY)
    _permit(cli, "enabled", reason)


@command(app, "Forbid the emergency level.")
def disable(cli: Invocation, reason: ReasonOption = "") -> None:
    """Forbid the emergency level until `enable`; if it signs now, it ends and its key is destroyed.

    Example: hsmcore emergency disable --reason "key not yet on chain"
    """
    _permit(cli, "disabled", reason)


@command(app, "Begin a new emergency budget.")
def reset(cli: Invocation, reason: RequiredReason) -> None:
    """End the present emergency budget; the next use of the emergency level begins a whole one.

    The history and the audit log have it at once.

    Example: hsmcore emergency reset --reason "incident 42 is closed"
    """
    with cli.recorded("emergency reset", reason=reason) as entry:
        ended = on_levels(cli, lambda store: _budget(cli.config, store).reset(reason))
        entry["signatures"] = ended.reserved
    shown = {"endedEpisode": ended.episode, "reserved": ended.reserved, "reason": reason}
    cli.show(shown, f"reset: {ended.reserved} signatures had been reserved")


def _permit(cli: Invocation, value: str, reason: str) -> None:
    shown, order = {"emergency": value, "reason": reason}, ("emergency", value, reason)
    wish(cli, f"emergency {value.removesuffix('d')}", order, shown, f"emergency level: {value}", reason=reason)


def _budget(config: Config, store: Store) -> Any:
    from hsmcore.failover.budget import Emergency

    return Emergency.of(config, store)


def _configured(config: Config) -> bool:
    failover = config.key_manager.active_failover
    return failover is not None and failover.emergency_mode_enabled
