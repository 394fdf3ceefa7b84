"""What a message is, whether it would be signed, and why not: the judgement of guard.py, without its effects."""

from __future__ import annotations

from typing import Any

from hsmcore.config import Policy
from hsmcore.errors import DoubleSign, PolicyRefused
from hsmcore.manager.policy.guard import gate_of, place_of
from hsmcore.manager.policy.watermark import Watermark
from hsmcore.state import Store


async def explained(
    policy: Policy, message: bytes, kind: str | None, position: int | None, store: Store | None
) -> dict[str, Any]:
    """Return the findings, as data for JSON. `store`: what was bound; None: the policy binds nothing. The rule on the
    role of the key is left out: no key is loaded here."""
    look = gate_of(policy, role="any").look(message, kind)
    found: dict[str, Any] = {
        "kind": look.kind,
        "bytes": len(message),
        "signed": False,
        "why": look.refusal,
        "domain": None,
        "position": None,
        "lamports": look.lamports or None,
        "tokens": look.tokens or None,
    }
    try:
        place = place_of(policy, look, message, position)
    except PolicyRefused as error:
        return found | {"why": str(error.args[0])}
    if place is None or store is None:
        return found | {"signed": True}
    found |= {"domain": place.domain, "position": place.position, "why": None}
    row, refusal = await Watermark(store, "", most_ahead=policy.max_ahead).look(place)
    found["signed"] = refusal is None
    if isinstance(refusal, DoubleSign):
        found["why"] = "another payload was bound to the position"
    elif refusal is not None:
        found["why"] = str(refusal.args[0])
    if row is not None:
        found |= {"boundDigest": row["digest"], "holder": row["holder"], "boundNs": row["bound_ns"]}
    return found
