"""What safety may cost and how fast hsmcore must heal: targets of a host process around the module, slow devices on the
network, verify-after-sign, and kills under load."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hsmcore_bench.suite.catalogue import kills
from hsmcore_bench.suite.formulas import Target, cost, lag, of_ceiling, relative, tailed
from hsmcore_bench.suite.model import Goal

RECOVERY = "recovery"  # a scenario of its own beside the contenders
RECOVERY_CASES = kills()


@dataclass(frozen=True, slots=True)
class RecoveryTarget(Goal):
    """Held against the worst of all kills, not the median."""

    case: str


def _kept(case: str, what: str, bound: float) -> RecoveryTarget:
    return RecoveryTarget(
        f"recovery-{case}", f"{what}, lowest", "rate after / rate before", "× before", bound, True, case
    )


RECOVERY_TARGETS: tuple[RecoveryTarget, ...] = (
    RecoveryTarget(
        "recovery-host",
        "signing again after SIGKILL for the host process, slowest",
        "end of the longest pause - kill",
        "ms",
        50.0,
        False,
        "host",
    ),
    _kept("sessions", "rate in the second after all sessions were killed, SoftHSM", 0.9),
    _kept("sessions-5ms", "the same, 128 sessions on network-5ms", 0.9),
    _kept("rotation", "rate in the second in which the key is rotated, SoftHSM", 0.8),
)


def _device(ours: str, what: str, formula: str, *, raw: str, bound: float = 0.98) -> Sequence[Target]:
    """The three that every device has: throughput, lag of the event loop, and tail."""
    return (
        Target(f"{ours}-rate", f"{what}: rate", formula, "× ceiling", bound, True, (ours,), of_ceiling(ours)),
        lag(f"{ours}-lag", f"{what}: loop lag, p99", ours),
        tailed(f"{ours}-tail", f"{what}: p99.9 latency over raw C's", ours, raw),
    )


def _checked(always: str, never: str, what: str) -> Target:
    return cost(f"{always}-cost", what, 2.0, always, never)


TARGETS: tuple[Target, ...] = (
    relative("process-64", "host process, SoftHSM, 64 in flight", "× in-process", 0.99, "ours-process-64", "sign-64"),
    relative(
        "process-256", "host process, no-op module, 256 in flight", "× in-process", 0.97, "noop-process-256", "noop-256"
    ),
    *_device("device-x2-ours", "cloudhsm-hsm2m-x2, 76 in flight", "rate / (12 / 4 ms)", raw="device-x2-raw"),
    *_device("device-5ms-ours", "network-5ms, 128 in flight", "rate / (128 / 5 ms)", raw="device-5ms-raw", bound=0.96),
    *_device("device-5ms-ours-256", "network-5ms, 256 in flight", "rate / (128 / 5 ms)", raw="device-5ms-raw")[:2],
    _checked("verify-always", "verify-never", "verify-after-sign, 5 ms device, a session per server: throughput lost"),
    _checked("verify-spare-always", "verify-spare-never", "the same, 24 sessions for 16 servers"),
)
