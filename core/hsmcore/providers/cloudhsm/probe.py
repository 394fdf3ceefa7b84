"""Checks around a CloudHSM cluster: the vendor library's own configuration, and AWS's view of the HSMs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from hsmcore.doctor.report import Step, fail, ok, warn
from hsmcore.doctor.subject import Subject
from hsmcore.providers.cloudhsm import check_client
from hsmcore.providers.cloudhsm.health import ClusterHealth, Expected
from hsmcore.providers.cloudhsm.poller import HealthPoller
from hsmcore.providers.cloudhsm.settings import CLIENT_CONFIG, AwsCloudHsmSettings


def probe_cluster(subject: Subject) -> Iterator[Step]:
    """Yield up to two steps. AWS is not asked if clusterHealthIntervalMs is 0."""
    settings: AwsCloudHsmSettings = subject.settings
    path = settings.client_config or CLIENT_CONFIG
    faults = check_client(settings)
    if faults:
        found = "; ".join(f"{fault.path} {fault.problem}" for fault in faults)
        yield fail("client-config", found, "Correct the configuration, or run configure-pkcs11 for this cluster.")
    elif not Path(path).exists():  # the library looks there, and nowhere else
        yield warn("client-config", f"there is no {path}", "Run configure-pkcs11 for this cluster.")
    else:
        yield ok("client-config", f"{path} does not contradict the configuration")
    if settings.cluster_health_interval_ms:
        yield _judged(HealthPoller(Expected.of(settings), 1.0, member=subject.provider.name).ask())


def _judged(health: ClusterHealth) -> Step:
    data = health.to_json()
    if health.error is not None:
        hint = "Give the process cloudhsm:DescribeClusters, or set clusterHealthIntervalMs to 0."
        return warn("cluster", health.error, hint, **data)
    zones = ", ".join(
        f"{zone}: {' and '.join(f'{count} {state}' for state, count in states.items())}"
        for zone, states in health.zones.items()
    )
    found = f"{health.cluster_id} is {health.state} ({zones or 'no HSMs'})"
    if health.problems:
        return warn("cluster", f"{found}: {'; '.join(health.problems)}", "See docs/operations/aws-cloudhsm.md.", **data)
    return ok("cluster", found, **data)
