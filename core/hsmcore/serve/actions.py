"""Operator actions: each is a record in the audit log and a wish in the state store, as the command line writes it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from hsmcore.base.log import MAX_REASON, is_reason
from hsmcore.config import Config
from hsmcore.errors import HsmError
from hsmcore.manager.rotation.service import ABORT, ROTATE
from hsmcore.recovery.own_store import is_attended
from hsmcore.state import Desired, Store
from hsmcore.state.desired import DRAIN, EMERGENCY, FORCE, READMIT


class BadRequest(Exception):
    """The action cannot be carried out; the text says why."""


@dataclass(frozen=True, slots=True)
class OperatorAction:
    """`command`: the record's word for it, the same as on the command line. `needs`: "member" or "level"."""

    command: str
    needs: str
    wish: Callable[[str], tuple[str, str | None]]
    """Map the member or level to the wish's name and value; None withdraws the wish."""


ACTIONS: Final = {
    "drain": OperatorAction("failover drain", "member", lambda member: (DRAIN + member, "yes")),
    "resume": OperatorAction("failover drain --undo", "member", lambda member: (DRAIN + member, None)),
    "readmit": OperatorAction(
        "failover readmit", "member", lambda member: (READMIT + member, datetime.now(UTC).isoformat())
    ),
    "force": OperatorAction("failover force", "level", lambda level: (FORCE, level)),
    "release": OperatorAction("failover force none", "", lambda _: (FORCE, None)),
    "emergency-disable": OperatorAction("emergency disable", "", lambda _: (EMERGENCY, "disabled")),
    "emergency-enable": OperatorAction("emergency enable", "", lambda _: (EMERGENCY, "enabled")),
    "rotate": OperatorAction("rotate now", "", lambda _: (ROTATE, "now")),
    "rotate-abort": OperatorAction("rotate abort", "", lambda _: (ABORT, "yes")),
}
_OF_ROTATION: Final = frozenset({"rotate", "rotate-abort"})


@dataclass(frozen=True, slots=True)
class OperatorOrder:
    """A checked request."""

    name: str
    command: str
    target: str
    reason: str
    fields: dict[str, str]
    """The other fields of the record."""


def parse(name: str, body: object, config: Config, state: Mapping[str, Any]) -> OperatorOrder:
    """Return the order in a request's body, {"member" or "level": …, "reason": …}. Raises BadRequest."""
    action = ACTIONS.get(name)
    if action is None:
        raise BadRequest(f"there is no action {name!r}; there are {', '.join(ACTIONS)}")
    if not isinstance(body, dict):
        raise BadRequest("the body must be a JSON object")
    unknown = body.keys() - {action.needs, "reason"}
    if unknown or "" in body:
        raise BadRequest(f"unknown: {', '.join(sorted(map(repr, unknown)))}")
    reason = body.get("reason")
    if not isinstance(reason, str) or not is_reason(reason):
        raise BadRequest(f"a reason of 1 to {MAX_REASON} printable characters is needed")
    target = ""
    if action.needs:
        given, known = body.get(action.needs), _known(action.needs, state)
        if not isinstance(given, str) or given not in known:
            raise BadRequest(f"{action.needs} must be one of: {', '.join(known) or 'none, there is no failover'}")
        target = given
    _require_configured(name, config)
    fields = {"reason": reason} | ({action.needs: target} if action.needs else {})
    return OperatorOrder(name, action.command, target, reason, fields)


def _known(what: str, state: Mapping[str, Any]) -> list[str]:
    failover = state.get("failover")
    if failover is None:
        return []
    return list(failover["levels"]) if what == "level" else [member["member"] for member in state["members"]]


def _require_configured(name: str, config: Config) -> None:
    rules = config.key_manager
    if name in _OF_ROTATION:
        if rules.active_rotation is None:
            raise BadRequest("keyRotation is not enabled in the configuration")
    elif not rules.has_levels:
        raise BadRequest("failover is not enabled in the configuration")
    failover = rules.active_failover
    if name == "emergency-enable" and (failover is None or not failover.emergency_mode_enabled):
        raise BadRequest("emergencyModeEnabled is not true: only the configuration can say that the chain accepts it")


async def carry_out(
    order: OperatorOrder, config: Config, record: Callable[[str, str], Awaitable[int | None]]
) -> int | None:
    """Record the order, then write the wish, which the key manager follows within a second. `record(result, error)`.
    Returns the record's number. Raises HsmError; an order that cannot be recorded is not carried out."""
    number = await record("ok", "")
    name, value = ACTIONS[order.name].wish(order.target)
    rules = config.key_manager
    try:
        await asyncio.to_thread(is_attended, rules)
        store = await Store.open(rules.state_place, config.state_secret, makes=False)
        try:
            await Desired(store).set(name, value, order.reason)
        finally:
            await store.close()
    except HsmError as error:
        await record("error", error.status)
        raise
    return number
