"""`hsmcore emergency`: the emergency level's budget, and whether it may be used."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hsmcore.cli.failover import on_store, wait_for_runner
from hsmcore.cli.output import BadUsage, note, print_fields, print_json
from hsmcore.cli.recorded import recorded
from hsmcore.cli.settings import ConfigOption, JsonOption, StateOption, load_config
from hsmcore.errors import ConfigFault, ConfigurationError

if TYPE_CHECKING:
    from hsmcore.config import Config
    from hsmcore.state import Store

app = typer.Typer(
    name="emergency", help="Look at the emergency budget, reset it, forbid its use.", no_args_is_help=True
)
ReasonOption = Annotated[str, typer.Option("--reason", help="Why; it is kept in the history and in the audit log.")]


@app.command(short_help="Show the emergency budget.")
def status(config: ConfigOption = None, state: StateOption = None, as_json: JsonOption = False) -> None:
    """Show what is left of the emergency budget and until when it can be used.

    Example: hsmcore emergency status --json
    """
    loaded = load_config(config, state)
    enabled = _configured(loaded)

    async def read(store: Store) -> dict[str, Any]:
        from hsmcore.state import Desired

        found = await _budget(loaded, store).status()
        wish = (await Desired(store).all()).get("emergency")
        return {
            "enabled": enabled and (wish is None or wish.value != "disabled"),
            "episode": found.episode,
            "firstSignature": _when(found.first_ns),
            "expires": _when(found.expires_ns),
            "maxTransactions": found.max_transactions,
            "maxTimeSeconds": found.max_seconds,
            "reserved": found.reserved,
            "left": found.left,
            "usable": found.usable,
        }

    shown = on_store(loaded, read)
    if as_json:
        print_json(shown)
    else:
        print_fields(shown)


@app.command(short_help="Allow the emergency level again after `disable`.")
def enable(
    reason: ReasonOption = "", config: ConfigOption = None, state: StateOption = None, as_json: JsonOption = False
) -> None:
    """Allow the emergency level again. What the configuration does not enable stays disabled.

    Example: hsmcore emergency enable --reason "inquiry is over"
    """
    loaded = load_config(config, state)
    if not _configured(loaded):
        raise ConfigurationError.of(
            [ConfigFault(f"{loaded.key_manager.where}.failover.emergencyModeEnabled", "is not true")],
            hint="Only the configuration can say that the chain accepts an emergency key.",
        )
    _permit(loaded, "enabled", reason, as_json=as_json)


@app.command(short_help="Forbid the emergency level.")
def disable(
    reason: ReasonOption = "", config: ConfigOption = None, state: StateOption = None, as_json: JsonOption = False
) -> None:
    """Forbid the emergency level until `enable`; if it signs now, it ends and its key is destroyed.

    Example: hsmcore emergency disable --reason "key not yet on chain"
    """
    _permit(load_config(config, state), "disabled", reason, as_json=as_json)


@app.command(short_help="Begin a new emergency budget.")
def reset(
    reason: Annotated[str, typer.Option("--reason", help="Why; required, and kept in history and audit log.")] = "",
    config: ConfigOption = None,
    state: StateOption = None,
    as_json: JsonOption = False,
) -> None:
    """End the present emergency budget; the next use of the emergency level begins a whole one.

    The history and the audit log have it at once.

    Example: hsmcore emergency reset --reason "incident 42 is closed"
    """
    if not reason.strip():
        raise BadUsage("a reset needs a reason: --reason TEXT")
    loaded = load_config(config, state)

    async def work(store: Store) -> dict[str, Any]:
        ended = await _budget(loaded, store).reset(reason)
        return {"endedEpisode": ended.episode, "reserved": ended.reserved, "reason": reason}

    with recorded(loaded.key_manager, "emergency reset", reason=reason) as entry:
        done = on_store(loaded, work)
        entry["signatures"] = done["reserved"]
    if as_json:
        print_json(done)
    else:
        print(f"reset: {done['reserved']} signatures had been reserved")


def _permit(config: Config, value: str, reason: str, *, as_json: bool) -> None:
    async def write(store: Store) -> list[dict[str, Any]]:
        from hsmcore.state import Desired

        desired = Desired(store)
        await desired.set("emergency", value, reason)
        return await desired.running()

    with recorded(config.key_manager, f"emergency {value.removesuffix('d')}", reason=reason):
        running = on_store(config, write)
    if as_json:
        print_json({"emergency": value, "reason": reason})
    else:
        print(f"emergency level: {value}")
        note(f"  {wait_for_runner(running)}")


def _budget(config: Config, store: Store) -> Any:
    from hsmcore.config import Failover
    from hsmcore.failover.budget import Emergency, Limits

    limits = (config.key_manager.failover or Failover()).emergency_mode_restrictions
    return Emergency(store, Limits(limits.max_transactions, limits.max_time_seconds))


def _configured(config: Config) -> bool:
    failover = config.key_manager.failover
    return failover is not None and failover.enabled and failover.emergency_mode_enabled


def _when(time_ns: int | None) -> str | None:
    return None if time_ns is None else datetime.fromtimestamp(time_ns / 1e9, UTC).isoformat(timespec="seconds")
