"""What safety may cost and how fast hsmcore must heal: targets of a host process around the module, slow devices on the
network, verify-after-sign, and kills under load."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hsmcore_bench.suite.catalogue import kills
from hsmcore_bench.suite.formulas import Target, lag_ms, lost_percent, of_ceiling, rate, tail

RECOVERY = "recovery"  # a scenario of its own beside the contenders
RECOVERY_CASES = kills()


@dataclass(frozen=True, slots=True)
class RecoveryTarget:
    """Held against the worst of all kills, not the median."""

    name: str
    what: str
    formula: str
    unit: str
    bound: float
    at_least: bool
    case: str


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
    RecoveryTarget(
        "recovery-sessions",
        "rate in the second after all sessions were killed, SoftHSM, lowest",
        "rate after / rate before",
        "× before",
        0.9,
        True,
        "sessions",
    ),
    RecoveryTarget(
        "recovery-sessions-5ms",
        "the same, 128 sessions on network-5ms, lowest",
        "rate after / rate before",
        "× before",
        0.9,
        True,
        "sessions-5ms",
    ),
    RecoveryTarget(
        "recovery-rotation",
        "rate in the second in which the key is rotated, SoftHSM, lowest",
        "rate after / rate before",
        "× before",
        0.8,
        True,
        "rotation",
    ),
)


def _relative(name: str, what: str, unit: str, bound: float, ours: str, theirs: str) -> Target:
    return Target(name, what, f"rate({ours}) / rate({theirs})", unit, bound, True, (ours, theirs), rate(ours, theirs))


def _device(ours: str, what: str, formula: str, *, raw: str) -> Sequence[Target]:
    """The three that every device has: throughput, lag of the event loop, and tail."""
    return (
        Target(f"{ours}-rate", f"{what}: rate", formula, "× ceiling", 0.98, True, (ours,), of_ceiling(ours)),
        Target(f"{ours}-lag", f"{what}: loop lag, p99", f"p99(lag of {ours})", "ms", 5.0, False, (ours,), lag_ms(ours)),
        Target(
            f"{ours}-tail",
            f"{what}: p99.9 latency over raw C's",
            f"p999({ours}) / p999({raw})",
            "×",
            1.5,
            False,
            (ours, raw),
            tail(ours, raw),
        ),
    )


def _cost(always: str, never: str, what: str) -> Target:
    formula = f"1 - rate({always}) / rate({never})"
    return Target(f"{always}-cost", what, formula, "%", 2.0, False, (always, never), lost_percent(always, never))


TARGETS: tuple[Target, ...] = (
    _relative("process-64", "host process, SoftHSM, 64 in flight", "× in-process", 0.99, "ours-process-64", "sign-64"),
    _relative(
        "process-256", "host process, no-op module, 256 in flight", "× in-process", 0.97, "noop-process-256", "noop-256"
    ),
    *_device("device-x2-ours", "cloudhsm-hsm2m-x2, 76 in flight", "rate / (12 / 4 ms)", raw="device-x2-raw"),
    *_device("device-5ms-ours", "network-5ms, 128 in flight", "rate / (128 / 5 ms)", raw="device-5ms-raw"),
    *_device("device-5ms-ours-256", "network-5ms, 256 in flight", "rate / (128 / 5 ms)", raw="device-5ms-raw")[:2],
    _cost("verify-always", "verify-never", "verify-after-sign, 5 ms device, a session per server: throughput lost"),
    _cost("verify-spare-always", "verify-spare-never", "the same, 24 sessions for 16 servers"),
)
