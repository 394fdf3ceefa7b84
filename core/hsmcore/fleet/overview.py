"""How a fleet stands, as data for JSON: what `hsmcore fleet status` shows and `hsmcore doctor` judges."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, select

from hsmcore.base.payload import MOST_POSITION
from hsmcore.config.fleet import Fleet
from hsmcore.fleet.orders import COLUMNS
from hsmcore.recovery.hold import is_away, mark_of
from hsmcore.recovery.incident import count, word
from hsmcore.state import positions
from hsmcore.state.mark import Mark
from hsmcore.state.schema import FLEET, FLEET_FLOOR, FLEET_HOST
from hsmcore.state.store import now_ns


def overview(connection: Connection, rules: Fleet, server: tuple[str, str]) -> dict[str, Any]:
    """Return who holds the epoch, the hosts, the positions and the incident. Changes nothing. `server`: system and
    timeline of the database. Raises StoreError for rows that are not of hsmcore's making."""
    with positions.of_our_making("the fleet"):
        return _overview(connection, rules.name, rules.ttl_ms * 1_000_000, server)


def _overview(connection: Connection, name: str, ttl_ns: int, server: tuple[str, str]) -> dict[str, Any]:
    row = connection.execute(select(FLEET).where(FLEET.c.name == name)).mappings().first()
    now = now_ns(connection)
    number = 0 if row is None else count(row["incident"])
    found = connection.execute(select(FLEET_HOST).order_by(FLEET_HOST.c.name)).mappings().all()
    hosts = [_host(each, now, ttl_ns) for each in found]
    waiting = [host["name"] for host in hosts if not host["retired"] and host["incident"] < number]
    settled_on = ("", "") if row is None else (word(row["system"]), word(row["timeline"]))
    moved = settled_on not in (("", ""), server)
    held = row is not None and row["released"] == 0 and row["holder"] != ""
    return {
        "fleet": name,
        "epoch": 0 if row is None else count(row["epoch"]),
        "holder": word(row["holder"]) if row is not None and held else None,
        "holderHost": word(row["host"]) if row is not None and held else None,
        "claimedNs": count(row["claimed_ns"]) if row is not None and held else None,
        "renewals": 0 if row is None else count(row["renewals"]),
        "reason": "" if row is None else word(row["reason"]),
        "held": None if row is None or row["held"] is None else word(row["held"]),
        # After a switchover, what stands here may be of an older state: it is to be known from before.
        "mark": "" if row is None or moved or waiting else mark_of(row),
        "database": {} if row is None else {"system": word(row["system"]), "timeline": word(row["timeline"])},
        "databaseIsAnother": moved,
        "incident": {"number": number, "open": bool(waiting), "waiting": waiting},
        "hosts": hosts,
        "lossWaitsFor": [host["name"] for host in hosts if host["away"] and not host["retired"]],
        "domains": _domains(connection),
        "orders": [order for host in found for order in _orders(host)],
    }


def _host(row: Any, now: int, ttl_ns: int) -> dict[str, Any]:
    seen = count(row["seen_ns"])
    return {
        "name": word(row["name"]),
        "instance": word(row["instance"]),
        "state": word(row["state"]),
        "seenNs": seen or None,
        "seenSecondsAgo": max(now - seen, 0) / 1e9 if seen else None,
        "incident": count(row["incident"]),
        "retired": bool(count(row["retired"])),
        "away": is_away(row, now, ttl_ns),
        "note": word(row["note"]),
    }


def _orders(row: Any) -> list[dict[str, Any]]:
    asked = ((verb, row[column.name]) for verb, column in COLUMNS.items())
    return [{"host": word(row["name"]), "order": verb, "reason": word(why)} for verb, why in asked if why is not None]


def _domains(connection: Connection) -> list[dict[str, Any]]:
    noted: dict[str, dict[str, int]] = {}
    for row in connection.execute(select(FLEET_FLOOR)):
        noted.setdefault(word(row.domain), {})[word(row.host)] = count(row.position, MOST_POSITION)
    marks = positions.marks(connection)
    found = []
    for domain in sorted({*marks, *noted}):
        mark = marks.get(domain, Mark())
        here = {"floor": mark.floor, "highest": mark.high, "reason": mark.reason}
        found.append({"domain": word(domain), **here, "noted": noted.get(domain, {})})
    return found
