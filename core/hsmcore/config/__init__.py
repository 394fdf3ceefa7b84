"""Configuration: one tree of frozen models, loaded and checked as a whole before anything starts.

Reading order: loading, root, several, providers, descriptor, registry; pkcs11; failover, fleet, policy, gateway,
rotation, audit, monitoring, credentials, secret; then base, faults, uri, placed, secretsmanager, described, schema.
"""

from typing import TYPE_CHECKING

from hsmcore.base.lazy import names

if TYPE_CHECKING:
    from hsmcore.config.audit import AuditSettings, AuditSigningKey
    from hsmcore.config.descriptor import ProviderDescriptor, ProviderSettings
    from hsmcore.config.failover import CloudWatchLogs, EmergencyModeRestrictions, Failover
    from hsmcore.config.fleet import Fleet, FleetStore
    from hsmcore.config.gateway import Gateway, GatewayClient, GatewayTls
    from hsmcore.config.loading import Source, load, load_each
    from hsmcore.config.monitoring import Monitoring, MonitoringTls
    from hsmcore.config.pkcs11 import GenericPkcs11Settings, Pkcs11Settings
    from hsmcore.config.policy import Batching, CallerRules, PayloadFormat, Policy, TransactionRules
    from hsmcore.config.providers import Provider, all_members, members_of
    from hsmcore.config.root import Config, KeyManagerConfig
    from hsmcore.config.rotation import Approver, KeyCeremony, KeyRotation, Notices
    from hsmcore.config.secret import AwsSecretsManagerReference, Secret

__all__ = [
    "Approver",
    "AuditSettings",
    "AuditSigningKey",
    "AwsSecretsManagerReference",
    "Batching",
    "CallerRules",
    "CloudWatchLogs",
    "Config",
    "EmergencyModeRestrictions",
    "Failover",
    "Fleet",
    "FleetStore",
    "Gateway",
    "GatewayClient",
    "GatewayTls",
    "GenericPkcs11Settings",
    "KeyCeremony",
    "KeyManagerConfig",
    "KeyRotation",
    "Monitoring",
    "MonitoringTls",
    "Notices",
    "PayloadFormat",
    "Pkcs11Settings",
    "Policy",
    "Provider",
    "ProviderDescriptor",
    "ProviderSettings",
    "Secret",
    "Source",
    "TransactionRules",
    "all_members",
    "load",
    "load_each",
    "members_of",
]

# Loaded when they are used: a child of this process needs a word of them, not the models.
if not TYPE_CHECKING:
    __getattr__ = names(
        __name__,
        {
            "audit": ["AuditSettings", "AuditSigningKey"],
            "descriptor": ["ProviderDescriptor", "ProviderSettings"],
            "failover": ["CloudWatchLogs", "EmergencyModeRestrictions", "Failover"],
            "fleet": ["Fleet", "FleetStore"],
            "gateway": ["Gateway", "GatewayClient", "GatewayTls"],
            "loading": ["Source", "load", "load_each"],
            "monitoring": ["Monitoring", "MonitoringTls"],
            "pkcs11": ["GenericPkcs11Settings", "Pkcs11Settings"],
            "policy": ["Batching", "CallerRules", "PayloadFormat", "Policy", "TransactionRules"],
            "providers": ["Provider", "all_members", "members_of"],
            "root": ["Config", "KeyManagerConfig"],
            "rotation": ["Approver", "KeyCeremony", "KeyRotation", "Notices"],
            "secret": ["AwsSecretsManagerReference", "Secret"],
        },
    )
