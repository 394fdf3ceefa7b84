"""What failover may cost while all is well, how it must scale, and what a failure of the primary may cost."""

from __future__ import annotations

from typing import Final

from hsmcore_bench.suite.catalogue import failures
from hsmcore_bench.suite.formulas import Target, relative

FAILOVER: Final = "failover-primary"  # a scenario of its own beside the contenders
REQUESTS_PER_SECOND: Final = 2_000
DEADLINE_SECONDS: Final = 1.0
COUNTS: Final = (1, 2, 4, 8)
SERVERS: Final = 16  # of each member; with all 128 of the profile, two members are more than one event loop can feed
TARGETS: tuple[Target, ...] = tuple(
    relative(
        *(f"failover-members-{count}", f"{count} members of a level", bound, "× one member"),
        *(f"failover-members-{count}", "failover-members-1"),
    )
    for count, bound in zip(COUNTS[1:], (1.98, 3.95, 7.9), strict=True)
)
CASES = failures()
SLOW_PERCENT: Final = 1.0
"""So many requests may take longer than twice the median while a member flaps."""
