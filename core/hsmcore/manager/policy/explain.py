"""What a message is, whether it would be signed, and why not: the judgement of guard.py, without its effects."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from hsmcore.audit.record import caller
from hsmcore.config import CallerRules, GatewayClient, PayloadFormat, Policy
from hsmcore.config.policy import PREHASHED
from hsmcore.errors import DoubleSign, PolicyRefused
from hsmcore.manager.policy.callers import CallerAccount, unlisted
from hsmcore.manager.policy.guard import Guard, Permit
from hsmcore.manager.policy.watermark import Watermark
from hsmcore.state import Store


@dataclass(frozen=True, slots=True)
class Requester:
    """Who would ask, for which key's signature."""

    caller: str | None = None
    """None: it does not say who it is."""
    client: GatewayClient | None = None
    """The caller's rules as a client of the gateway."""
    manager: str = "default"
    """The key manager's name, as clients list it."""
    key: bytes | None = None
    """The public key that would sign; None: it is not known, and its role is not looked at."""


async def explained(
    policy: Policy,
    message: bytes,
    kind: str | None,
    position: int | None,
    store: Store | None,
    requester: Requester,
    formats: Sequence[PayloadFormat] = (),
) -> dict[str, Any]:
    """Return the findings, as data for JSON. `store`: what was bound; None: the policy binds nothing. `formats`: as of
    gate_of. Nothing is counted: limits are shown, not applied."""
    rules, keys = policy.transactions, [] if requester.key is None else [requester.key]
    if rules is not None and not keys:
        policy = policy.with_parts({"transactions": rules.with_parts({"role": "any"})})
    guard = Guard(policy, formats, None, lambda: keys, 0)
    look = guard.gate.look(message, None if kind == PREHASHED else kind, keys)
    found: dict[str, Any] = {
        "kind": look.kind,
        "bytes": len(message),
        "signed": False,
        "why": None,
        "domain": None,
        "position": None,
        "moves": dict(look.moves) or None,
        "caller": requester.caller,
        "limits": _limits((policy.callers or {}).get(requester.caller or "")),
        "clientLimits": _limits(requester.client),
        "role": None if rules is None or rules.role == "any" else rules.role,
        "key": None if requester.key is None else requester.key.hex(),
    }
    try:
        permit = _judged(guard, message, kind, position, requester)
    except PolicyRefused as error:
        return found | {"why": str(error.args[0])}
    place = permit.place
    if place is None or store is None:
        return found | {"kind": permit.kind, "signed": True}
    found |= {"kind": permit.kind, "domain": place.domain, "position": place.position}
    row, refusal = await Watermark(store, "", most_ahead=policy.max_ahead).look(place)
    found["signed"] = refusal is None
    if isinstance(refusal, DoubleSign):
        found["why"] = "another payload was bound to the position"
    elif refusal is not None:
        found["why"] = str(refusal.args[0])
    if row is not None:
        found |= {"boundDigest": row["digest"], "holder": row["holder"], "boundNs": row["bound_ns"]}
    return found


def _judged(guard: Guard, message: bytes, kind: str | None, position: int | None, requester: Requester) -> Permit:
    """Raises PolicyRefused, as the gateway and the key manager would."""
    with nullcontext() if requester.caller is None else caller(requester.caller):
        permit = guard.judge_digest() if kind == PREHASHED else guard.judge(message, kind, position)
    if requester.client is not None:
        if requester.manager not in requester.client.keys:
            raise unlisted(requester.caller, requester.manager)
        refusal = CallerAccount(f"client {requester.caller!r}", requester.client, None, None).refusal(permit.kind)
        if refusal is not None:
            raise refusal
    return permit


def _limits(rules: CallerRules | None) -> dict[str, int] | None:
    if rules is None:
        return None
    shown = {"perSecond": rules.per_second, "inFlight": rules.in_flight}
    return {name: limit for name, limit in shown.items() if limit is not None}
