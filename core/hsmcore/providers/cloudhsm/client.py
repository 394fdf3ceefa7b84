"""The configuration file of Client SDK 5's PKCS#11 library: the clusters that it connects to.

`configure-pkcs11` writes it as JSON: `clusters`, each with `type` and `cluster`, in which `servers` have a `hostname`.
The place of a cluster's id and region is not documented, so all texts of a cluster are searched for them.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hsmcore.errors import ConfigFault
from hsmcore.providers.cloudhsm.settings import CLIENT_CONFIG

if TYPE_CHECKING:
    from hsmcore.providers.cloudhsm.settings import AwsCloudHsmSettings

_CLUSTER = re.compile(r"cluster-[0-9a-z]+")
_REGION = re.compile(r"[a-z]{2}(?:-[a-z]+)+-[0-9]")
_MAX_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class ClientCluster:
    """One cluster of the file. The order of clusters is that of the slots."""

    cluster_id: str | None
    region: str | None
    servers: tuple[str, ...]
    """Host names or addresses of HSMs that the library may use."""


class ClientUnreadable(Exception):
    """The file does not have the form that configure-pkcs11 writes; the text says why."""


def read_client(path: str) -> list[ClientCluster] | None:
    """Return the clusters of the file; None if there is no file. Raises ClientUnreadable."""
    try:
        with Path(path).open("rb") as file:
            raw = file.read(_MAX_BYTES + 1)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ClientUnreadable(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    try:
        return [_cluster(cluster) for cluster in json.loads(raw)["clusters"]]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ClientUnreadable(
            f"{path} is not what configure-pkcs11 writes: no list of clusters with servers"
        ) from None


def check_client(settings: AwsCloudHsmSettings) -> list[ConfigFault]:
    """Return contradictions to the library's own configuration, which would make it use another cluster."""
    path = settings.client_config or CLIENT_CONFIG
    where = settings.where
    try:
        clusters = read_client(path)
    except ClientUnreadable as error:
        return [ConfigFault(f"{where}.clientConfig", str(error))]
    if clusters is None:
        missing = ConfigFault(f"{where}.clientConfig", f"there is no file {path}: run configure-pkcs11 for the cluster")
        return [] if settings.client_config is None else [missing]
    faults = []
    cluster_id, endpoint, region = settings.cluster_id, settings.cluster_endpoint, settings.region
    known = [cluster.cluster_id for cluster in clusters]
    if cluster_id is not None and None not in known and cluster_id not in known:
        ids = ", ".join(str(name) for name in known)
        faults.append(ConfigFault(f"{where}.clusterId", f"the library is configured for {ids} ({path})"))
    meant = [cluster for cluster in clusters if cluster_id is not None and cluster.cluster_id == cluster_id] or clusters
    servers = [server for cluster in meant for server in cluster.servers]
    if endpoint is not None and not any(_may_be_same(endpoint, server) for server in servers):
        shown = ", ".join(servers) or "no server"
        problem = f"the library is configured for {shown} ({path}): run configure-pkcs11 -a with this address"
        faults.append(ConfigFault(f"{where}.clusterEndpoint", problem))
    regions = {cluster.region for cluster in meant}
    if region is not None and None not in regions and region not in regions:
        shown = ", ".join(sorted(str(name) for name in regions))
        faults.append(ConfigFault(f"{where}.region", f"the library is configured for {shown} ({path})"))
    return faults


def _cluster(cluster: dict[str, Any]) -> ClientCluster:
    servers = cluster["cluster"]["servers"]
    hosts = tuple(str(server["hostname"]) for server in servers if server.get("enable", True))
    rest = {**cluster, "cluster": {key: value for key, value in cluster["cluster"].items() if key != "servers"}}
    texts = list(_texts(rest))
    return ClientCluster(_only(_CLUSTER, texts), _only(_REGION, texts), hosts)


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)


def _only(pattern: re.Pattern[str], texts: list[str]) -> str | None:
    """Return the one value that matches; None if there is none, or several."""
    found = {text for text in texts if pattern.fullmatch(text)}
    return found.pop() if len(found) == 1 else None


def _may_be_same(one: str, other: str) -> bool:
    """Return False only if the hosts certainly differ: a name and an address may belong to the same host."""
    first, second = _address(one), _address(other)
    if first is None and second is None:
        return one.lower().rstrip(".") == other.lower().rstrip(".")
    return first is None or second is None or first == second


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return None
