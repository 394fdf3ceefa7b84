"""A provider, `{"type": …, "config": {…}}`, wherever the configuration names one."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import (
    Field,
    PrivateAttr,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    field_validator,
)

from hsmcore.config.base import Model
from hsmcore.config.cloudhsm import AwsCloudHsmSettings
from hsmcore.config.ephemeral import EphemeralSettings
from hsmcore.config.kms import AwsKmsSettings
from hsmcore.config.pkcs11 import GenericPkcs11Settings, Pkcs11Settings
from hsmcore.config.softhsm import SoftHsmSettings
from hsmcore.config.yubihsm import YubiHsmSettings

ProviderType = Literal["softhsm", "aws-cloudhsm", "yubihsm", "pkcs11", "aws-kms", "ephemeral"]

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

# As the native core's quirks have it; and for KMS, a service far away.
PATIENCE_MS_OF_TYPE: dict[str, int] = {"yubihsm": 2000, "aws-cloudhsm": 1000, "aws-kms": 2000}

# What to do when the provider's software is not on the machine.
INSTALL_HINT_OF_TYPE: dict[str, str] = {
    "softhsm": "Install SoftHSM (apt-get install softhsm2), or correct modulePath.",
    "aws-cloudhsm": "Install the PKCS#11 library of AWS CloudHSM Client SDK 5 (package cloudhsm-pkcs11, from AWS) "
    "and run /opt/cloudhsm/bin/configure-pkcs11 for the cluster, or correct modulePath.",
    "yubihsm": "Install the YubiHSM module (apt-get install yubihsm-pkcs11 yubihsm-connector), or correct modulePath.",
    "pkcs11": "Install the vendor's PKCS#11 module, or correct modulePath.",
    "aws-kms": "Install what signing with AWS KMS needs: pip install 'hsmcore[aws]'.",
    "ephemeral": "Install hsmcore again: PyNaCl, which it depends on, is missing.",
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

    _number: int = PrivateAttr(default=1)
    _kept_name: str | None = PrivateAttr(default=None)

    def distinguish(self, number: int) -> None:
        """Add "#NUMBER" to the name, because another member has the same one."""
        self._number = number

    def keep_name(self) -> None:
        """Keep the present name, whatever key the settings name later."""
        self._kept_name = self._plain_name

    @property
    def name(self) -> str:
        """The member's name in messages, receipts and logs, such as "softhsm:sequencer". Holds no secret."""
        return self._plain_name if self._number == 1 else f"{self._plain_name}#{self._number}"

    @property
    def _plain_name(self) -> str:
        settings = self.config
        which: object = None
        if self._kept_name is not None:
            return self._kept_name
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
    def patience_ms(self) -> int:
        """How long this kind of device may take for one answer before that means anything; 0: no time worth naming."""
        configured = getattr(self.config, "hang_after_ms", None)
        return PATIENCE_MS_OF_TYPE.get(self.type, 0) if configured is None else int(configured)

    @property
    def install_hint(self) -> str:
        """What to install when the provider's software is missing."""
        return INSTALL_HINT_OF_TYPE[self.type]
