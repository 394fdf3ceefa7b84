"""A provider, `{"type": …, "config": {…}}`, wherever the configuration names one."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, ValidatorFunctionWrapHandler, field_validator

from hsmcore.config.base import Model, Text
from hsmcore.config.cloudhsm import AwsCloudHsmSettings
from hsmcore.config.pkcs11 import (
    Algorithm,
    GenericPkcs11Settings,
    KeyPin,
    Pkcs11Settings,
    Region,
    SoftHsmSettings,
    YubiHsmSettings,
)

ProviderType = Literal["softhsm", "aws-cloudhsm", "yubihsm", "pkcs11", "aws-kms", "ephemeral"]


class AwsKmsSettings(KeyPin):
    """A signing key in AWS KMS, by id, ARN or alias; credentials come from the AWS SDK's own chain."""

    key_id: Annotated[str, Text(2048)]
    region: Region | None = None


class EphemeralSettings(Model):
    """A key that lives in this process's locked memory only, made for the emergency level."""

    algorithm: Algorithm = "ed25519"
    allow_ephemeral_primary: bool = False


ProviderSettings = (
    SoftHsmSettings | AwsCloudHsmSettings | YubiHsmSettings | GenericPkcs11Settings | AwsKmsSettings | EphemeralSettings
)

SETTINGS_OF_TYPE: dict[str, type[ProviderSettings]] = {
    "softhsm": SoftHsmSettings,
    "aws-cloudhsm": AwsCloudHsmSettings,
    "yubihsm": YubiHsmSettings,
    "pkcs11": GenericPkcs11Settings,
    "aws-kms": AwsKmsSettings,
    "ephemeral": EphemeralSettings,
}

# What to do when the provider's software is not on the machine.
INSTALL_HINT_OF_TYPE: dict[str, str] = {
    "softhsm": "Install SoftHSM (apt-get install softhsm2), or correct modulePath.",
    "aws-cloudhsm": "Install the PKCS#11 library of AWS CloudHSM Client SDK 5 (package cloudhsm-pkcs11, from AWS) "
    "and run /opt/cloudhsm/bin/configure-pkcs11 for the cluster, or correct modulePath.",
    "yubihsm": "Install the YubiHSM module (apt-get install yubihsm-pkcs11 yubihsm-connector), or correct modulePath.",
    "pkcs11": "Install the vendor's PKCS#11 module, or correct modulePath.",
    "aws-kms": "Signing with AWS KMS is not part of this version: use a provider that has a PKCS#11 module.",
    "ephemeral": "Signing with ephemeral keys is not part of this version: use a provider that has a PKCS#11 module.",
}


class Provider(Model):
    """One provider. `type` decides which keys `config` may have."""

    type: ProviderType
    config: ProviderSettings = Field(default_factory=dict, validate_default=True)

    @field_validator("config", mode="wrap")
    @classmethod
    def _by_type(cls, value: Any, _handler: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
        settings = SETTINGS_OF_TYPE.get(info.data.get("type", ""))
        # Without a type nothing can be said about the rest; the fault in `type` is reported by itself.
        return value if settings is None else settings.model_validate(value, context=info.context)

    @property
    def name(self) -> str:
        """The member's name in messages, receipts and logs, such as "softhsm:sequencer". Holds no secret."""
        settings = self.config
        which: object = None
        if isinstance(settings, AwsCloudHsmSettings):
            which = settings.cluster_id or settings.cluster_endpoint
        elif isinstance(settings, YubiHsmSettings):
            which = ",".join(settings.connector_urls)
        elif isinstance(settings, AwsKmsSettings):
            which = settings.key_id
        if which is None and isinstance(settings, Pkcs11Settings):
            which = settings.token_label or settings.token_serial or settings.slot_id
        return self.type if which is None else f"{self.type}:{which}"

    @property
    def install_hint(self) -> str:
        """What to install when the provider's software is missing."""
        return INSTALL_HINT_OF_TYPE[self.type]
