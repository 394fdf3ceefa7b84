"""What safety costs and how fast hsmcore heals: contenders, targets and scenarios, as data.

A host process around the module, slow devices on the network, verify-after-sign, and kills under load.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from hsmcore.bench.formulas import Target, lag_ms, lost_percent, of_ceiling, rate, tail
from hsmcore.bench.model import Contender, Isolation, TokenName

ISOLATION = "host process, relative to the same in one process"
X2 = "device: 12 requests at once, 64 waiting, 4 ms each (cloudhsm-hsm2m-x2)"
NETWORK = "device: 128 requests at once, 5 ms each (network-5ms)"
VERIFY = "verify-after-sign: SoftHSM as a device of 16 requests at once, 5 ms each, relative to never"
GROUPS = (ISOLATION, X2, NETWORK, VERIFY)

RECOVERY = "recovery"  # a scenario of its own beside the contenders
PATTERNS = ("ours", "noop-process-256", "device", "verify", RECOVERY)  # what `--only resilience` stands for
SLICES = 4.0  # a device makes a few thousand signatures a second: p99.9 and one percent need more of them
X2_HOLDS = 12 + 64  # requests that the device takes before it refuses the next


def contenders(cores: int) -> list[Contender]:
    x2 = Contender(
        "device-x2-raw",
        f"raw C loop, {X2_HOLDS} threads",
        "raw",
        X2,
        None,
        token="noop",
        in_flight=X2_HOLDS,
        sessions=X2_HOLDS,
        device="x2",
        slices=SLICES,
    )
    network = replace(
        x2,
        name="device-5ms-raw",
        title="raw C loop, 128 threads",
        group=NETWORK,
        in_flight=128,
        sessions=128,
        device="5ms",
    )
    verify = Contender(
        "verify-never",
        "hsmcore sign, 16 sessions, 16 in flight, never",
        "sign",
        VERIFY,
        None,
        in_flight=16,
        sessions=16,
        device="5ms-16",
        slices=SLICES,
    )
    spare = replace(verify, name="verify-spare-never", title="the same, 24 sessions and in flight", sessions=24)
    spare = replace(spare, in_flight=24)
    return [
        Contender(
            "ours-process-64",
            "hsmcore sign, 64 in flight",
            "sign",
            ISOLATION,
            "sign-64",
            in_flight=64,
            sessions=cores,
            isolation="process",
        ),
        Contender(
            "noop-process-256",
            "hsmcore sign, 256 in flight, no-op module",
            "sign",
            ISOLATION,
            "noop-256",
            token="noop",
            in_flight=256,
            timed_every=8,
            isolation="process",
        ),
        x2,
        replace(x2, name="device-x2-ours", title=f"hsmcore sign, {X2_HOLDS} in flight", kind="sign", reference=x2.name),
        network,
        _on_network(network, "device-5ms-ours", 128),
        _on_network(network, "device-5ms-ours-256", 256),
        verify,
        replace(verify, name="verify-always", title="the same, always", verify="always", reference=verify.name),
        spare,
        replace(spare, name="verify-spare-always", title="the same, always", verify="always", reference=spare.name),
    ]


def _on_network(raw: Contender, name: str, in_flight: int) -> Contender:
    title = f"hsmcore sign, 128 sessions, {in_flight} in flight"
    return replace(raw, name=name, title=title, kind="sign", reference=raw.name, in_flight=in_flight)


@dataclass(frozen=True, slots=True)
class RecoveryCase:
    """What is killed, how often, and what the killing is measured by."""

    name: str
    title: str
    kind: str  # of the child's job
    times: int
    token: TokenName
    device: str | None
    isolation: Isolation
    sessions: int | None  # None: one per processor
    in_flight: int = 64


RECOVERY_CASES: tuple[RecoveryCase, ...] = (
    RecoveryCase("host", "host process killed, SoftHSM", "recovery-host", 10, "hsm", None, "process", None),
    RecoveryCase(
        "sessions", "all 16 sessions killed, SoftHSM", "recovery-sessions", 5, "hsm", "transparent", "thread", 16
    ),
    RecoveryCase(
        "sessions-5ms",
        "all 128 sessions killed, network-5ms",
        "recovery-sessions",
        5,
        "noop",
        "5ms",
        "thread",
        128,
        in_flight=256,
    ),
)


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
