"""Whether a key manager is ready to sign, as named checks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Literal

from hsmcore.manager.rotation.schedule import ON_TIME

Outcome = Literal["ok", "warn", "fail"]
NAMES: Final = ("answers", "open", "members", "login", "key", "audit", "publish", "rotation", "store", "emergency")
_OVERDUE_NS: Final = int(ON_TIME.total_seconds() * 1e9)
_SERVING: Final = frozenset({"ready", "ramping"})


@dataclass(frozen=True, slots=True)
class HealthCheck:
    """`warn`: the key manager signs, but an operator should look."""

    name: str
    outcome: Outcome
    detail: str

    def to_json(self) -> dict[str, str]:
        return {"name": self.name, "outcome": self.outcome, "detail": self.detail}


def checks(
    state: Mapping[str, Any], ledger: Mapping[str, Any], problem: str, store: str, now_ns: int
) -> list[HealthCheck]:
    """Run all checks. `state`: see KeyManager.describe; `ledger`: see Ledger.view; `problem`: why the key manager did
    not answer; `store`: why the state store could not be read."""
    if problem:
        return [HealthCheck("answers", "fail", problem)]
    found = [HealthCheck("answers", "ok", "the key manager's event loop answers")]
    life = state["life"]
    found.append(HealthCheck("open", "ok" if life == "open" else "fail", f"the key manager is {life}"))
    if life != "open":
        return found
    found += [_members(state), _login(state), _key(state), _audit(state.get("audit"), state)]
    found.append(_publish(state.get("publish") or {}))
    found += [_rotation(ledger.get("rotation"), now_ns), _store(state, store)]
    found.append(_emergency(state["failover"], ledger.get("budget")))
    return [check for check in found if check.detail]


def ready(found: list[HealthCheck], exclude: frozenset[str] = frozenset()) -> bool:
    """Return whether no check fails but the excluded ones."""
    return all(check.outcome != "fail" or check.name in exclude for check in found)


def _members(state: Mapping[str, Any]) -> HealthCheck:
    members, failover = state["members"], state["failover"]
    serving = [member for member in members if member["condition"] in _SERVING]
    idle = [member for member in members if member not in serving and member["level"] != "emergency"]
    out = [_said_of(member["member"], member["reason"] or member["condition"]) for member in idle]
    lasting = [member for member in members if member["level"] != "emergency" or member in serving]
    said = f"{len(serving)} of {len(lasting)} can sign"
    if not serving or (failover is not None and failover["active"] is None):
        return HealthCheck("members", "fail", "; ".join(["nobody can sign", *out]))
    if failover is not None:
        said += f"; level {failover['active']} signs"
    return HealthCheck("members", "warn" if out else "ok", "; ".join([said, *out]))


def _said_of(member: str, reason: str) -> str:
    return reason if member in reason else f"{member}: {reason}"


def _login(state: Mapping[str, Any]) -> HealthCheck:
    refused = [member["member"] for member in state["members"] if {"auth", "access"} & member["breakers"].keys()]
    if not refused:
        return HealthCheck("login", "ok", "no login was refused")
    stopped = not any(member["condition"] in _SERVING for member in state["members"])
    return HealthCheck("login", "fail" if stopped else "warn", f"refused by {', '.join(refused)}")


def _key(state: Mapping[str, Any]) -> HealthCheck:
    current = next((key for key in state["keys"] if key["id"] == state["currentKey"]), None)
    if current is None:
        return HealthCheck("key", "fail", "no key is current")
    if current["state"] != "active":
        return HealthCheck("key", "fail", f"key {current['id']} is {current['state']}")
    return HealthCheck("key", "ok", f"key {current['id']} is current")


def _audit(audit: Mapping[str, Any] | None, state: Mapping[str, Any]) -> HealthCheck:
    if audit is None:
        wanted = state.get("auditConfigured", False)
        return HealthCheck(
            "audit", "fail" if wanted else "ok", "the log is closed" if wanted else "no log is configured"
        )
    if audit["failure"] is not None:
        closed = audit["onFailure"] == "closed"
        return HealthCheck("audit", "fail" if closed else "warn", f"the log cannot be written: {audit['failure']}")
    late = [f"no checkpoint: {audit['notSealed']}"] if audit["notSealed"] else []
    late += [f"{kind}: {status['error']}" for kind, status in audit["shipping"].items() if status["error"]]
    late += [f"witness {name}: {one['error']}" for name, one in audit["witnesses"].items() if one["error"]]
    return HealthCheck("audit", "warn" if late else "ok", "; ".join(["written", *late]))


def _publish(logs: Mapping[str, Any]) -> HealthCheck:
    late = [f"{domain}: {log['problem']}" for domain, log in logs.items() if log["problem"]]
    for domain, log in logs.items():
        late += [f"{domain}: witness {name}: {one['error']}" for name, one in log["witnesses"].items() if one["error"]]
    said = "the positions are published" if logs else "no positions are published"
    return HealthCheck("publish", "warn" if late else "ok", "; ".join(late) or said)


def _rotation(rotation: Mapping[str, Any] | None, now_ns: int) -> HealthCheck:
    if rotation is None or rotation["dueNs"] is None:
        return HealthCheck(
            "rotation", "ok", "no rotation is configured" if rotation is None else "no key has signed yet"
        )
    due = rotation["dueNs"]
    when = datetime.fromtimestamp(due / 1e9, UTC).strftime("%Y-%m-%d %H:%M UTC")
    failed = rotation["failedInARow"]
    said = f"{failed} failed in a row; " if failed else ""
    if rotation.get("waits"):  # for approvals, say: the key signs, and taking all signers away would not help
        return HealthCheck("rotation", "warn", f"{said}a rotation waits; `hsmcore rotate status` says for what")
    if now_ns > due + _OVERDUE_NS:
        return HealthCheck("rotation", "fail", f"{said}overdue since {when}")
    return HealthCheck("rotation", "warn" if failed else "ok", f"{said}due at {when}")


def _store(state: Mapping[str, Any], problem: str) -> HealthCheck:
    said = [f"not genuine: {scope}: {why}" for scope, why in state.get("storeNotGenuine", {}).items()]
    return HealthCheck("store", "warn" if problem or said else "ok", problem or "; ".join(said) or "readable")


def _emergency(failover: Mapping[str, Any] | None, budget: Mapping[str, Any] | None) -> HealthCheck:
    if failover is None or failover["active"] != "emergency":
        return HealthCheck("emergency", "ok", "not in use")
    left = "" if budget is None else f"; {budget['left']} signatures are left"
    return HealthCheck("emergency", "warn", f"the emergency key signs{left}")
