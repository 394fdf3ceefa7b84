"""Configuration documents, right ones and the faults of wrong ones."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from hsmcore.config import load
from hsmcore.config.base import Model, child_path
from hsmcore.errors import ConfigFault, ConfigurationError

# The customer's configuration, to the letter.
SEED = """
{
  "sequencer": {
    "keyManager": {
      "type": "aws-cloudhsm",
      "config": {
        "clusterEndpoint": "<cluster-ip>",
        "username": "sequencer-user",
        "password": "password",
        "keyHandle": "<key-handle>",
        "region": "us-east-1"
      },
      "maxCacheSize": 10000,
      "auditLogFile": "audit/audit.log",
      "failover": {
        "enabled": true,
        "primaryRetryIntervalMs": 5000,
        "maxPrimaryRetries": 3,
        "secondaryRetryIntervalMs": 10000,
        "maxSecondaryRetries": 3,
        "emergencyModeEnabled": true,
        "emergencyModeRestrictions": {
          "maxTransactions": 1000,
          "maxTimeSeconds": 3600,
          "allowedOperations": ["sign"]
        }
      },
      "keyRotation": {
        "enabled": true,
        "intervalDays": 30,
        "overlapDays": 2,
        "rotationTime": "00:00:00",
        "timeZone": "UTC",
        "backupEnabled": true,
        "backupLocation": "s3://layer2-key-backups"
      }
    }
  }
}
"""

SOFTHSM = """
{"sequencer": {"keyManager": {"type": "softhsm", "config": {"modulePath": "/usr/lib/softhsm/libsofthsm2.so",
  "tokenLabel": "sequencer", "pin": {"env": "HSM_PIN"}, "keyLabel": "sequencer-key", "sessions": 2},
  "maxCacheSize": 10000}}}
"""

SOFT = {"keyLabel": "k", "pin": {"env": "P"}}

CLOUD = {"keyLabel": "k", "username": "u", "password": {"env": "P"}}

YUBI = {"keyLabel": "k", "authKeyId": 1, "password": {"env": "P"}}

OTHER = {"keyLabel": "k", "modulePath": "/m.so"}


def everything() -> dict[str, Any]:
    """A valid document that has every kind of object in it."""
    document: dict[str, Any] = json.loads(SEED)
    manager = document["sequencer"]["keyManager"]
    softhsm = json.loads(SOFTHSM)["sequencer"]["keyManager"]
    manager["cloudWatchLogs"] = {"logGroup": "/hsm/audit", "logStream": "sequencer-1", "region": "eu-west-1"}
    manager["config"]["password"] = {"awsSecretsManager": {"secretId": "prod/hsm", "key": "password"}}
    manager["failover"]["primary"] = [{"type": "softhsm", "config": softhsm["config"]}]
    manager["failover"]["secondary"] = [
        {"type": "yubihsm", "config": {"authKeyId": 1, "password": {"file": "/run/yubihsm"}, "keyId": "0001"}},
        {"type": "pkcs11", "config": {"uri": "pkcs11:object=k?module-path=/m.so"}},
        {"type": "aws-kms", "config": {"keyId": "alias/sequencer", "region": "eu-west-1"}},
    ]
    manager["failover"]["emergency"] = [{"type": "ephemeral", "config": {}}]
    return document


def manager(type_: str = "softhsm", config: Any = None, **keys: Any) -> dict[str, Any]:
    if config is None:
        config = {"tokenLabel": "sequencer", "pin": {"env": "HSM_PIN"}, "keyLabel": "sequencer-key"}
    return {"keyManager": {"type": type_, "config": config, **keys}}


def faults(document: object) -> list[ConfigFault]:
    with pytest.raises(ConfigurationError) as caught:
        load(document)  # type: ignore[arg-type]
    assert caught.value.faults
    for fault in caught.value.faults:
        assert str(fault) in str(caught.value)
    assert not caught.value.retryable
    return list(caught.value.faults)


def only(document: object) -> tuple[str, str]:
    (fault,) = faults(document)
    return fault.path, fault.problem


def objects(value: object, path: str = "$") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every object of a document with its path."""
    if isinstance(value, dict):
        yield path, value
        for key, item in value.items():
            yield from objects(item, child_path(path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from objects(item, child_path(path, index))


def known_keys(model: type[Model] = Model) -> set[str]:
    names = {field.alias or name for name, field in model.model_fields.items()}
    return names.union({"sequencer"}, *(known_keys(child) for child in model.__subclasses__()))


def listed(*labels: str, **rules: Any) -> dict[str, Any]:
    """A key manager without a provider of its own: those of failover.primary, by token."""
    members = [{"type": "softhsm", "config": {**SOFT, "tokenLabel": label}} for label in labels]
    return {"keyManager": {"failover": {"primary": members, **rules}}}
