"""`hsmcore failover`: how the levels stand, what happened, and what a person asks of them.

The commands work on the state store. A running key manager writes its state there and reads each second what is asked
of it, so they need no access to the running process.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from hsmcore.cli.output import BadUsage, note, print_fields, print_json, print_table
from hsmcore.cli.recorded import recorded
from hsmcore.cli.settings import ConfigOption, JsonOption, StateOption, load_config
from hsmcore.errors import ConfigFault, ConfigurationError

if TYPE_CHECKING:
    from hsmcore.config import Config
    from hsmcore.state import Store

T = TypeVar("T")

app = typer.Typer(name="failover", help="Look at the levels, drain members, force a level.", no_args_is_help=True)

ReasonOption = Annotated[str, typer.Option("--reason", help="Why; it is kept with the wish.")]


@app.command(short_help="Show how the levels and their members stand.")
def status(config: ConfigOption = None, state: StateOption = None, as_json: JsonOption = False) -> None:
    """Show how the levels and their members stand, as the running key managers last said.

    Example: hsmcore failover status --json
    """
    loaded = load_config(config, state)
    running, wishes = on_store(loaded, _read_status)
    if as_json:
        print_json({"running": running, "wishes": wishes})
        return
    if not running:
        print("no key manager is running on this state store")
    for report in running:
        print_fields(
            {
                "process": report["process"],
                "mode": report["mode"],
                "active level": report["active"] or "none: nobody can sign",
                "forced level": report["forced"],
                "public key": report["publicKey"],
                "said": f"{_age(report):.0f} s ago",
            }
        )
        rows = [
            (m["member"], m["level"], m["condition"], str(m["inFlight"]), m["reason"] or "-") for m in report["members"]
        ]
        print_table(("MEMBER", "LEVEL", "CONDITION", "IN FLIGHT", "REASON"), rows)
    for name, wish in wishes.items():
        print(f"asked for: {name} = {wish['value']} ({wish['reason']})")


@app.command(short_help="Show what happened.")
def history(
    config: ConfigOption = None,
    state: StateOption = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=100_000, help="At most so many, the latest.")] = 50,
    kind: Annotated[list[str] | None, typer.Option("--kind", help="Only this kind; may be repeated.")] = None,
    member: Annotated[str | None, typer.Option("--member", help="Only of this member.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Show transitions of levels and members, and what the emergency level did, oldest first.

    Example: hsmcore failover history --kind failover --kind failback --limit 20
    """

    async def read(store: Store) -> list[dict[str, Any]]:
        from hsmcore.failover.history import History

        return await History(store).query(kinds=kind or (), member=member, limit=limit)

    events = on_store(load_config(config, state), read)
    if as_json:
        print_json(events)
        return
    rows = [
        (_when(e["time_ns"]), e["kind"], e["level_from"] or "-", e["level_to"] or "-", e["member"] or "-", e["reason"])
        for e in events
    ]
    print_table(("TIME", "EVENT", "FROM", "TO", "MEMBER", "REASON"), rows)


@app.command(short_help="Take a member out of service, or put it back.")
def drain(
    member: Annotated[str, typer.Argument(metavar="MEMBER", help="The member's name, as in `failover status`.")],
    reason: ReasonOption = "",
    undo: Annotated[bool, typer.Option("--undo", help="Put it back into service.")] = False,
    config: ConfigOption = None,
    state: StateOption = None,
    as_json: JsonOption = False,
) -> None:
    """Send a member no further requests, for maintenance. What it is doing it ends. Holds until --undo, also over
    restarts.

    Example: hsmcore failover drain softhsm:sequencer --reason "firmware update"
    """
    loaded = load_config(config, state)
    _require_member(loaded, member)
    _wish(loaded, f"drain:{member}", None if undo else "yes", reason, as_json=as_json)


