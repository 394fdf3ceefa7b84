"""The provider YubiHSM 2."""

from __future__ import annotations

import re
from typing import Annotated, Final, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from hsmcore.config.base import Whole, as_tuple, clash, hidden_fault
from hsmcore.config.credentials import AuthKeyCredentials, AuthKeyId, joined
from hsmcore.config.descriptor import ProviderDescriptor
from hsmcore.config.pkcs11 import (
    Isolation,
    ModulePath,
    Pkcs11Settings,
    Quirks,
    Sessions,
    VerifySignatures,
    debian_triplet,
)
from hsmcore.config.secret import Secret


def default_yubihsm_module() -> str:
    """Return the path of yubihsm_pkcs11.so in Debian on this machine's architecture."""
    return f"/usr/lib/{debian_triplet()}/pkcs11/yubihsm_pkcs11.so"


class YubiHsmSettings(Pkcs11Settings):
    """YubiHSM 2. The PIN is the authentication key's id in four hexadecimal digits and its password.

    Each connector, with a device that holds the same key, is a member."""

    PATHS = frozenset({"attestation_roots"})
    # The library reaches the connector as libcurl does.
    VARIABLES = Pkcs11Settings.VARIABLES | {
        *("http_proxy", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY", "no_proxy", "NO_PROXY")
    }

    module_path: ModulePath = Field(default_factory=default_yubihsm_module)
    quirks: Quirks | None = "yubihsm"
    isolation: Isolation = "process"
    connector: str | None = None
    """The URL of the connector: http://host:port, or yhusb:// for a device at this host."""
    connectors: Annotated[tuple[str, ...], BeforeValidator(as_tuple)] | None = None
    """Several connectors, each a member. Their devices hold the same key."""
    auth_key_id: AuthKeyId
    """The object id of the authentication key that signs."""
    password: Secret
    """The password that the authentication key is derived from."""
    admin_credentials: AuthKeyCredentials | None = None
    # The module keeps its slot locked for the whole of a call: more sessions would only wait.
    sessions: Sessions = 1
    # The device signs by object id, so another key under the same id would sign. Verifying shows it, and takes a
    # thousandth of the device's time.
    verify_signatures: VerifySignatures = "always"
    audit_auth_key_id: Annotated[int, Whole(1, 0xFFFF)] | None = None
    """The user that reads the device's own log (capability get-log-entries); default: authKeyId."""
    audit_password: Secret | None = None
    """The password of that user."""

    attestation_roots: Annotated[tuple[str, ...], BeforeValidator(as_tuple)] | None = None
    """Files of certificates in PEM to which a key's attestation must lead: the vendor's root and what is between."""

    @field_validator("connector")
    @classmethod
    def _one_url(cls, value: str | None) -> str | None:
        return value if value is None else _connector_url(value)

    @field_validator("connectors")
    @classmethod
    def _all_urls(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if value is not None and not 1 <= len(set(value)) == len(value) <= 64:
            raise hidden_fault("must list 1 to 64 connectors, each once")
        return None if value is None else tuple(_connector_url(url) for url in value)

    @model_validator(mode="after")
    def _one_way(self) -> YubiHsmSettings:
        if self.connector is not None and self.connectors is not None:
            raise clash("give connector or connectors, not both")
        if len(self.connector_urls) > 1 and (self.slot_id, self.token_serial) != (None, None):
            raise clash("slotId and tokenSerial name one device; with several connectors give neither")
        if len(self.connector_urls) > 1 and self.isolation == "thread":
            raise clash('several connectors need isolation "process": a process holds one connection of the module')
        if (self.audit_auth_key_id is None) != (self.audit_password is None):
            raise clash("auditAuthKeyId and auditPassword belong together: give both or neither")
        return self

    @property
    def connector_urls(self) -> tuple[str, ...]:
        """The connectors in slot order."""
        return self.connectors or (self.connector or "http://127.0.0.1:12345",)

    @property
    def name_part(self) -> object:
        return ",".join(self.connector_urls)

    def split(self) -> tuple[Self, ...]:
        """Return one member for each connector: module and device work on one call at a time for each connector."""
        return tuple(self.model_copy(update={"connector": url, "connectors": None}) for url in self.connector_urls)

    @property
    def initialize_args(self) -> str | None:
        parts = [f"connector={url}" for url in self.connector_urls]
        return " ".join([*parts, self.module_args] if self.module_args else parts)

    @property
    def pin_secret(self) -> Secret | None:
        return self.password

    def resolve_pin(self) -> bytearray | None:
        return joined(f"{self.auth_key_id:04x}", self.password)


PROVIDER: Final = ProviderDescriptor(
    "yubihsm",
    YubiHsmSettings,
    "Install the YubiHSM module (apt-get install yubihsm-pkcs11 yubihsm-connector), or correct modulePath.",
    patience_ms=2000,  # as the native core's quirks have it
    device_log="hsmcore.providers.yubihsm.audit:examine",
    certificates="hsmcore.providers.yubihsm.attest:certificates",
    judge="hsmcore.providers.yubihsm.attest:judge",
    exportable="hsmcore.providers.yubihsm.attest:exportable",
    note_bytes=1_900,
)


def _connector_url(url: str) -> str:
    if not re.fullmatch(r"(https?://[^\s@]+|yhusb://[^\s@]*)", url) or len(url) > 1024:
        raise hidden_fault("must be a connector such as http://127.0.0.1:12345 or yhusb://, without user or password")
    return url
