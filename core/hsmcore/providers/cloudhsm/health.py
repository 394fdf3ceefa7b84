"""The health of a cluster, as AWS describes it (cloudhsmv2 DescribeClusters)."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, Self

from pydantic.alias_generators import to_camel

from hsmcore.providers.cloudhsm.settings import AwsCloudHsmSettings

ACTIVE: Final = "ACTIVE"
_FEWEST_ACTIVE: Final = 2
"""With fewer active HSMs, one failure stops all signing."""


@dataclass(frozen=True, slots=True)
class HsmHealth:
    """One HSM of the cluster."""

    hsm_id: str
    zone: str
    """Availability zone."""
    state: str
    """ACTIVE, CREATE_IN_PROGRESS, DEGRADED, DELETE_IN_PROGRESS or DELETED."""
    address: str | None


@dataclass(frozen=True, slots=True)
class ClusterHealth:
    """A cluster at one moment. `error`: why nothing newer is known; the other fields are then the last answer's."""

    cluster_id: str | None = None
    region: str | None = None
    state: str | None = None
    """ACTIVE, DEGRADED, UPDATE_IN_PROGRESS and others; None: no successful answer yet."""
    mode: str | None = None
    """FIPS or NON_FIPS."""
    hsm_type: str | None = None
    hsms: tuple[HsmHealth, ...] = ()
    problems: tuple[str, ...] = ()
    """Problems that need an operator's attention."""
    checked_at: float | None = None
    """Unix time of the last answer, in seconds."""
    error: str | None = None

    @property
    def active(self) -> int:
        """Number of HSMs that can sign."""
        return sum(hsm.state == ACTIVE for hsm in self.hsms)

    @property
    def ok(self) -> bool:
        """Whether the health is known and nothing needs attention."""
        return self.state is not None and self.error is None and not self.problems

    @property
    def zones(self) -> dict[str, dict[str, int]]:
        """Number of HSMs by availability zone and state."""
        found: dict[str, Counter[str]] = {}
        for hsm in self.hsms:
            found.setdefault(hsm.zone, Counter())[hsm.state] += 1
        return {zone: dict(states) for zone, states in sorted(found.items())}

    def to_json(self) -> dict[str, Any]:
        """Return the fields for JSON, in camelCase. None is secret."""
        hsms = [{to_camel(name): value for name, value in asdict(hsm).items()} for hsm in self.hsms]
        own = {to_camel(name): value for name, value in asdict(self).items()}
        counted = {"ok": self.ok, "active": self.active, "zones": self.zones}
        return {**own, **counted, "hsms": hsms, "problems": list(self.problems)}


@dataclass(frozen=True, slots=True)
class Expected:
    """Properties of the cluster that the configuration names."""

    cluster_id: str | None = None
    endpoint: str | None = None
    algorithm: str | None = None
    region: str | None = None

    @classmethod
    def of(cls, settings: AwsCloudHsmSettings) -> Self:
        return cls(settings.cluster_id, settings.cluster_endpoint, settings.algorithm, settings.region)


def describe_cluster(client: Any, expected: Expected) -> ClusterHealth:
    """Ask once. `client` is boto3's for "cloudhsmv2". Blocks. Raises the errors of botocore."""
    for cluster in _clusters(client, expected):
        hsms = tuple(sorted(map(_hsm, cluster.get("Hsms") or ()), key=lambda hsm: (hsm.zone, hsm.hsm_id)))
        addresses = {value for hsm in cluster.get("Hsms") or () for value in (hsm.get("EniIp"), hsm.get("EniIpV6"))}
        if expected.cluster_id is None and expected.endpoint not in addresses:
            continue
        found = ClusterHealth(
            cluster_id=cluster.get("ClusterId"),
            region=expected.region,
            state=cluster.get("State"),
            mode=cluster.get("Mode"),
            hsm_type=cluster.get("HsmType"),
            hsms=hsms,
            checked_at=time.time(),
        )
        return replace(found, problems=tuple(_problems(found, expected, addresses)))
    which = expected.cluster_id or f"a cluster with an HSM at {expected.endpoint}"
    problem = f"AWS knows no {which} in {expected.region or 'this region'} with these credentials"
    return ClusterHealth(expected.cluster_id, expected.region, "UNKNOWN", problems=(problem,), checked_at=time.time())


def _clusters(client: Any, expected: Expected) -> Iterator[dict[str, Any]]:
    request: dict[str, Any] = {}
    if expected.cluster_id is not None:
        request["Filters"] = {"clusterIds": [expected.cluster_id]}
    while True:
        answer = client.describe_clusters(**request)
        yield from answer.get("Clusters") or ()
        if not answer.get("NextToken"):
            return
        request["NextToken"] = answer["NextToken"]


def _hsm(hsm: dict[str, Any]) -> HsmHealth:
    return HsmHealth(
        hsm_id=str(hsm.get("HsmId", "?")),
        zone=str(hsm.get("AvailabilityZone", "?")),
        state=str(hsm.get("State", "?")),
        address=hsm.get("EniIp") or hsm.get("EniIpV6"),
    )


def _problems(health: ClusterHealth, expected: Expected, addresses: set[str | None]) -> Iterator[str]:
    if health.state != ACTIVE:
        yield f"the cluster is {health.state}"
    if health.active == 0:
        yield "no HSM is active"
    elif health.active < _FEWEST_ACTIVE:
        yield "only one HSM is active: nothing signs if it fails, and new keys cannot be synchronized"
    elif len({hsm.zone for hsm in health.hsms if hsm.state == ACTIVE}) < _FEWEST_ACTIVE:
        yield "all active HSMs are in one availability zone"
    for hsm in health.hsms:
        if hsm.state != ACTIVE:
            yield f"HSM {hsm.hsm_id} in {hsm.zone} is {hsm.state}"
    if expected.endpoint is not None and expected.endpoint[:1].isdigit() and expected.endpoint not in addresses:
        yield f"clusterEndpoint {expected.endpoint} is no HSM of this cluster: run configure-pkcs11 again"
    if expected.algorithm == "ed25519" and health.mode == "FIPS":
        yield "the cluster is in FIPS mode, in which it does not sign Ed25519"
