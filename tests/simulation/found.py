"""Worlds in which the law was broken once, as small as they are: what was found stays found."""

from __future__ import annotations

from typing import Any, Final

from tests.simulation.clock import SECOND
from tests.simulation.device import Fault
from tests.simulation.levels_script import Moment
from tests.simulation.operator_script import Shift, Typed
from tests.simulation.script import MS, Intent, Member, Script, Try

_PATIENT: Final = {"primaryRetryIntervalMs": 200, "secondaryRetryIntervalMs": 200, "maxPrimaryRetries": 3}
_P0 = Member("p0", "primary", "first", 300_000)
_P1 = Member("p1", "primary", "first", 300_000)
_S0 = Member("s0", "secondary", "second", 300_000)
_S1 = Member("s0", "secondary", "first", 300_000)


def _script(seed: int, members: tuple[Member, ...], failover: dict[str, Any], **more: Any) -> Script:
    other = {"acceptOtherKeys": ["secondary"]} if _S0 in members else {}
    parts: dict[str, Any] = {"faults": (), "stalls": (), "options": {"maxCacheSize": 0}, **more}
    return Script(seed, members, failover=_PATIENT | other | failover, **parts)


def _asks(number: int, at_ns: int, *tries: Try, size: int = 1, pause_ns: int = 0) -> Intent:
    return Intent(number, at_ns, tuple(b"%d/%d" % (number, part) for part in range(size)), tries, pause_ns)


ANY_KEY: Final = _script(
    0,
    (_P0, _S0),
    {},
    faults=(Fault(0, 10 * SECOND, "p0", "slow", 1.0, factor=100),),
    intents=(_asks(0, 10 * MS, Try("sign", 0.02, any_key=True)), _asks(1, 200 * MS, Try("sign", 2.0))),
)
"""The caller allows another key, no member answers in time, and the device signs later: the error has to say so."""

RAMP_BEGINS: Final = _script(
    1,
    (_P0, _P1, _S1),
    {"failbackRampMs": 2000},
    faults=(Fault(50 * MS, 300 * MS, "p1", "gone", 1.0),),
    intents=tuple(_asks(at, at * 10 * MS, Try("many", 2.0), size=20) for at in range(150)),
)
"""A batch comes between a member's return and the first step of its ramp."""

CLOSED_WHILE_IT_WAITS: Final = _script(
    2,
    (_P0, _S1),
    {"mode": "literal", "hedging": True},
    faults=(Fault(0, 10 * SECOND, "p0", "silent", 1.0),),
    intents=(_asks(0, 50 * MS, Try("sign", 5.0)),),
    closes_ns=100 * MS,
)
"""The key manager is closed while a request waits for its retry, after a device has signed."""

LEFT_BEFORE_IT_BEGAN: Final = _script(
    3,
    (_P0, _S0),
    {"hedging": True},
    faults=(Fault(20 * MS, 2 * SECOND, "p0", "gone", 1.0),),
    intents=tuple(
        _asks(at, 10 * MS + at * 500_000, Try("sign", 0.5, leaves_ns=0), Try("sign", 2.0), pause_ns=50 * MS)
        for at in range(20)
    ),
)
"""A caller leaves at once, and no member has begun with its message: another key may sign it."""

_DAILY: Final = {"intervalDays": 1, "overlapDays": 0}


def _shift(seed: int, *typed: Typed) -> Shift:
    """Two levels with a key each, and rotation: an operator types something, the process is killed and starts again."""
    failover = {
        **_PATIENT,
        "acceptOtherKeys": ["secondary"],
        "emergencyModeEnabled": False,
        "emergencyModeRestrictions": {"maxTransactions": 1, "maxTimeSeconds": 1},
    }
    options = {"maxCacheSize": 0, "requestTimeoutMs": 1000, "policy": {"kinds": ["block", "raw"]}, "audit": {}}
    rotation = {**_DAILY, "approvals": 0}
    moments = (Moment(0, end="kill", kill_ns=600 * MS),)
    return Shift(seed, (_P0, _S0), options, failover, rotation, moments, typed=tuple((0, one) for one in typed))


FORCED_AT_THE_START: Final = _shift(4, Typed(100 * MS, "failover force", 1))
"""A level that signs with another key is forced when the process starts: the key ring is not asked for that key."""

COPIED_TO_ANOTHER: Final = _shift(5, Typed(100 * MS, "keys replicate", 0))
"""The key is copied to a member that signs with another one: that one goes on after a restart, and rotations too."""

FOUND: Final = (
    *(ANY_KEY, RAMP_BEGINS, CLOSED_WHILE_IT_WAITS, LEFT_BEFORE_IT_BEGAN),
    *(FORCED_AT_THE_START, COPIED_TO_ANOTHER),
)
