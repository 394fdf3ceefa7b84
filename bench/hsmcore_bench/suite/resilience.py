"""What safety may cost and how fast hsmcore must heal: targets of a host process around the module, slow devices on the
network, verify-after-sign, and kills under load."""

from __future__ import annotations

from dataclasses import dataclass

from hsmcore_bench.suite.catalogue import kills
from hsmcore_bench.suite.formulas import (
    ALONE,
    CEILING,
    CPU,
    LAG,
    LOST,
    MORE_OVER,
    P999,
    RATE,
    RATIO,
    SWITCHES,
    Target,
    added,
    least,
    most,
    relative,
)
from hsmcore_bench.suite.model import Goal

RECOVERY = "recovery"  # a scenario of its own beside the contenders
RECOVERY_CASES = kills()
_AGAIN = "end of the longest pause - kill"
_KEPT = "rate after / rate before"


@dataclass(frozen=True, slots=True)
class RecoveryTarget(Goal):
    """Of all kills of a case the worst decides, or the median."""

    case: str
    worst: bool = True


RECOVERY_TARGETS: tuple[RecoveryTarget, ...] = (
    *(
        RecoveryTarget(name, f"signing again after SIGKILL for the host process, {which}", _AGAIN, "ms", ms, False,
                       "host", worst)
        for name, which, ms, worst in (
            ("recovery-host", "median", 50.0, False),
            ("recovery-host-slowest", "slowest", 150.0, True),
        )
    ),
    *(
        RecoveryTarget(f"recovery-{case}", what, _KEPT, "× before", bound, True, case, worst)
        for case, what, bound, worst in (
            ("sessions", "rate in the second after all sessions were killed, SoftHSM, median", 0.9, False),
            ("sessions-5ms", "the same, 128 sessions on network-5ms, lowest", 0.9, True),
            ("rotation", "rate in the second in which the key is rotated, SoftHSM, lowest", 0.8, True),
        )
    ),
)  # fmt: skip

_X2, _ALL, _TWICE = "cloudhsm-hsm2m-x2, 76 in flight", "network-5ms, 128 in flight", "network-5ms, 256 in flight"
TARGETS: tuple[Target, ...] = (
    relative("process-64", "host process, SoftHSM, 64 in flight", None, "× in-process", "ours-process-64", "sign-64"),
    relative(
        *("process-256", "host process, no-op module, 256 in flight", 0.97, "× in-process"),
        *("noop-process-256", "noop-256"),
    ),
    least(
        "device-x2-rate", f"{_X2}: rate", 0.99, "× ceiling", RATIO, RATE("device-x2-ours"), CEILING("device-x2-ours")
    ),
    most("device-x2-lag", f"{_X2}: loop lag, p99", 2.0, "ms", ALONE, LAG("device-x2-ours")),
    most(
        *("device-x2-tail", f"{_X2}: p99.9 latency over raw C's", 1.1, "×", RATIO),
        *(P999("device-x2-ours"), P999("device-x2-raw")),
    ),
    most("device-5ms-lag", f"{_ALL}: loop lag, p99", 2.0, "ms", ALONE, LAG("device-5ms-ours")),
    most(
        *("device-5ms-tail", f"{_ALL}: p99.9 latency over raw C's", 1.15, "×", RATIO),
        *(P999("device-5ms-ours"), P999("device-5ms-raw")),
    ),
    most(
        *("device-5ms-switches", f"{_ALL}: voluntary switches a signature", 1.5, "", ALONE),
        SWITCHES("device-5ms-ours"),
    ),
    relative("device-5ms-256-rate", f"{_TWICE}: rate", 0.995, "× raw C", "device-5ms-ours-256", "device-5ms-raw"),
    most("device-5ms-256-lag", f"{_TWICE}: loop lag, p99", 5.0, "ms", ALONE, LAG("device-5ms-ours-256")),
    added(
        *("device-5ms-256-added", f"{_TWICE}: processor time over raw C's", 8.0),
        *("stack-256-bare", "device-5ms-raw"),  # the same, with nobody who watches the loop
    ),
    most(
        *("device-5ms-256-switches", f"{_TWICE}: voluntary switches a signature", 1.05, "", ALONE),
        SWITCHES("stack-256-bare"),
    ),
    added(
        *("device-5ms-1-added", "network-5ms, one in flight: processor time over raw C's", 100.0),
        *("device-5ms-ours-1", "device-5ms-raw-1"),
    ),
    relative(
        *("over-executor-5ms", f"{_TWICE}, against python-pkcs11 through asyncio", 2.2, "×"),
        *("device-5ms-ours-256", "device-5ms-executor"),
    ),
    most(
        "verify-always-added",
        "verify-after-sign, 5 ms device, a session per server: processor time",
        1.3,
        *("× one verification", MORE_OVER, CPU("verify-always"), CPU("verify-never"), CPU("verify-one")),
    ),
    most(
        *("verify-spare-cost", "verify-after-sign, 24 sessions for 16 servers: throughput lost", 2.0, "%", LOST),
        *(RATE("verify-spare-always"), RATE("verify-spare-never")),
    ),
)
