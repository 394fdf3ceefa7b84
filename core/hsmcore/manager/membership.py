"""A key manager in a fleet: how it joins, whom it tells, and what its answers wait for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from hsmcore._native import Lease
from hsmcore.audit import AuditLog
from hsmcore.base.events import Events
from hsmcore.base.log import get_logger
from hsmcore.config import Config, KeyManagerConfig
from hsmcore.failover.path import SigningPath, Way
from hsmcore.manager.leased import LeasedWay
from hsmcore.manager.recording import AuditNotes

if TYPE_CHECKING:
    from hsmcore.fleet.entry import Tell
    from hsmcore.fleet.membership import Membership

EVENT: Final = "fleet"
_LOST: Final = "fleet-lost"


async def join(config: Config) -> Membership | None:
    """Enter the fleet of a configuration; None: it has none. As Membership.open."""
    rules = config.key_manager
    if rules.fleet is None:
        return None
    from hsmcore.fleet.membership import Membership

    return await Membership.open(rules.fleet, config.state_secret, rules.where)


def telling(audit: AuditLog, events: Events) -> Tell:
    """Return what records a fleet's events, logs them, and tells the application."""

    def tell(record: str, **details: Any) -> None:
        log = get_logger()
        if record:
            audit.note(record, result="error" if record == _LOST else "ok", **details)
        (log.warning if record == _LOST or details["state"] == "doubtful" else log.info)(
            EVENT, record=record, **details
        )
        events.emit(EVENT, record=record, **details)

    return tell


def lease_of(fleet: Membership | None) -> Lease | None:
    """Return what answers to callers are handed out under; None: each host hands out what has no position."""
    return None if fleet is None or fleet.unordered == "any" else fleet.lease


def confirmed(path: SigningPath, fleet: Membership | None, rules: KeyManagerConfig, record: AuditNotes) -> Way:
    """Return the path itself; in a fleet, a way whose answers wait for the lease."""
    if fleet is None or fleet.unordered == "any":
        return path
    return LeasedWay(path, fleet, rules.request_timeout_ms / 1e3, record)
