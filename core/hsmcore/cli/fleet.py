"""`hsmcore fleet`: who holds the epoch, and what is asked of the hosts; what to do after a loss.

The commands work on the fleet's database. A host follows what is asked of it with its next renewal, so the commands
need no access to its process, and may run on any host.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar

import typer

from hsmcore.cli import fleet_owner, positions
from hsmcore.cli.invocation import Invocation, command
from hsmcore.cli.opened import fleet_rules as _fleet
from hsmcore.cli.output import FAILED, BadUsage, fields, plain, table
from hsmcore.cli.settings import RequiredReason, YesOption

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from hsmcore.config import Fleet
    from hsmcore.fleet.orders import Verb
    from hsmcore.state import Store

T = TypeVar("T")

app = typer.Typer()

ReasonOption = Annotated[str, "Why; it is kept, and recorded."]
HostArgument = Annotated[
    str | None, typer.Argument(metavar="HOST", help="As in `fleet status`. Default: this configuration's.")
]
AtLeastOption = Annotated[list[str] | None, "DOMAIN=POSITION: Up to where the chain is known; may be repeated."]
WaitOption = Annotated[float, "SECONDS: For the host to follow; 0: do not wait.", {"min": 0, "max": 3600}]
_HEAD: Final = (
    "fleet, unordered payloads unordered, epoch, holder holder:none, renewed just now renewed, reason, "
    "incident incident.state, held held, mark mark, a loss now would wait for waits"
)
_HOSTS: Final = table("HOST name, STATE state, SEEN seenSecondsAgo:ago, PROCESS instance, NOTE note", "hosts")
_DOMAINS: Final = table("DOMAIN domain, FLOOR floor:position, HIGHEST highest:position", "domains")
_LOOK_SECONDS: Final = 0.05
_MOST_SECONDS: Final = 2.0


@command(app, "Show who holds the epoch, and how the hosts stand.")
def status(cli: Invocation) -> None:
    """Show who holds the epoch, whether its lease is renewed, the hosts, the positions of each domain, and whether an
    incident is open: then payloads with a position are refused on every host.

    Example: hsmcore fleet status --json
    """
    rules = _fleet(cli.config)
    cli.show(cli.on_state(lambda store: _observed(store, rules), shows=True), _print)


@command(app, "Have a host take the epoch.")
def claim(
    cli: Invocation,
    host: HostArgument = None,
    reason: ReasonOption = "",
    force: Annotated[bool, "Do not wait for the holder's lease, nor for the host to catch up."] = False,
    wait: WaitOption = 10.0,
) -> None:
    """Have a host claim the epoch: if nobody holds it, or the holder's lease is over. With --force it takes the epoch
    from a holder that lives: for payloads with a position that is safe, others may for a moment be handed out by both.

    A host whose application says that its chain is behind the fleet's highest position does not get the epoch unless it
    is forced.

    Examples:

      hsmcore fleet claim signer-2 --reason "signer-1 is to be updated"

      hsmcore fleet claim signer-2 --force --reason "signer-1 does not answer"
    """
    if force and not reason.strip():
        raise BadUsage("an epoch is claimed by force for a reason: --reason TEXT")
    _order(cli, "seize" if force else "claim", host, reason, wait, forced=force)


@command(app, "Have a host give the epoch up.")
def release(cli: Invocation, host: HostArgument = None, reason: ReasonOption = "", wait: WaitOption = 10.0) -> None:
    """Have a host give the epoch up, so that another one need not wait for the end of its lease. The host claims none
    by itself before another one has, or four ttlMs have passed; `fleet drain` keeps it from that for longer.

    Example: hsmcore fleet release signer-1 --reason "signer-2 takes over"
    """
    _order(cli, "release", host, reason, wait)


@command(app, "Keep the epoch away from a host, or end that.")
def drain(
    cli: Invocation,
    host: HostArgument = None,
    reason: ReasonOption = "",
    off: Annotated[bool, "Let it claim the epoch again."] = False,
    wait: WaitOption = 10.0,
) -> None:
    """Have a host give the epoch up and not claim it again, for maintenance. Holds until --off, also over restarts;
    then the host claims the epoch if nobody holds it.

    Examples:

      hsmcore fleet drain signer-1 --reason "kernel update"

      hsmcore fleet drain signer-1 --off
    """
    _order(cli, "drain", host, reason, wait, off=off)


@command(app, "Close an incident without the hosts that never come back.")
def reconcile(cli: Invocation, reason: RequiredReason, at_least: AtLeastOption = None) -> None:
    """Close the incident that is open, without the hosts that have not answered it. They are retired, and nothing is
    signed any more at or below the highest position that is known of each domain: name a higher one with --at-least if
    the chain shows one, since a lost host may have signed it.

    Wait first for every host that can still be started: it answers by itself, and its positions stay usable. A host
    that was retired belongs to the fleet again once it has compared its audit log.

    Example: hsmcore fleet reconcile --reason "signer-3 burned" --at-least my-rollup/block=1200345
    """
    from hsmcore.recovery.incident import reconcile as reconciled

    rules = _fleet(cli.config)
    known = _positions(at_least)
    with cli.recorded("fleet reconcile", reason=reason) as entry:
        retired, floors = _on_rows(cli, lambda connection, _: reconciled(connection, rules.name, reason, known.items()))
        entry["count"] = len(retired)
    text = [f"retired: {host}" for host in retired]
    text += [f"{domain}: nothing is signed at or below {position} any more" for domain, position in floors.items()]
    cli.show({"retired": retired, "floors": floors, "reason": reason}, "\n".join([*text, "the incident is closed"]))


@command(app, "Have nothing bound, for a planned switchover of the database.")
def hold(cli: Invocation, reason: RequiredReason) -> None:
    """Have nothing bound until `fleet resume`, for a planned switchover of the database: payloads with a position are
    refused, which is retryable; others go on. It waits for what is being bound, and prints a mark. Keep that: a
    database that has it lost nothing, so `fleet resume` with it needs no host that is away. Holding again makes another
    mark.

    It is refused while an incident is open, and in a database that may have lost something already.

    Example: hsmcore fleet hold --reason "PostgreSQL 17.2"
    """
    from hsmcore.recovery.hold import hold as held

    rules = _fleet(cli.config)
    with cli.recorded("fleet hold", reason=reason) as entry:
        mark = entry["mark"] = _on_rows(cli, lambda *on: held(on[0], rules.name, reason, on[1]))
    cli.show({"held": reason, "mark": mark}, f"nothing is bound until: hsmcore fleet resume {mark} --reason TEXT")


@command(app, "End a hold.")
def resume(
    cli: Invocation,
    reason: RequiredReason,
    mark: Annotated[
        str,
        typer.Argument(metavar="MARK", help="As `fleet hold`, or `fleet status` before the switchover, printed it."),
    ] = "",
) -> None:
    """End a hold. With its mark, positions are bound again at once, whichever server answers and whichever hosts are
    away: a database that has the mark has all that was bound before it. The mark of `fleet status` after the last host
    released the epoch does the same after a drain of every host, as long as no host has claimed it since.

    Name a mark only as it was before the switchover, and once: an older state of the database has an older mark.
    Without one, a database that is another one opens an incident, which each host answers.

    Examples:

      hsmcore fleet resume 7-2f9c0d6be1a4583e --reason "PostgreSQL 17.2 is there"

      hsmcore fleet resume --reason "it was not switched over"
    """
    from hsmcore.recovery.hold import resume as resumed

    rules = _fleet(cli.config)
    with cli.recorded("fleet resume", reason=reason, mark=mark) as entry:
        number = entry["incident"] = _on_rows(cli, lambda *on: resumed(on[0], rules.name, mark, on[1]))
    text = f"incident {number} is open: each host is to answer it" if number else "positions are bound again"
    cli.show({"incident": number, "reason": reason}, text)


@command(app, "Wait no more for a host that never comes back.")
def retire(
    cli: Invocation,
    host: Annotated[str, typer.Argument(metavar="HOST", help="As in `fleet status`.")],
    reason: RequiredReason,
    yes: YesOption = False,
) -> None:
    """Wait for a host no more that never comes back, at no incident to come: after scaling down, or a rename. It is
    refused for a host that was seen within two ttlMs, that holds the epoch, or that an incident waits for.

    What is risked: the host's audit log may be the only one that knows what the host has signed. If the database loses
    that later, another payload may be signed at the same position. What the database keeps, and what others have
    signed, is not at risk. A host that was retired and starts belongs to the fleet again; what its log has and the
    database lacks opens an incident.

    Example: hsmcore fleet retire signer-3 --reason "scaled down to two hosts" --yes
    """
    from hsmcore.recovery.hold import retire as retired

    rules = _fleet(cli.config)
    warning = f"after a loss, nothing asks the audit log of {host} what it has signed"
    cli.confirm(warning, f"Retire {host}?", yes=yes, required=True)
    with cli.recorded("fleet retire", hostname=host, reason=reason):
        _on_rows(cli, lambda *on: retired(on[0], rules.name, host, reason, rules.ttl_ms * 1_000_000))
    cli.show({"retired": host, "reason": reason}, f"{host} is retired")


positions.add_to(app)
fleet_owner.add_to(app)


def _on_rows(cli: Invocation, work: Callable[[Connection, tuple[str, str]], T]) -> T:
    """Do `work` in one transaction, with the identity of the database."""
    return cli.on_state(lambda store: store.run(lambda connection: work(connection, store.identity)))


def _positions(given: list[str] | None) -> dict[str, int]:
    found: dict[str, int] = {}
    for one in given or ():
        domain, _, number = one.rpartition("=")
        if not domain or not (number.isascii() and number.isdigit()) or len(number) > 19 or int(number) >= 1 << 63:
            raise BadUsage(f"{one!r} is no DOMAIN=POSITION, such as my-rollup/block=1200000")
        found[domain] = int(number)
    return found


def _order(
    cli: Invocation, order: Verb, host: str | None, reason: str, wait: float, *, off: bool = False, **subject: Any
) -> None:
    rules = _fleet(cli.config)
    host = host or rules.host
    verb = "claim" if order == "seize" else order
    with cli.recorded(f"fleet {verb}", hostname=host, state="none" if off else verb, reason=reason, **subject):
        work = partial(_ordered, rules=rules, verb=order, host=host, reason=None if off else reason, wait=wait)
        done, said = cli.on_state(work)
    shown = {"host": host, "order": verb, "withdrawn": off, "reason": reason, "followed": done, "note": said}
    cli.show(shown, f"{host}: {verb}" + (" no longer asked for" if off else " asked for"))
    if off or done is None:
        return
    cli.note("the host has followed" if done else said or "the host has not followed; it does so as soon as it can")
    if not done:
        raise typer.Exit(FAILED)


async def _ordered(
    store: Store, *, rules: Fleet, verb: Verb, host: str, reason: str | None, wait: float
) -> tuple[bool | None, str]:
    """Write an order, and wait for the host to follow. Returns whether it did (None: nothing to wait for), and what the
    host says. Raises BadUsage for a host that the fleet does not have."""
    from hsmcore.fleet.orders import order

    hosts = {each["name"]: each for each in (await _look(store, rules))["hosts"]}
    if host not in hosts:
        raise BadUsage(f"the fleet has no host {host!r}; it has {', '.join(map(repr, hosts)) or 'none yet'}")
    await store.run(partial(order, host=host, verb=verb, reason=reason))
    if reason is None or not wait:
        return None, ""
    before = hosts[host]["note"]
    loop = asyncio.get_running_loop()
    until = loop.time() + wait
    while True:
        found = await _look(store, rules)
        waits = any((each["host"], each["order"]) == (host, verb) for each in found["orders"])
        holds = found["holderHost"] == host
        if {"release": not waits, "drain": not holds}.get(verb, holds):
            return True, ""
        said = next((each["note"] for each in found["hosts"] if each["name"] == host), "")
        if verb != "drain" and not waits and said != before:
            return False, said
        if loop.time() >= until:
            return False, ""
        await asyncio.sleep(_LOOK_SECONDS)


async def _look(store: Store, rules: Fleet) -> dict[str, Any]:
    from hsmcore.fleet.overview import overview

    found = await store.run(lambda connection: overview(connection, rules, store.identity))
    return {**found, "unordered": rules.unordered}


async def _observed(store: Store, rules: Fleet) -> dict[str, Any]:
    """Return how the fleet stands, and whether the lease was renewed while this looked."""
    first = found = await _look(store, rules)
    loop = asyncio.get_running_loop()
    until = loop.time() + min(rules.ttl_ms / 2e3, _MOST_SECONDS)
    while found["holder"] is not None and loop.time() < until:
        await asyncio.sleep(_LOOK_SECONDS)
        found = await _look(store, rules)
        if found["renewals"] != first["renewals"] or found["epoch"] != first["epoch"]:
            return found | {"renewed": True}
    return found | {"renewed": False if found["holder"] is not None else None}


def _waits(found: dict[str, Any]) -> str:
    """Return the hosts that must be started before a loss is answered."""
    if all(host["retired"] for host in found["hosts"]):
        return "no host: there is none yet"
    return ", ".join(found["lossWaitsFor"]) or "no host: all are there"


def _print(found: dict[str, Any]) -> None:
    incident = found["incident"]
    is_open = f"incident {incident['number']} is open: waiting for {', '.join(incident['waiting'])}"
    head: dict[str, Any] = {"incident": {"state": is_open if incident["open"] else "none is open"}}
    head |= {"held": found["held"] or "no", "mark": found["mark"] or "none", "waits": _waits(found)}
    if found["databaseIsAnother"] and not incident["open"]:
        head["incident"] = {"state": "none is open, and the database is another one than positions were bound on"}
    fields(_HEAD)(found | head)
    print()
    _HOSTS({"hosts": [host | ({"state": "retired"} if host["retired"] else {}) for host in found["hosts"]]})
    if found["domains"]:
        print()
        _DOMAINS(found)
    for order in found["orders"]:
        print(f"asked for: {order['order']} of {plain(order['host'])} ({plain(order['reason'])})")
