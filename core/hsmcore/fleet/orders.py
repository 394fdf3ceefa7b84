"""What operators ask of a host, as columns of its row: the command line writes them, the host follows with its next
look.

`claim`, `seize` (a claim by force) and `release` are one order each, which the host withdraws before it follows.
`drain` holds until it is withdrawn, over restarts too: the host gives the epoch up and claims it no more.
"""

from __future__ import annotations

from typing import Any, Final, Literal, get_args

from sqlalchemy import Column, Connection, update

from hsmcore.state.schema import FLEET_HOST

Verb = Literal["claim", "seize", "release", "drain"]
COLUMNS: Final[dict[Verb, Column[Any]]] = {verb: FLEET_HOST.c[f"order_{verb}"] for verb in get_args(Verb)}
"""The reason of each order; NULL: it is not asked for."""
MOST_REASON: Final = 512
"""Characters of a reason that are kept."""


def order(connection: Connection, host: str, verb: Verb, reason: str | None) -> None:
    """Ask it of a host, or withdraw it: None."""
    why = None if reason is None else reason[:MOST_REASON]
    connection.execute(update(FLEET_HOST).where(FLEET_HOST.c.name == host).values({COLUMNS[verb]: why}))
