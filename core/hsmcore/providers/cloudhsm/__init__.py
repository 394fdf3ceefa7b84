"""Parts of an AWS CloudHSM cluster apart from its PKCS#11 library: the library's own configuration file, and AWS's view
of the cluster's HSMs. Nothing here takes part in signing."""

from hsmcore.errors import ConfigurationError
from hsmcore.providers.cloudhsm.client import ClientCluster, check_client, read_client
from hsmcore.providers.cloudhsm.health import ClusterHealth, Expected, HsmHealth, describe_cluster
from hsmcore.providers.cloudhsm.poller import HealthPoller
from hsmcore.providers.cloudhsm.settings import AwsCloudHsmSettings

__all__ = [
    "ClientCluster",
    "ClusterHealth",
    "HealthPoller",
    "HsmHealth",
    "check_client",
    "cluster_health",
    "describe_cluster",
    "read_client",
]


def cluster_health(settings: AwsCloudHsmSettings) -> ClusterHealth:
    """Ask AWS once. Blocks. Raises ConfigurationError if the library is configured for another cluster."""
    faults = check_client(settings)
    if faults:
        raise ConfigurationError.of(faults)
    return HealthPoller(Expected.of(settings), 1.0, member="cluster").ask()
