"""What failover may cost while all is well, how it must scale, and what a failure of the primary may cost."""

from __future__ import annotations

from typing import Final

from hsmcore_bench.suite.catalogue import failures
from hsmcore_bench.suite.formulas import Target, cost, relative

FAILOVER: Final = "failover-primary"  # a scenario of its own beside the contenders
REQUESTS_PER_SECOND: Final = 2_000
DEADLINE_SECONDS: Final = 1.0
COUNTS: Final = (1, 2, 4, 8)
SERVERS: Final = 16  # of each member; with all 128 of the profile, two members are more than one event loop can feed
TARGETS: tuple[Target, ...] = (
    cost(
        "failover-64-cost",
        "failover while all is well, SoftHSM, 64 in flight: throughput lost",
        3.0,
        "failover-64",
        "sign-64",
    ),
    cost("failover-noop-256-cost", "the same, no-op module, 256 in flight", 3.0, "failover-noop-256", "noop-256"),
    *(
        relative(
            f"failover-members-{count}",
            f"{count} members of a level",
            "× one member",
            0.95 * count,
            f"failover-members-{count}",
            "failover-members-1",
            f"rate({count} members) / rate(1 member)",
        )
        for count in COUNTS[1:]
    ),
)


CASES = failures()
SLOW_PERCENT: Final = 1.0
"""So many requests may take longer than twice the median while a member flaps."""
