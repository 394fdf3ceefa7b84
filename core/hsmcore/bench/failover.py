"""What failover costs while all is well, how it scales with members, and what a failure of the primary costs: data."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, Literal

from hsmcore.bench.formulas import Target, lost_percent, rate
from hsmcore.bench.model import Contender, Isolation

HEALTHY: Final = "failover while all is well, relative to the bare member"
MEMBERS: Final = "members of one level, each a device of 16 requests at once, 5 ms each (network-5ms, 16 servers)"
GROUPS: Final = (HEALTHY, MEMBERS)

FAILOVER: Final = "failover-primary"  # a scenario of its own beside the contenders
REQUESTS_PER_SECOND: Final = 2_000
DEADLINE_SECONDS: Final = 1.0
COUNTS: Final = (1, 2, 4, 8)
SERVERS: Final = 16  # of each member; with all 128 of the profile, two members are more than one event loop can feed
SLICES: Final = 4.0

Strike = Literal["host", "token", "hang", "flapping"]


def contenders(cores: int) -> list[Contender]:
    hsm = Contender(
        "failover-64",
        "hsmcore sign, failover enabled, 64 in flight",
        "sign",
        HEALTHY,
        "sign-64",
        in_flight=64,
        sessions=cores,
        members=1,
    )
    noop = Contender(
        "failover-noop-256",
        "hsmcore sign, failover enabled, 256 in flight, no-op module",
        "sign",
        HEALTHY,
        "noop-256",
        token="noop",
        in_flight=256,
        timed_every=8,
        members=1,
    )
    one = Contender(
        "failover-members-1",
        "1 member, 32 in flight",
        "sign",
        MEMBERS,
        None,
        token="noop",
        in_flight=2 * SERVERS,
        sessions=SERVERS + SERVERS // 2,
        device="5ms-16",
        slices=SLICES,
        members=1,
    )
    more = [
        replace(
            one,
            name=f"failover-members-{count}",
            title=f"{count} members, {2 * SERVERS * count} in flight",
            reference=one.name,
            in_flight=2 * SERVERS * count,
            members=count,
        )
        for count in COUNTS[1:]
    ]
    return [hsm, noop, one, *more]


TARGETS: tuple[Target, ...] = (
    *(
        Target(
            f"{ours}-cost",
            what,
            f"1 - rate({ours}) / rate({bare})",
            "%",
            3.0,
            False,
            (ours, bare),
            lost_percent(ours, bare),
        )
        for ours, bare, what in (
            ("failover-64", "sign-64", "failover while all is well, SoftHSM, 64 in flight: throughput lost"),
            ("failover-noop-256", "noop-256", "the same, no-op module, 256 in flight"),
        )
    ),
    *(
        Target(
            f"failover-members-{count}",
            f"{count} members of a level",
            f"rate({count} members) / rate(1 member)",
            "× one member",
            0.95 * count,
            True,
            (f"failover-members-{count}", "failover-members-1"),
            rate(f"failover-members-{count}", "failover-members-1"),
        )
        for count in COUNTS[1:]
    ),
)


@dataclass(frozen=True, slots=True)
class FailoverCase:
    """What befalls the primary member, and how often; the secondary one is well."""

    name: Strike
    title: str
    times: int
    isolation: Isolation
    device: str
    seconds: float  # of load before and after it; of all of it for the one that comes and goes
    quick_seconds: float
    bound_ms: float | None  # of the longest pause

    @property
    def kind(self) -> str:
        """Of the child's job."""
        return f"failover-{self.name}"


CASES: tuple[FailoverCase, ...] = (
    FailoverCase("host", "host process killed (SIGKILL)", 5, "process", "transparent", 1.05, 1.05, 50.0),
    FailoverCase("token", "token removed", 5, "thread", "transparent", 1.05, 1.05, 50.0),
    FailoverCase("hang", "every call hangs", 5, "thread", "transparent", 1.5, 1.5, DEADLINE_SECONDS * 1e3 + 50.0),
    FailoverCase("flapping", "1 s there, 1 s gone", 1, "thread", "5ms-16", 60.0, 6.0, None),
)
SLOW_PERCENT: Final = 1.0
"""So many requests may take longer than twice the median while a member flaps."""
