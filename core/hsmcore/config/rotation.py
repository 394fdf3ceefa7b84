"""Settings of key rotation and notices."""

from __future__ import annotations

import datetime
import difflib
import re
import zoneinfo
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BeforeValidator, field_validator, model_validator

from hsmcore.config.base import EndpointUrl, Model, Text, Whole, as_tuple, clash, fault, hidden_fault
from hsmcore.config.providers import Provider
from hsmcore.config.registry import descriptor_of, known_types
from hsmcore.config.secret import Secret
from hsmcore.config.targets import UNKNOWN, problem_of

BackupPolicy = Literal["require", "warn"]
NoticeKind = Literal["before", "rotation", "failure", "failover", "emergency"]

_KEY = Text(64, form=r"[0-9a-fA-F]{64}", says="32 bytes in hexadecimal")


def backup_place(value: str) -> str:
    """Return a place for backups. Raises a fault for one that there is not."""
    if "://" in value and re.fullmatch(r"(s3|gs|az|file)://[^\s@?]+", value) is None:
        raise hidden_fault("must be a folder, or s3://, gs://, az:// or file:// with a place and no credentials")
    return value


Place = Annotated[str, Text(2048, hidden=True), AfterValidator(backup_place)]


class Approver(Model):
    """A person who may approve rotations, by signing the request with the Ed25519 key whose public half is `publicKey`
    (hexadecimal)."""

    name: Annotated[str, Text(64)]
    """The name in approvals and in the audit log."""
    public_key: Annotated[str, _KEY]
    """The Ed25519 key whose signature of a request approves it."""

    @model_validator(mode="before")
    @classmethod
    def _no_codes(cls, value: Any) -> Any:
        if isinstance(value, dict) and "totp" in value:
            raise clash(
                "totp is gone: an approval is a signature. Name publicKey instead, the approver's Ed25519 key; "
                "`hsmcore rotate approve` prints the statement that is to be signed"
            )
        return value


class KeyCeremony(Model):
    """For tokens that cannot wrap their keys: a key is made in locked memory, sealed to `recoveryPublicKey` (X25519,
    hexadecimal) and imported so that it never leaves the token. The recovery key can restore it."""

    recovery_public_key: Annotated[str, _KEY]
    """The X25519 key to which each new key is sealed; its private half restores the key."""


