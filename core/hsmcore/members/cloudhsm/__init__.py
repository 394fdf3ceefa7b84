"""What is known of an AWS CloudHSM cluster beside its PKCS#11 library: the library's own configuration file, and what
AWS says of the cluster's HSMs. Nothing here takes part in signing."""

from hsmcore.members.cloudhsm.client import ClientCluster, check_client, read_client
from hsmcore.members.cloudhsm.health import ClusterHealth, HsmHealth, describe_cluster
from hsmcore.members.cloudhsm.poller import HealthPoller

__all__ = [
    "ClientCluster",
    "ClusterHealth",
    "HealthPoller",
    "HsmHealth",
    "check_client",
    "describe_cluster",
    "read_client",
]
