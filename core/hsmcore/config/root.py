"""The key manager's configuration and the document around it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import orjson
from pydantic import Field, model_validator

from hsmcore.config.audit import AuditSettings
from hsmcore.config.base import Model, Text, Whole, child_path, clash, is_placeholder
from hsmcore.config.cloudhsm import AwsCloudHsmSettings
from hsmcore.config.members import all_members
from hsmcore.config.monitoring import Monitoring
from hsmcore.config.policy import CloudWatchLogs, Failover, require_lasting
from hsmcore.config.providers import Provider
from hsmcore.config.rotation import KeyRotation, Notices
from hsmcore.config.secret import Secret
from hsmcore.errors import ConfigFault, ConfigurationError

STATE_FILE = "hsmcore-state.db"
MAX_MESSAGE_BYTES = 1_048_575
MAX_QUEUE_SIZE = 65_536
# The rings are one mapping of queueSize * maxMessageBytes: more than this is a mistake, not a wish.
MAX_RING_BYTES = 4 << 30

AWS_VARIABLES = frozenset(
    {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_CONTAINER_AUTHORIZATION_TOKEN"}
)
"""Where the AWS SDK looks for credentials in the environment."""


def _single_flight_default(validated: dict[str, Any]) -> bool:
    return bool(validated.get("max_cache_size", 0))


class KeyManagerConfig(Provider):
    """`keyManager`: the provider that signs, and how requests, cache, audit, failover and rotation behave."""

    max_cache_size: Annotated[int, Whole(0, 100_000_000)] = 10_000
    """Signatures kept in memory; 0: no cache."""
    single_flight: bool = Field(default_factory=_single_flight_default)
    """Whether identical requests in flight share one signature. Default: where there is a cache."""
    cache_non_deterministic: bool = False
    """Whether signatures that differ each time (ECDSA) are served from the cache too."""
    request_timeout_ms: Annotated[int, Whole(1, 86_400_000)] = 10_000
    """The deadline of a request that names none."""
    queue_size: Annotated[int, Whole(1, MAX_QUEUE_SIZE)] = 4096
    """Requests in flight at most; beyond it callers wait."""
    max_message_bytes: Annotated[int, Whole(1, MAX_MESSAGE_BYTES)] = 16_384
    wake_coalesce_micros: Annotated[int, Whole(0, 1_000_000)] = 2000
    """How old a finished request may grow before the event loop is woken for it; 0: at once."""
    spin_micros: Annotated[int, Whole(0, 100_000)] = 50
    """How long an idle worker polls before it sleeps; 0: not at all."""
    warm_micros: Annotated[int, Whole(0, 100_000)] = 500
    """How long after an answer a processor is kept awake (idle priority) for the next lone request; 0: not at all."""
    audit_log_file: Annotated[str, Text(4096)] | None = None
    audit: AuditSettings | None = None
    """How the audit log is kept; the defaults where it is left out."""
    state_file: Annotated[str, Text(4096)] | None = None
    """What must survive a crash: the key ring, rotations, the emergency budget, the history of failovers. Default:
    `hsmcore-state.db` beside auditLogFile; without one, under $XDG_STATE_HOME/hsmcore."""
    cloud_watch_logs: CloudWatchLogs | None = None
    failover: Failover | None = None
    key_rotation: KeyRotation | None = None
    notices: Notices | None = None
    monitoring: Monitoring | None = None
    """Where `hsmcore serve` and `hsmcore.serve.attached` listen; the defaults where it is left out."""

    @model_validator(mode="after")
    def _possible(self) -> KeyManagerConfig:
        if self.queue_size * self.max_message_bytes > MAX_RING_BYTES:
            raise clash(
                f"queueSize times maxMessageBytes is {self.queue_size * self.max_message_bytes} bytes of memory; "
                f"at most {MAX_RING_BYTES} are allowed"
            )
        if self.audit is not None and self.audit_log_file is None:
            raise clash("has audit, but no auditLogFile to keep it in")
        if self.cloud_watch_logs is not None and self.audit_log_file is None:
            raise clash("has cloudWatchLogs, but no auditLogFile, whose records are what is copied there")
        require_lasting(self, "the key manager's own provider")
        return self

    @model_validator(mode="after")
    def _each_member_once(self) -> KeyManagerConfig:
        seen: list[tuple[Provider, str]] = []
        for name in ("primary", "secondary"):
            own = [(self, "the key manager itself")] if name == "primary" else []
            listed = getattr(self.failover, name, None) or ()
            for member, where in (*own, *((m, f"failover.{name}[{i}]") for i, m in enumerate(listed))):
                for other, there in seen:
                    if (other.type, other.config) == (member.type, member.config):
                        raise clash(f"{where} is the same member as {there}: it would fail together with itself")
                seen.append((member, where))
        return self

    @property
    def state_path(self) -> Path:
        """Where the state store is."""
        if self.state_file is not None:
            return Path(self.state_file)
        if self.audit_log_file is not None:
            return Path(self.audit_log_file).parent / STATE_FILE
        base = os.environ.get("XDG_STATE_HOME")
        return (Path(base) if base else Path.home() / ".local" / "state") / "hsmcore" / STATE_FILE

    @property
    def has_levels(self) -> bool:
        """Whether there is more than one place to sign: failover is on, or the provider has several members."""
        return (self.failover is not None and self.failover.enabled) or len(all_members((self,))) > 1

    @property
    def primary(self) -> tuple[Provider, ...]:
        """The members of the primary level: those of this provider first, then those that failover.primary adds."""
        more = self.failover.primary if self.failover is not None else None
        return all_members((self, *(more or ())))


class Config(Model):
    """A whole configuration. Make one with `hsmcore.config.load`."""

    key_manager: KeyManagerConfig

    def redacted(self) -> dict[str, Any]:
        """Everything, defaults included, as JSON-ready data in the document's own names; no secret is in it."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)

    def sha256(self) -> str:
        """The digest of `redacted()`, as hexadecimal: the same configuration has the same one."""
        return hashlib.sha256(orjson.dumps(self.redacted(), option=orjson.OPT_SORT_KEYS)).hexdigest()

    @property
    def placeholders(self) -> tuple[str, ...]:
        """The JSON paths where an example's blank, such as `<cluster-ip>`, still stands."""
        return tuple(_placeholders(self, self.where))

    @property
    def secret_variables(self) -> frozenset[str]:
        """The environment variables that hold secrets of this configuration. No child process may inherit them. AWS
        credentials are among them where this process uses them itself: the modules that it starts need none."""
        secrets = list(_secrets(self))
        found = frozenset(secret.variable for secret in secrets if secret.variable is not None)
        asks_aws = (
            any(secret.kind == "awsSecretsManager" for secret in secrets)
            or _has_cluster(self)
            or self.key_manager.cloud_watch_logs is not None
        )
        return found | AWS_VARIABLES if asks_aws else found

    def require_complete(self) -> None:
        """Raise ConfigurationError if placeholders are left. For whoever is about to connect."""
        if self.placeholders:
            raise ConfigurationError.of(
                ConfigFault(path, "is a placeholder: put in the real value") for path in self.placeholders
            )


def _secrets(value: object) -> Iterator[Secret]:
    if isinstance(value, Secret):
        yield value
    elif isinstance(value, Model):
        for name in type(value).model_fields:
            yield from _secrets(getattr(value, name))
    elif isinstance(value, tuple):
        for item in value:
            yield from _secrets(item)


def _has_cluster(value: object) -> bool:
    if isinstance(value, Model):
        parts = (getattr(value, name) for name in type(value).model_fields)
        return isinstance(value, AwsCloudHsmSettings) or any(_has_cluster(part) for part in parts)
    return isinstance(value, tuple) and any(_has_cluster(item) for item in value)


def _placeholders(value: object, path: str) -> Iterator[str]:
    if isinstance(value, Model):
        for name, field in type(value).model_fields.items():
            yield from _placeholders(getattr(value, name), child_path(path, field.alias or name))
    elif isinstance(value, tuple):
        for index, item in enumerate(value):
            yield from _placeholders(item, child_path(path, index))
    elif is_placeholder(value):
        yield path
    elif isinstance(value, Secret) and value.is_placeholder:
        yield value.where
