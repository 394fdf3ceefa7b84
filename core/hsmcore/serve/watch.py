"""Key managers in other processes, as their state store and audit log show them: `hsmcore serve --watch`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any

from hsmcore.audit.check.prove import latest
from hsmcore.audit.layout import Layout
from hsmcore.audit.spool import Intention
from hsmcore.config import Config
from hsmcore.errors import AuditUnavailable, BadArgument, HsmError
from hsmcore.manager.key_manager import KeyManager
from hsmcore.serve import trail
from hsmcore.serve.source import Tell, Unanswered
from hsmcore.state import Desired, Keys, Store


class WatchSource:
    """Reads the state that a running key manager with failover writes every few seconds. It holds no counters."""

    manager: KeyManager | None = None
    beside = False

    def __init__(self, config: Config) -> None:
        self.config = config

    async def describe(self) -> dict[str, Any]:
        rules = self.config.key_manager
        try:
            store = await Store.open_to_read(rules.state_place)
            try:
                reports = [report for report in await Desired(store).running() if "members" in report]
                keys = await Keys(store).all()
            finally:
                await store.close()
        except HsmError as error:
            raise Unanswered(str(error)) from None
        newest = max(reports, key=lambda report: int(report["written_ns"]), default=None)
        if newest is None:
            raise Unanswered(f"no key manager with failover has written its state into {rules.state_name} lately")
        members = newest.pop("members")
        held = [key.to_json() for key in keys if key.public_key]
        shown = [{**key, "state": "deactivated" if key["state"] == "deactivated" else "active"} for key in held]
        current = next((key for key in shown if key["publicKey"] == newest["publicKey"]), None)
        if current is None and newest["publicKey"]:
            current = {"id": newest["publicKey"][:16], "label": "", "algorithm": "", "state": "active"}
            current["publicKey"] = newest["publicKey"]
            shown.append(current)
        levels = dict.fromkeys(member["level"] for member in members)
        return {
            "name": rules.name,
            "life": "open",
            "atNs": time.time_ns(),
            "failover": {**newest, "levels": list(levels)},
            "members": members,
            "stats": {},
            "keys": shown,
            "currentKey": None if current is None else current["id"],
            "cache": None,
            "audit": await asyncio.to_thread(self._audit),
            "auditConfigured": rules.audit_log_file is not None,
        }

    def _audit(self) -> dict[str, Any] | None:
        file = self.config.key_manager.audit_log_file
        if file is None:
            return None
        layout = Layout(file)
        records = trail.tail(layout, 1)
        last = records[-1]["seq"] if records else 0
        try:
            sealed = latest(layout).size
        except (BadArgument, OSError):
            sealed = 0
        known = {"lastSeq": last, "durableSeq": last, "sealed": sealed}
        return {**known, "failure": None, "notSealed": None, "onFailure": "closed", "shipping": {}, "witnesses": {}}

    async def record(self, action: str, result: str, fields: Mapping[str, Any]) -> int | None:
        """Put the record into the log's spool, from which the key manager takes it within a second."""
        file = self.config.key_manager.audit_log_file
        if file is not None:
            name = self.config.key_manager.manager
            named = {} if name is None else {"manager": name}
            record = {**fields, **named, "mode": "console", "result": result}
            await asyncio.to_thread(_spool, Layout(file), action, record)
        return None

    def listen(self, tell: Tell) -> Callable[[], None]:
        """Events are in the history, which is read anyway."""
        del tell
        return lambda: None


def _spool(layout: Layout, command: str, fields: Mapping[str, object]) -> None:
    try:
        Intention(layout, command, fields).complete(fields)
    except OSError as error:
        raise AuditUnavailable(f"audit log {layout.log}: {error.strerror}", call="open") from None