class KeyRotation(Model):
    """When the key is replaced: every `intervalDays` at `rotationTime` in `timeZone`; the old key verifies for
    `overlapDays` more."""

    PATHS = frozenset({"backup_location"})

    enabled: bool = True
    """Whether keys are rotated. False keeps the settings without using them."""
    interval_days: Annotated[int, Whole(1, 3650)] = 30
    """Days between two rotations."""
    overlap_days: Annotated[int, Whole(0, 3650)] = 2
    """Days for which the old key verifies after the switch."""
    rotation_time: str = "00:00:00"
    """The time of day of a rotation, HH:MM:SS in timeZone."""
    time_zone: str = "UTC"
    """An IANA time zone, such as "Europe/Zurich"."""
    backup_enabled: bool = False
    """Whether each new key is backed up before it signs."""
    backup_location: Place | None = None
    """The place of the backups: a folder, or s3://, gs://, az:// or file://. Required with backupEnabled."""
    backup_endpoint_url: EndpointUrl | None = None
    """Another S3 endpoint than the region's public one."""
    backup_policy: BackupPolicy = "require"
    """The result of a rotation whose new key cannot be backed up, or whose backup cannot be restored: a failure, or a
    warning."""
    key_ceremony: KeyCeremony | None = None
    """For tokens that cannot wrap their keys: how a new key gets its backup. Default: the token wraps it."""
    drill: Provider | None = None
    """The token that restore drills use; no key is named. Default: the key's own."""
    destroy_after_days: Annotated[int, Whole(0, 36500)] | None = None
    """Days between a key's deactivation and its destruction; without it no key is destroyed."""
    require_handover: bool = False
    """Whether a rotation is refused while no handover is registered."""
    key_set_good_for_hours: Annotated[int, Whole(1, 87_600)] | None = None
    """Hours for which a signed set of the keys is good; it is renewed after half of them. Default: it says no end."""
    approvals: Annotated[int, Whole(0, 20)] = 0
    """The number of approvers that each rotation needs."""
    approvers: Annotated[tuple[Approver, ...], BeforeValidator(as_tuple)] = ()
    """The persons who may approve rotations."""

    @field_validator("rotation_time")
    @classmethod
    def _time_exists(cls, value: str) -> str:
        if re.fullmatch(r"([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]", value) is None:
            raise fault("must be a time of day as HH:MM:SS, from 00:00:00 to 23:59:59")
        return value

    @field_validator("time_zone")
    @classmethod
    def _zone_exists(cls, value: str) -> str:
        try:
            zoneinfo.ZoneInfo(value)
        except (KeyError, ValueError, OSError):
            near = difflib.get_close_matches(value, zoneinfo.available_timezones(), 1)
            raise fault(
                'must be an IANA time zone such as "UTC" or "Europe/Zurich"'
                + (f' (did you mean "{near[0]}"?)' if near else "")
            ) from None
        return value

    @field_validator("drill", mode="before")
    @classmethod
    def _no_key_is_signed_with(cls, value: Any) -> Any:
        """Name a key for drills: their token holds no key between drills, so its settings need not name one."""
        config = value.get("config") if isinstance(value, dict) else None
        if not isinstance(config, dict) or value.get("type") not in known_types():
            return value
        in_uri = re.search(r"[:;](object|id)=", str(config.get("uri", "")))
        if in_uri or not config.keys().isdisjoint(("keyLabel", "keyId", "keyHandle")):
            return value  # it names one; another name could contradict it
        if "key_label" not in descriptor_of(value["type"]).settings.model_fields:
            return value
        return value | {"config": {"keyLabel": "hsmcore-drill"} | config}

    @model_validator(mode="after")
    def _fits_together(self) -> KeyRotation:
        if self.overlap_days > self.interval_days:
            raise clash(f"overlapDays ({self.overlap_days}) is longer than intervalDays ({self.interval_days})")
        if self.backup_enabled and self.backup_location is None:
            raise clash("backupEnabled is true, but backupLocation is missing")
        if self.key_ceremony is not None and not self.backup_enabled:
            raise clash("keyCeremony makes backups, but backupEnabled is false")
        names = [approver.name for approver in self.approvers]
        if len(set(names)) != len(names):
            raise clash("approvers must have different names")
        if len({approver.public_key.lower() for approver in self.approvers}) != len(names):
            raise clash("approvers must have different publicKeys: the same key is the same person")
        if self.approvals > len(names):
            raise clash(f"approvals is {self.approvals}, but approvers names {len(names)}")
        return self

    @property
    def time_of_day(self) -> datetime.time:
        """`rotationTime` without a zone."""
        return datetime.time.fromisoformat(self.rotation_time)

    @property
    def zone(self) -> zoneinfo.ZoneInfo:
        """`timeZone`."""
        return zoneinfo.ZoneInfo(self.time_zone)


def _understood(target: Secret) -> Secret:
    """Return a target. Raises a fault for one in plain text that apprise, where it is installed, does not understand; a
    reference is not resolved before the start."""
    if target.kind == "plain" and not target.is_placeholder and problem_of(target) == UNKNOWN:
        raise hidden_fault(UNKNOWN)
    return target


class Notices(Model):
    """The recipients of notices of rotations and failovers. A target is an apprise URL (https://appriseit.com), such as
    "mailto://…", "slack://…", "sns://…" or "jsons://host/path" for a webhook: a secret, since it holds credentials."""

    targets: Annotated[tuple[Annotated[Secret, AfterValidator(_understood)], ...], BeforeValidator(as_tuple)]
    """The recipients, each an apprise URL."""
    kinds: Annotated[tuple[NoticeKind, ...], BeforeValidator(as_tuple)] = get_args(NoticeKind)
    """The kinds of notices that are sent. Default: all of them."""
    before_hours: Annotated[int, Whole(1, 8760)] = 24
    """The hours between the notice of a rotation and the rotation."""

    @field_validator("targets")
    @classmethod
    def _somebody(cls, value: tuple[Secret, ...]) -> tuple[Secret, ...]:
        if not value:
            raise clash("must list at least one target")
        return value


class StateBackup(Model):
    """`stateBackup`: the state store is backed up every `everyHours` hours into `location`, and the newest backup is
    restored into a temporary place every `drillHours` hours."""

    PATHS = frozenset({"location"})

    location: Place
    """The place of the backups: a folder, or s3://, gs://, az:// or file://."""
    endpoint_url: EndpointUrl | None = None
    """Another S3 endpoint than the region's public one."""
    every_hours: Annotated[int, Whole(1, 8760)] = 1
    """Hours between two backups."""
    drill_hours: Annotated[int, Whole(1, 8760)] = 24
    """Hours between two restores of the newest backup into a temporary place."""
