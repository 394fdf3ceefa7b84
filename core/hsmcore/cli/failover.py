"""`hsmcore failover`: the state of the levels, their history, and the operator's wishes.

The commands work on the state store. A running key manager writes its state there and reads the wishes each second, so
the commands need no access to its process.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar

import typer

from hsmcore.cli.invocation import Invocation, command
from hsmcore.cli.opened import is_attended, not_genuine, print_not_genuine
from hsmcore.cli.output import BadUsage, fields, table
from hsmcore.cli.settings import RequiredReason, YesOption, member_named, misconfigured

if TYPE_CHECKING:
    from hsmcore.config import KeyManagerConfig, Provider
    from hsmcore.state import Store

T = TypeVar("T")
app = typer.Typer()

ReasonOption = Annotated[str, "Why; it is kept with the wish."]
MemberArgument = Annotated[str, typer.Argument(metavar="MEMBER", help="The member's name, as in `failover status`.")]

_REPORT: Final = fields("process, mode, active level active, forced level forced, public key publicKey, said ago:ago")
_MEMBERS: Final = table("MEMBER member, LEVEL level, CONDITION condition, IN FLIGHT inFlight, REASON reason", "members")
_HISTORY: Final = table("TIME time_ns:ms, EVENT kind, FROM level_from, TO level_to, MEMBER member, REASON reason")


@command(app, "Show how the levels and their members stand.")
def status(cli: Invocation) -> None:
    """Show how the levels and their members stand, as the running key managers last said.

    Example: hsmcore failover status --json
    """
    running, wishes, problems = on_levels(cli, _read_status, shows=True)

    def print_status(_: Any) -> None:
        print_not_genuine(problems)
        if not running:
            who = "a key manager that has not said how it stands" if is_attended(cli.config) else "no key manager"
            print(f"{who} is running on this state store")
        for report in running:
            age = max(time.time() - float(report["written_ns"]) / 1e9, 0.0)
            _REPORT(report | {"active": report["active"] or "none: nobody can sign", "ago": age})
            _MEMBERS(report)
        for name, wish in wishes.items():
            if not (name.startswith("readmit:") and running):  # those that run have tried the member by now
                print(f"asked for: {name} = {wish['value']} ({wish['reason']})")

    cli.show({"running": running, "wishes": wishes, "storeNotGenuine": problems}, print_status)


@command(app, "Show what happened.")
def history(
    cli: Invocation,
    limit: Annotated[int, "At most so many, the latest.", {"min": 1, "max": 100_000}] = 50,
    kind: Annotated[list[str] | None, "Only this kind; may be repeated."] = None,
    member: Annotated[str | None, "Only of this member."] = None,
) -> None:
    """Show transitions of levels and members, and events of the emergency level, oldest first.

    Example: hsmcore failover history --kind failover --kind failback --limit 20
    """
    from hsmcore.failover.history import History

    events = on_levels(
        cli, lambda store: History(store).query(kinds=kind or (), member=member, limit=limit), shows=True
    )
    cli.show(events, _HISTORY)


@command(app, "Take a member out of service, or put it back.")
def drain(
    cli: Invocation,
    member: MemberArgument,
    reason: ReasonOption = "",
    undo: Annotated[bool, "Put it back into service."] = False,
    yes: YesOption = False,
) -> None:
    """Send a member no further requests, for maintenance. It completes those in flight. Holds until --undo, also over
    restarts. If it is the last one in service, a terminal is asked first; without one, --yes must be given.

    Example: hsmcore failover drain softhsm:sequencer --reason "firmware update"
    """
    member_named(cli.config, member)
    if not undo and not _others_in_service(cli, member):
        levels = [level for level, _ in cli.config.key_manager.members()]
        after = "requests go to the emergency key" if "emergency" in levels else "no request is signed"
        cli.confirm(f"{member} is the last member in service: without it {after}", "Drain it?", yes=yes, required=True)
    _wish(cli, f"drain:{member}", None if undo else "yes", reason, member=member)


@command(app, "Try a member again that is out.")
def readmit(cli: Invocation, member: MemberArgument, reason: RequiredReason) -> None:
    """Have the running key managers try a member again that is out, also one that is fenced for another key, a refused
    login or an unusable module. It logs in again, must hold a key that may sign, and serves after three good probes.
    Correct the cause first: a login that is refused again counts towards the token's lock.

    A PIN that the member's token has refused is remembered and not sent again, by no command and after no restart. This
    command forgets it, also of a configuration without failover: for a token that takes the PIN by now.

    Example: hsmcore failover readmit softhsm:sequencer --reason "the PIN in the vault is corrected"
    """
    rules, provider = cli.config.key_manager, member_named(cli.config, member)
    begun = rules.fleet is not None or rules.state_path.is_file()  # a first start that was refused leaves no store
    if rules.active_failover is not None and begun:
        _forget_refusals(rules, provider)
        _wish(cli, f"readmit:{member}", datetime.now(UTC).isoformat(), reason, member=member)
        return
    with cli.recorded("failover readmit", state="forgotten", reason=reason, member=member):
        forgotten = _forget_refusals(rules, provider)
    cli.show({"member": member, "forgotten": forgotten}, f"{member}: refused PINs that are forgotten: {forgotten}")


def _forget_refusals(rules: KeyManagerConfig, provider: Provider) -> int:
    from hsmcore.config import Pkcs11Settings
    from hsmcore.members.control.records import TokenAccess
    from hsmcore.members.control.refused import RefusedLogins

    if not isinstance(provider.config, Pkcs11Settings):
        return 0
    access = TokenAccess.of(provider.config, provider.name, str(rules.refused_logins))
    return RefusedLogins(access, lambda: None).forget()


@command(app, "Prefer a level, or end that.")
def force(
    cli: Invocation,
    level: Annotated[str, typer.Argument(metavar="LEVEL", help="primary, secondary or emergency; or none.")],
    reason: ReasonOption = "",
    yes: YesOption = False,
) -> None:
    """Prefer a level to all others; if it fails, the others follow in their order. `none` ends it.

    Example: hsmcore failover force secondary --reason "game day"
    """
    known = list(dict.fromkeys(name for name, _ in cli.config.key_manager.members()))
    if level not in (*known, "none"):
        raise BadUsage(f"there is no level {level!r}; the configuration has {', '.join(known)}")
    value = None if level == "none" else level
    if level == "emergency":
        warning = "the emergency level signs with another key, whose signatures are limited"
        cli.confirm(warning, "Force the emergency level?", yes=yes)
    _wish(cli, "force", value, reason, level=value)


def _others_in_service(cli: Invocation, member: str) -> list[str]:
    """The members beside one that are not drained, the emergency level's aside."""
    from hsmcore.state import Desired

    wishes = on_levels(cli, lambda store: Desired(store).all(), shows=True)
    names = [provider.name for level, provider in cli.config.key_manager.members() if level != "emergency"]
    return [name for name in names if name != member and f"drain:{name}" not in wishes]


