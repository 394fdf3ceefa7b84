"""What operators ask of a host, as rows of `desired_state`: the command line writes them, the host's membership follows
them with its next renewal.

`fleet-claim:HOST` and `fleet-release:HOST` are one order each, which the host withdraws in the transaction that begins
to fulfil it. `fleet-drain:HOST` holds until it is withdrawn, over restarts too: the host gives the epoch up and claims
it no more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, Literal, get_args

import orjson
from sqlalchemy import Connection, bindparam, select

from hsmcore.base.payload import MOST_POSITION
from hsmcore.state.desired import withdraw
from hsmcore.state.schema import DESIRED_STATE

Verb = Literal["claim", "release", "drain"]
MOST_DOMAINS: Final = 1024
_REASON: Final = 512


# Made once: each host asks each second, and to make a statement takes longer than to do it.
_NAMED: Final = select(DESIRED_STATE).where(DESIRED_STATE.c.name.in_([bindparam(verb) for verb in get_args(Verb)]))


@dataclass(frozen=True, slots=True)
class Order:
    """One order. `at_least`, `force`: of a claim."""

    verb: Verb
    reason: str
    at_least: Mapping[str, int] = field(default_factory=dict)
    force: bool = False


def order_name(verb: Verb, host: str) -> str:
    """Return the name of the row."""
    return f"fleet-{verb}:{host}"


def order_value(at_least: Mapping[str, int] | None = None, *, force: bool = False) -> str:
    """Return the value of a new order: it differs from each one before."""
    said = {"at": datetime.now(UTC).isoformat(), "atLeast": dict(at_least or {}), "force": force}
    return orjson.dumps(said).decode()


def orders(connection: Connection, host: str) -> dict[Verb, Order]:
    """Return what is asked of a host. An order that none of ours has written is none: it is passed over."""
    names: dict[str, Verb] = {order_name(verb, host): verb for verb in get_args(Verb)}
    found: dict[Verb, Order] = {}
    for row in connection.execute(_NAMED, {verb: name for name, verb in names.items()}):
        verb, reason = names[row.name], str(row.reason)[:_REASON]
        if verb != "claim":
            found[verb] = Order(verb, reason)
        elif (order := _claim(row.value, reason)) is not None:
            found[verb] = order
    return found


def fulfil(connection: Connection, verb: Verb, host: str) -> None:
    """Withdraw an order, in the transaction that begins to fulfil it."""
    withdraw(connection, order_name(verb, host))


def _claim(value: Any, reason: str) -> Order | None:
    try:
        said = orjson.loads(value)
        at_least, force = said["atLeast"], said["force"]
        good = type(force) is bool and type(at_least) is dict and len(at_least) <= MOST_DOMAINS
        if not good or any(type(at) is not int or not 0 <= at <= MOST_POSITION for at in at_least.values()):
            return None
    except (ValueError, TypeError, KeyError):
        return None
    return Order("claim", reason, at_least, force)
