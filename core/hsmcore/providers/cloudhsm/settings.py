"""The provider AWS CloudHSM."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Final

from pydantic_core import core_schema

from hsmcore.config.base import Model, Text, Whole, fault
from hsmcore.config.credentials import UserCredentials, Username, joined
from hsmcore.config.descriptor import ProviderDescriptor
from hsmcore.config.pkcs11 import Isolation, ModulePath, Pkcs11Settings, Quirks, Region, Sessions
from hsmcore.config.secret import AWS_VARIABLES, Secret

CLIENT_CONFIG: Final = "/opt/cloudhsm/etc/cloudhsm-pkcs11.cfg"
"""The library's own list of clusters, which configure-pkcs11 of Client SDK 5 writes."""

Endpoint = Annotated[str, Text(255, form=r"[^\s@]+", says="a host name or address", hidden=True)]
ClusterId = Annotated[str, Text(64, form=r"cluster-[0-9a-z]+|<[^<>]*>", says='an id such as "cluster-1a2b3c"')]


class _Number:
    """Annotation for a CK_MECHANISM_TYPE: a number, or a string with a 0x-hexadecimal one."""

    def __get_pydantic_core_schema__(self, _source: Any, _handler: Any) -> core_schema.CoreSchema:
        return core_schema.no_info_before_validator_function(self._check, core_schema.int_schema(strict=True))

    def __get_pydantic_json_schema__(self, _schema: Any, _handler: Any) -> dict[str, Any]:
        number = {"type": "integer", "minimum": 0, "maximum": (1 << 32) - 1}
        return {"anyOf": [number, {"type": "string", "pattern": "^0[xX][0-9A-Fa-f]{1,8}$"}]}

    def _check(self, value: object) -> object:
        if isinstance(value, str) and re.fullmatch(r"0[xX][0-9A-Fa-f]{1,8}", value):
            value = int(value, 16)
        if type(value) is not int or not 0 <= value < 1 << 32:
            raise fault('must be a mechanism number of 32 bits: a number, or a string such as "0x8000216f"')
        return value


MechanismNumber = Annotated[int, _Number()]


class VendorMechanisms(Model):
    """Numbers from the vendor's header, cloudhsm_pkcs11_vendor_defs.h, which may not be redistributed. Check them
    against the one that your SDK installs."""

    aes_key_wrap_zero_pad: MechanismNumber | None = None
    """CKM_CLOUDHSM_AES_KEY_WRAP_ZERO_PAD (RFC 5649), which wraps backups."""
    ed25519_key_pair_gen: MechanismNumber | None = None
    """The mechanism that makes Ed25519 key pairs. Default: the first of the standard's two that works."""


class AwsCloudHsmSettings(Pkcs11Settings):
    """AWS CloudHSM, Client SDK 5. A slot is a cluster; the PIN is `username:password`.

    `slotId`, `tokenLabel` and `tokenSerial` select the cluster. If several fit, the slot or token with `clusterId` in
    its texts is taken.
    """

    PATHS = frozenset({"client_config"})

    module_path: ModulePath = "/opt/cloudhsm/lib/libcloudhsm_pkcs11.so"
    quirks: Quirks | None = "aws-cloudhsm"
    isolation: Isolation = "process"
    cluster_endpoint: Endpoint | None = None
    """The address of one HSM of the cluster. It is compared with the library's own configuration."""
    cluster_id: ClusterId | None = None
    """The id of the cluster, such as "cluster-1a2b3c"."""
    client_config: Annotated[str, Text(4096)] | None = None
    """The library's configuration file. Default: CLIENT_CONFIG, if it exists."""
    username: Username
    """The crypto user that signs."""
    password: Secret
    """Its password."""
    admin_credentials: UserCredentials | None = None
    region: Region | None = None
    """The cluster's region, for questions to AWS. Default: the AWS SDK's own settings."""
    mechanisms: VendorMechanisms = VendorMechanisms()
    """Numbers of the vendor's own mechanisms."""
    cluster_health_interval_ms: Annotated[int, Whole(0, 86_400_000)] = 60_000
    """The interval of questions to AWS for the state of the cluster's HSMs, if there are credentials; 0: none."""
    # A small cluster has a dozen or so signatures in service at once; beyond some 64 queued it begins to throttle.
    sessions: Sessions = 32

    @property
    def name_part(self) -> object:
        return self.cluster_id or self.cluster_endpoint or super().name_part

    @property
    def pin_secret(self) -> Secret | None:
        return self.password

    def resolve_pin(self) -> bytearray | None:
        return joined(f"{self.username}:", self.password)

    @property
    def token_text(self) -> str | None:
        return self.cluster_id

    @property
    def vendor_mechanisms(self) -> Mapping[str, int]:
        given = {
            "wrap": self.mechanisms.aes_key_wrap_zero_pad,
            "ed25519_key_pair_gen": self.mechanisms.ed25519_key_pair_gen,
        }
        return {name: number for name, number in given.items() if number is not None}


PROVIDER: Final = ProviderDescriptor(
    "aws-cloudhsm",
    AwsCloudHsmSettings,
    "Install the PKCS#11 library of AWS CloudHSM Client SDK 5 (package cloudhsm-pkcs11, from AWS) "
    "and run /opt/cloudhsm/bin/configure-pkcs11 for the cluster, or correct modulePath.",
    patience_ms=1000,  # as the native core's quirks have it
    member="hsmcore.providers.cloudhsm.member:CloudHsmMember",
    surroundings="hsmcore.providers.cloudhsm.probe:probe_cluster",
    cluster="hsmcore.providers.cloudhsm:cluster_health",
    secret_variables=AWS_VARIABLES,
)
