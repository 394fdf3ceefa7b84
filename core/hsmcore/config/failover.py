"""Settings of failover and of copies of the audit log."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator, model_validator

from hsmcore.config.base import EndpointUrl, Model, Text, Whole, as_tuple, clash, each_once
from hsmcore.config.pkcs11 import Region
from hsmcore.config.providers import Provider

Operation = Literal[
    "sign", "verify", "generateKey", "getCurrentKeyId", "setCurrentKeyId", "deactivateKey", "exportKeyBackup"
]
FailoverMode = Literal["smart", "literal"]
KeyLevel = Literal["primary", "secondary"]

_HOUR_MS = 3_600_000
Members = Annotated[tuple[Provider, ...], BeforeValidator(as_tuple)]


class CloudWatchLogs(Model):
    """The destination of copies of audit records. The default region is that of the AWS SDK's own settings. Group and
    stream are made if they are missing and the credentials allow it."""

    log_group: Annotated[str, Text(512, form=r"[\w./#-]+", says="a log group name: letters, digits and _ - / . #")]
    """The log group."""
    log_stream: Annotated[str, Text(512, form=r"[^:*]+", says="a log stream name without : and *")]
    """The log stream."""
    region: Region | None = None
    """The region. Default: the AWS SDK's own settings."""
    endpoint_url: EndpointUrl | None = None
    """Another endpoint than the region's public one, such as that of a VPC endpoint."""


class EmergencyModeRestrictions(Model):
    """The limits of an emergency key from its first signature on: signatures, seconds, operations."""

    max_transactions: Annotated[int, Whole(1, 2**53)] = 1000
    """Signatures that one emergency key may make."""
    max_time_seconds: Annotated[int, Whole(1, 366 * 86400)] = 3600
    """The time in which one emergency key may sign."""
    allowed_operations: Annotated[tuple[Operation, ...], BeforeValidator(as_tuple), each_once("operation")] = ("sign",)
    """The operations that are allowed while the emergency level signs."""

    @field_validator("allowed_operations")
    @classmethod
    def _allow_something(cls, value: tuple[Operation, ...]) -> tuple[Operation, ...]:
        if "sign" not in value:
            raise clash('must list "sign": an emergency key that may not sign is of no use')
        return value


class Failover(Model):
    """Levels and how they are retried. The key manager's own provider is the first member of the primary level; the
    lists add members. Intervals are milliseconds. Without an `emergency` list that level is one ephemeral key.

    A member signs with another key than the current one only if `acceptOtherKeys` names its level: it says that the
    chain accepts the keys of that level. The emergency level always has its own key; `emergencyModeEnabled` says that
    the chain accepts it."""

    enabled: bool = True
    """Whether there are levels. False: the key manager has its own provider only."""
    mode: FailoverMode = "smart"
    """How a failed request is repeated: on another member at once, or on the same one after the interval, to the letter
    of the settings."""
    primary_retry_interval_ms: Annotated[int, Whole(1, _HOUR_MS)] = 5000
    """The time between retries, and between probes, of the primary level."""
    max_primary_retries: Annotated[int, Whole(1, 1000)] = 3
    """Intervals for which a primary level without a member is waited for."""
    secondary_retry_interval_ms: Annotated[int, Whole(1, _HOUR_MS)] = 10000
    """The time between retries, and between probes, of the secondary level."""
    max_secondary_retries: Annotated[int, Whole(1, 1000)] = 3
    """Intervals for which a secondary level without a member is waited for."""
    emergency_mode_enabled: bool = False
    """Whether there is an emergency level, whose key the chain accepts."""
    emergency_mode_restrictions: EmergencyModeRestrictions = Field(default_factory=EmergencyModeRestrictions)
    """The limits of an emergency key."""
    emergency_delay_ms: Annotated[int, Whole(0, _HOUR_MS)] | None = None
    """The shortest time that all other levels are down before the emergency level is entered. Default: none after an
    error or a failed probe, 2000 while a member is only suspected, since it is late."""
    accept_other_keys: Annotated[tuple[KeyLevel, ...], BeforeValidator(as_tuple), each_once("level", least=0)] = ()
    """Levels whose members may hold another key than the current one."""
    failback_ramp_ms: Annotated[int, Whole(0, _HOUR_MS)] = 10_000
    """The time in which the load of a restored member grows to its whole share; 0: at once."""
    hedging: bool = False
    """Whether a second member with the same key is asked when the first is slower than its 99th percentile."""
    primary: Members | None = None
    """Further members of the primary level; all of them, if the key manager names no provider."""
    secondary: Members | None = None
    """The members of the secondary level. Default: there is none."""
    emergency: Members | None = None
    """The members of the emergency level. Default: one key in memory."""

    @field_validator("primary", "secondary", "emergency")
    @classmethod
    def _fit_the_level(cls, value: Members | None, info: ValidationInfo) -> Members | None:
        if value is not None and not value:
            raise clash("must list at least one provider; leave the key out for none")
        for index, member in enumerate(value or ()):
            if info.field_name != "emergency":
                require_lasting(member, f"member {index}")
            elif not member.descriptor.ephemeral:
                raise clash('must list only providers of type "ephemeral", or others whose keys end with the process')
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> Failover:
        if "secondary" in self.accept_other_keys and self.secondary is None:
            raise clash('acceptOtherKeys names "secondary", but there is no secondary level')
        if "primary" in self.accept_other_keys and self.primary is None:
            raise clash('acceptOtherKeys names "primary", but failover.primary adds no member to that level')
        if self.emergency is not None and not self.emergency_mode_enabled:
            raise clash("lists an emergency level, but emergencyModeEnabled is false")
        return self

    @property
    def emergency_level(self) -> tuple[Provider, ...]:
        """The providers of the emergency level, if there is one."""
        if self.emergency is not None:
            return self.emergency
        default = Provider(type="ephemeral")
        default.locate(f"{self.where}.emergency")
        return (default,)


def require_lasting(member: Provider, what: str) -> None:
    """Refuse an ephemeral key outside the emergency level unless its settings consent."""
    if member.descriptor.ephemeral and not getattr(member.config, "allow_ephemeral_primary", False):
        raise clash(
            f'{what} is of type "{member.type}": its key is lost when the process ends, so it is for emergencies only; '
            'set "allowEphemeralPrimary": true in its config if that is what you want'
        )
