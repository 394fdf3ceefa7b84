"""As found.py: worlds of a gateway."""

from __future__ import annotations

from typing import Final

from tests.simulation.clock import SECOND
from tests.simulation.device import Fault
from tests.simulation.gateway_script import FIRST_UID, Entry, GatewayScript
from tests.simulation.script import MS, Intent, Member, Try

_FAILOVER: Final = {"primaryRetryIntervalMs": 200, "secondaryRetryIntervalMs": 200, "maxPrimaryRetries": 3}

LEFT_IN_SLICES: Final = GatewayScript(
    0,
    (Member("p0", "primary", "first", 2 * MS), Member("s0", "secondary", "second", 300_000)),
    {"maxCacheSize": 0},
    {**_FAILOVER, "acceptOtherKeys": ["secondary"]},
    intents=(
        Intent(
            0,
            10 * MS,
            tuple(b"0/%d" % part for part in range(20)),
            (Try("many", 5.0, leaves_ns=10 * MS), Try("many", 5.0)),
            100 * MS,
        ),
    ),
    faults=(Fault(60 * MS, SECOND, "p0", "gone", 1.0),),
    stalls=(),
    entries=(Entry("c100", FIRST_UID, 256, 1, 1, 1),),
    in_flight=1,
)
"""A batch begins in slices, and its caller leaves: what was signed by then is bound as the rest is."""

FOUND: Final = (LEFT_IN_SLICES,)