@app.command(short_help="Try a member again that is out.")
def readmit(
    member: Annotated[str, typer.Argument(metavar="MEMBER", help="The member's name, as in `failover status`.")],
    reason: ReasonOption = "",
    config: ConfigOption = None,
    state: StateOption = None,
    as_json: JsonOption = False,
) -> None:
    """Have the running key managers try a member again that is out, also one that is fenced: for another key, a refused
    login, or a module past use. It logs in anew, must hold a key that may sign, and serves after three good probes.
    Mend the cause first: a login that is refused again counts towards the token's lock.

    Example: hsmcore failover readmit softhsm:sequencer --reason "the PIN in the vault is corrected"
    """
    if not reason.strip():
        raise BadUsage("a member is readmitted for a reason: --reason TEXT")
    loaded = load_config(config, state)
    _require_member(loaded, member)
    _wish(loaded, f"readmit:{member}", datetime.now(UTC).isoformat(), reason, as_json=as_json)


@app.command(short_help="Prefer a level, or end that.")
def force(
    level: Annotated[str, typer.Argument(metavar="LEVEL", help="primary, secondary or emergency; or none.")],
    reason: ReasonOption = "",
    config: ConfigOption = None,
    state: StateOption = None,
    as_json: JsonOption = False,
) -> None:
    """Prefer a level to all others; if it fails, the others follow in their order. `none` ends it.

    Example: hsmcore failover force secondary --reason "game day"
    """
    loaded = load_config(config, state)
    known = [name for name, _ in configured_levels(loaded)]
    if level not in (*known, "none"):
        raise BadUsage(f"there is no level {level!r}; the configuration has {', '.join(known)}")
    _wish(loaded, "force", None if level == "none" else level, reason, as_json=as_json)


def on_store(config: Config, work: Callable[[Store], Awaitable[T]]) -> T:
    """Do something with the state store that a configuration names. Raises ConfigurationError without failover."""
    from hsmcore.state import Store

    rules = config.key_manager
    if rules.failover is None or not rules.failover.enabled:
        raise ConfigurationError.of(
            [ConfigFault(f"{rules.where}.failover", "is missing or not enabled, so there are no levels")],
            hint="Add a failover block to the configuration.",
        )

    async def run() -> T:
        store = await Store.open(rules.state_path)
        try:
            return await work(store)
        finally:
            await store.close()

    return asyncio.run(run())


def configured_levels(config: Config) -> list[tuple[str, list[str]]]:
    """Levels' names, each with its members'."""
    from hsmcore.failover.plan import endpoints_and_levels

    levels = endpoints_and_levels(config)
    return [
        (level.name, [endpoint.name for endpoint in levels.members if endpoint.level_name == level.name])
        for level in levels.levels
    ]


def member_names(config: Config) -> list[str]:
    """The members' names, in the order of the levels."""
    return [member for _, members in configured_levels(config) for member in members]


def _require_member(config: Config, member: str) -> None:
    known = member_names(config)
    if member not in known:
        raise BadUsage(f"there is no member {member!r}; the configuration has {', '.join(known)}")


def wait_for_runner(running: list[dict[str, Any]]) -> str:
    """What to say of when a wish is followed."""
    if any("members" in report for report in running):
        return "the running key manager follows within a second"
    return "no key manager is running; it holds from the next start on"


def _wish(config: Config, name: str, value: str | None, reason: str, *, as_json: bool) -> None:
    async def write(store: Store) -> list[dict[str, Any]]:
        from hsmcore.state import Desired

        desired = Desired(store)
        await desired.set(name, value, reason)
        return await desired.running()

    kind, _, member = name.partition(":")
    wanted = {"member": member} if member else {"level": value}
    with recorded(config.key_manager, f"failover {kind}", state=value or "none", reason=reason, **wanted):
        running = on_store(config, write)
    if as_json:
        print_json({"name": name, "value": value, "reason": reason})
    else:
        print(f"{name}: {value or 'no longer asked for'}")
        note(f"  {wait_for_runner(running)}")


async def _read_status(store: Store) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    from hsmcore.state import Desired

    desired = Desired(store)
    wishes = {name: {"value": wish.value, "reason": wish.reason} for name, wish in (await desired.all()).items()}
    return [report for report in await desired.running() if "members" in report], wishes


def _age(report: dict[str, Any]) -> float:
    return max(time.time() - float(report["written_ns"]) / 1e9, 0.0)


def _when(time_ns: int) -> str:
    return datetime.fromtimestamp(time_ns / 1e9, UTC).isoformat(timespec="milliseconds")
