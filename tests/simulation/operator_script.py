"""What a seed means for operators who run commands beside a host of a week: what they type, and when. Data only."""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass, replace
from typing import Final

from nacl.signing import SigningKey
from tests.simulation.clock import SECOND
from tests.simulation.device import Fault
from tests.simulation.levels_script import LASTS_NS, Moment, Week, levels_script
from tests.simulation.script import HEAD, Intent

MOMENTS: Final = 7
APPROVERS: Final = ("anna", "bob", "carl")
STRANGER: Final = "dora"
"""No approver: a signature by this key approves nothing."""
ONLINE: Final = (
    *("rotate now", "rotate approve", "rotate approve", "rotate approve", "rotate abort", "rotate adopt"),
    *("rotate clock", "failover drain", "failover readmit", "failover force"),
    *("emergency disable", "emergency enable", "emergency reset"),
    *("policy floor set", "policy floor set", "keys generate", "keys deactivate", "keys deactivate"),
    *("keys export", "keys import", "keys replicate", "backup verify", "backup restore"),
    *("state backup", "state export", "state import", "state seal", "audit checkpoint"),
)
"""Commands that are typed while a key manager runs, or not. One that stands here more often is typed more often."""
OFFLINE: Final = ("policy rebind", "state begin", "state seal", "state reconcile", "state restore")
"""Commands for which no key manager may run on the store."""


@dataclass(frozen=True, slots=True)
class Typed:
    """A command, `at_ns` after its moment's begin. `chance`: what its words are, where the world does not say that."""

    at_ns: int
    command: str
    chance: int


@dataclass(frozen=True, slots=True)
class Shift(Week):
    """A week with operators."""

    typed: tuple[tuple[int, Typed], ...] = ()
    """Commands, each with the number of its moment;"""
    offline: tuple[tuple[int, Typed], ...] = ()
    """and those before a start: with the number of starts before it."""
    forged: tuple[int, ...] = ()
    """The numbers of starts before which rows of the store are changed by hand."""
    is_sealed: bool = False
    backs_up: bool = False
    """Whether rotations write backups of keys, and try them."""


Shift.PARTS = (*Week.PARTS, "typed", "offline", "forged")


def approver(name: str) -> SigningKey:
    return SigningKey(hashlib.sha256(name.encode()).digest())


def commands_script(seed: int) -> Shift:
    """The first days of a week with its restarts, kills and clocks, and some commands in each moment."""
    week = levels_script(seed)
    rng = random.Random(f"commands/{seed}")
    moments = tuple(_with_blocks(rng, number, one) for number, one in enumerate(week.moments[:MOMENTS]))
    last = moments[-1].at_ns + LASTS_NS
    needed = rng.choice((0, 1, 2, 2))
    people = [{"name": name, "publicKey": bytes(approver(name).verify_key).hex()} for name in APPROVERS]
    rotation = {**week.rotation, "approvals": needed, "approvers": people}
    options = {
        **week.options,
        "policy": {"kinds": ["block", "raw"]},
        "audit": {"checkpointEverySeconds": 3600},
    }
    typed = tuple(
        (number, Typed(rng.randrange(LASTS_NS), rng.choice(ONLINE), rng.randrange(1 << 30)))
        for number in range(len(moments))
        for _ in range(rng.choice((0, 1, 2, 4)))
    )
    offline = tuple(
        (number, Typed(0, rng.choice(OFFLINE), rng.randrange(1 << 30)))
        for number in range(len(moments))
        for _ in range(rng.choice((0, 0, 0, 1)))
    )
    is_sealed = rng.random() < 0.5
    failover, faults = week.failover, week.faults
    if rng.random() < 0.5:  # all members are gone now and then, so that the emergency key signs, or may not
        failover = {**failover, "emergencyModeEnabled": True}
        faults += tuple(
            Fault(one.at_ns + rng.randrange(LASTS_NS // 2), SECOND, member.name, "gone", 1.0)
            for one in moments
            if rng.random() < 0.5
            for member in week.members
        )
    return Shift(
        seed,
        week.members,
        options,
        failover,
        rotation,
        tuple(replace(one, rotates_ns=None, edit=_approved(one.edit, rotation)) for one in moments),
        tuple(one for one in faults if one.at_ns < last),
        tuple(one for one in week.troubles if one.at_ns < last),
        week.starts_ns,
        typed,
        offline,
        tuple(number for number in range(1, len(moments)) if is_sealed and rng.random() < 0.4),
        is_sealed,
        rng.random() < 0.5,
    )


def _approved(edit: dict[str, object], rotation: dict[str, object]) -> dict[str, object]:
    """An edit leaves the approvers as they are."""
    if not edit:
        return edit
    kept = {name: rotation[name] for name in ("approvals", "approvers")}
    changed: dict[str, object] = edit["rotation"]  # type: ignore[assignment]
    return {**edit, "rotation": {**changed, **kept}}


def _with_blocks(rng: random.Random, number: int, moment: Moment) -> Moment:
    """Half of the callers have a block signed: several a position, and not all of them the same one."""
    return replace(moment, intents=tuple(_block(rng, number, one) for one in moment.intents))


def _block(rng: random.Random, number: int, intent: Intent) -> Intent:
    if len(intent.messages) > 1 or rng.random() < 0.4:
        return intent
    position = 1 + 3 * number + rng.randrange(-3 if number else 0, 4)
    block = HEAD + position.to_bytes(8) + bytes([rng.randrange(3)]) * 32
    return replace(intent, messages=(block,), shared=True)