def _wish(cli: Invocation, name: str, value: str | None, reason: str, **subject: str | None) -> None:
    shown, text = {"name": name, "value": value, "reason": reason}, f"{name}: {value or 'no longer asked for'}"
    record = {"state": value or "none", "reason": reason, **subject}
    wish(cli, f"failover {name.partition(':')[0]}", (name, value, reason), shown, text, **record)


def wish(
    cli: Invocation, command: str, order: tuple[str, str | None, str], shown: Any, text: str, **record: object
) -> None:
    """Write a wish: its name, its value (None withdraws it) and the reason. Record and print it, and when it takes
    effect."""

    async def write(store: Store) -> list[dict[str, Any]]:
        from hsmcore.state import Desired

        await Desired(store).set(*order)
        return await Desired(store).running()

    with cli.recorded(command, **record):
        running = on_levels(cli, write)
    cli.show(shown, text)
    if not cli.as_json and (any("members" in report for report in running) or is_attended(cli.config)):
        cli.note("the running key manager follows within a second")
    else:
        cli.note("no key manager is running; it holds from the next start on")


def on_levels(cli: Invocation, work: Callable[[Store], Awaitable[T]], *, shows: bool = False) -> T:
    """As `Invocation.on_state`. Raises ConfigurationError without an enabled failover block."""
    rules = cli.config.key_manager
    if rules.active_failover is None:
        problem = "is missing or not enabled, so there are no levels"
        raise misconfigured(f"{rules.where}.failover", problem, "Add a failover block to the configuration.")
    return cli.on_state(work, shows=shows)


async def _read_status(store: Store) -> tuple[list[dict[str, Any]], dict[str, Any], dict[str, str]]:
    from hsmcore.state import Desired

    desired = Desired(store)
    wishes = {name: {"value": wish.value, "reason": wish.reason} for name, wish in (await desired.all()).items()}
    reports = [report for report in await desired.running() if "members" in report]
    return reports, wishes, await not_genuine(store)
