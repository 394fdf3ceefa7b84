"""Settings of all PKCS#11 modules, and the provider for a module without a provider's folder."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator
from pydantic_core import core_schema

from hsmcore.base.log import get_logger
from hsmcore.config.base import Text, Whole, as_tuple, clash, fault, is_placeholder
from hsmcore.config.credentials import Credentials, PinCredentials
from hsmcore.config.descriptor import ProviderDescriptor, ProviderSettings
from hsmcore.config.secret import Secret
from hsmcore.config.uri import UriParts, parse_uri
from hsmcore.errors import ConfigFault, ConfigurationError

Algorithm = Literal["ed25519", "ecdsa-p256", "ecdsa-secp256k1"]
Quirks = Literal["softhsm", "nss", "yubihsm", "aws-cloudhsm", "tpm2", "generic"]
Isolation = Literal["thread", "process"]
VerifySignatures = Literal["always", "sample", "never"]

MAX_SESSIONS = 1024
_MAX_HANDLE = 2**63 - 1

ModulePath = Annotated[str, Text(4096)]
Label = Annotated[str, Text(127)]
VariableName = Annotated[str, Text(256, form=r"[A-Za-z_][A-Za-z0-9_]*", says="the name of an environment variable")]
Sessions = Annotated[int, Whole(1, MAX_SESSIONS)]
Hex = Annotated[str, Text(128, form="([0-9A-Fa-f]{2})+", says="1 to 64 bytes in hexadecimal, two digits each")]
PublicKeyHex = Annotated[
    str,
    Text(
        130,
        form="[0-9A-Fa-f]{64}|04[0-9A-Fa-f]{128}",
        says="a public key in hexadecimal: 32 bytes for Ed25519, or 65 bytes beginning with 04 for ECDSA",
    ),
]
Region = Annotated[str, Text(64, form=r"[a-z]{2}(-[a-z]+)+-[0-9]+|<[^<>]*>", says='an AWS region such as "us-east-1"')]


class _Handle:
    """Annotation for a CK_OBJECT_HANDLE: a number, or a string with a decimal or 0x-hexadecimal one."""

    def __get_pydantic_core_schema__(self, _source: Any, _handler: Any) -> core_schema.CoreSchema:
        return core_schema.no_info_plain_validator_function(self._check)

    def __get_pydantic_json_schema__(self, _schema: Any, _handler: Any) -> dict[str, Any]:
        number = {"type": "integer", "minimum": 0, "maximum": _MAX_HANDLE}
        return {"anyOf": [number, {"type": "string", "pattern": r"^(?:0[xX][0-9A-Fa-f]{1,16}|[0-9]{1,19}|<[^<>]*>)$"}]}

    def _check(self, value: object) -> int | str:
        number = value
        if isinstance(value, str):
            if is_placeholder(value):
                return value
            match = re.fullmatch(r"0[xX]([0-9A-Fa-f]{1,16})|([0-9]{1,19})", value)
            if match is not None:
                number = int(match[1], 16) if match[1] else int(match[2])
        if type(number) is not int or not 0 <= number <= _MAX_HANDLE:
            raise fault('must be an object handle: a number, or a string such as "262178" or "0x40022"')
        return number


def default_sessions() -> int:
    """Return one session for each processor, at most as many as an engine can hold."""
    return max(1, min(os.cpu_count() or 1, MAX_SESSIONS))


class KeyPin(ProviderSettings):
    """Properties of the key that are known beforehand. A key that differs is refused before it signs."""

    public_key: PublicKeyHex | None = None
    """The public key in hexadecimal. Default: any, which the key ring remembers."""
    algorithm: Algorithm | None = None
    """The key's algorithm. Default: that of the key which is found."""

    @property
    def public_key_bytes(self) -> bytes | None:
        """The pinned public key: 32 bytes (Ed25519) or 65 (0x04 || X || Y)."""
        return None if self.public_key is None else bytes.fromhex(self.public_key)

    @model_validator(mode="after")
    def _form_fits_algorithm(self) -> KeyPin:
        if self.public_key is not None and self.algorithm is not None:
            expected = 64 if self.algorithm == "ed25519" else 130
            if len(self.public_key) != expected:
                raise clash(f"publicKey has not the length of a key of algorithm {self.algorithm}")
        return self


class Pkcs11Settings(KeyPin):
    """Settings of all modules. Every given selector of token and key must match."""

    VARIABLES: ClassVar[frozenset[str]] = frozenset(
        {
            *("SOFTHSM2_CONF", "YUBIHSM_PKCS11_CONF", "OPENSC_CONF", "KRYOPTIC_CONF", "P11_KIT_SERVER_ADDRESS"),
            *("TPM2_PKCS11_STORE", "TPM2_PKCS11_TCTI", "TPM2_PKCS11_BACKEND", "TPM2_PKCS11_LOG_LEVEL"),
            *("ChrystokiConfigurationPath", "CS_PKCS11_R2_CFG", "CS_PKCS11_R3_CFG", "PKCS11_PROXY_SOCKET"),
        }
    )
    """The environment variables that the module reads."""

    module_path: ModulePath
    """The path of the vendor's PKCS#11 library."""
    module_args: Annotated[str, Text(4096)] | None = None
    """The string that C_Initialize gives to the library. Default: none."""
    quirks: Quirks | None = None
    """The set of deviations from the standard that is expected. Default: found by the library's own description."""
    token_label: Annotated[str, Text(32)] | None = None
    """The label of the token."""
    token_serial: Annotated[str, Text(16)] | None = None
    """The serial number of the token."""
    token_manufacturer: Annotated[str, Text(32)] | None = None
    """The manufacturer that the token names."""
    token_model: Annotated[str, Text(16)] | None = None
    """The model that the token names."""
    slot_id: Annotated[int, Whole(0, _MAX_HANDLE)] | None = None
    """The number of the slot. Some modules change it at each start."""
    key_label: Label | None = None
    """CKA_LABEL of the key."""
    key_id: Hex | None = None
    """CKA_ID of the key, in hexadecimal."""
    key_handle: Annotated[int | str, _Handle()] | None = None
    """The object handle of the key, for modules whose handles last."""
    sessions: Sessions = Field(default_factory=default_sessions)
    """Sessions that sign, each with its own thread. Default: one per processor."""
    isolation: Isolation = "thread"
    """Whether the module is loaded into this process or into a host process, which can be killed when it hangs and is
    started again after a crash."""
    verify_signatures: VerifySignatures = "never"
    """How many signatures are verified in software before they are handed out."""
    start_timeout_ms: Annotated[int, Whole(1, 600_000)] = 30_000
    """The longest time within the module, in milliseconds, to connect and log in, and to find a key, each."""
    hang_after_ms: Annotated[int, Whole(1, 3_600_000)] | None = None
    """A call into the module that has lasted so long, and beyond its request's deadline, counts as hanging; None:
    several times the longest usual call of the device (0.5 s; AWS CloudHSM 1 s; YubiHSM and TPM 2 s)."""
    host_memory_limit_bytes: Annotated[int, Whole(16 << 20, 1 << 50)] | None = None
    """With isolation "process": the resident memory at which the host process is started again; None: no limit."""
    module_environment: Annotated[tuple[VariableName, ...], BeforeValidator(as_tuple)] = ()
    """Further environment variables that the module reads. A separate process that loads it gets these, those that are
    known for the provider, and what any program needs; no others."""
    admin_credentials: Credentials | None = None
    """The user that makes, destroys, deactivates and backs up keys, if the signing user has no right to. Such work is
    done in a separate process, because a process has one login on a token."""

    @model_validator(mode="after")
    def _names_a_key(self) -> Pkcs11Settings:
        self._merge()
        if self.key_label is None and self.key_id is None and self.key_handle is None:
            raise clash("must name the key to sign with: give keyLabel, keyId or keyHandle")
        return self

    def _merge(self) -> None:
        """Merge two forms of the same settings, for a provider that has them."""

    @property
    def name_part(self) -> object:
        return self.token_label or self.token_serial or self.slot_id

    def pinned(self, key_id: str, public_key: str, algorithm: str, *, configured: bool) -> Self:
        if configured:  # the configured name stays; the public key is known from the first start on
            return self if self.public_key is not None else self.model_copy(update={"public_key": public_key})
        named = {"key_id": key_id, "key_label": None, "key_handle": None}
        return self.model_copy(update=named | {"public_key": public_key, "algorithm": algorithm})

    @property
    def module_variables(self) -> frozenset[str]:
        """The environment variables that the module reads."""
        return self.VARIABLES.union(self.module_environment)

    @property
    def key_id_bytes(self) -> bytes | None:
        """CKA_ID, or None."""
        return None if self.key_id is None else bytes.fromhex(self.key_id)

    def key_handle_number(self) -> int | None:
        """Return CK_OBJECT_HANDLE, or None. Raises ConfigurationError for an example's blank."""
        if isinstance(self.key_handle, str):
            fault_ = ConfigFault(f"{self.where}.keyHandle", "is a placeholder: put in the real value")
            raise ConfigurationError.of([fault_])
        return self.key_handle

    @property
    def initialize_args(self) -> str | None:
        """The string for CK_C_INITIALIZE_ARGS.pReserved, or None."""
        return self.module_args

    @property
    def pin_secret(self) -> Secret | None:
        """The secret of the login, for messages that name its source; None: no login."""
        return None

    def resolve_pin(self) -> bytearray | None:
        """Return the whole PIN for C_Login, which the caller wipes; None: no login. May block. Raises
        SecretUnavailable."""
        secret = self.pin_secret
        return None if secret is None else secret.resolve()

    @property
    def token_text(self) -> str | None:
        """A text that a slot or token must contain if several fit the selectors; None: any."""
        return None

    @property
    def vendor_mechanisms(self) -> Mapping[str, int]:
        """Mechanism numbers that replace those of the quirks, by the name of the quirk."""
        return {}


_SAID_BY_URI = tuple(field.name for field in fields(UriParts) if field.name not in ("text", "module_name", "ignored"))
"""The keys of the settings that a URI can give."""


class GenericPkcs11Settings(Pkcs11Settings):
    """Any other module, by an RFC 7512 URI, by explicit keys, or by both if they do not contradict each other."""

    module_path: ModulePath = ""
    """The path of the vendor's PKCS#11 library. Required, here or in uri."""
    uri: Annotated[str, Text(8192, hidden=True)] | None = None
    """A URI (RFC 7512) that names module, token and key."""
    pin: Secret | None = None
    """The token user's PIN. Default: no login."""
    admin_credentials: PinCredentials | None = None

    @field_validator("uri")
    @classmethod
    def _parses(cls, value: str | None) -> str | None:
        if value is not None:
            parse_uri(value)
        return value

    def _merge(self) -> None:
        if self.uri is not None:
            parts: UriParts = parse_uri(self.uri)
            if parts.ignored:
                get_logger().warning("unknown attributes in a PKCS#11 URI's query are ignored", count=parts.ignored)
            for name in _SAID_BY_URI:
                said = _module_of(parts) if name == "module_path" else getattr(parts, name)
                if said is None:
                    continue
                alias = type(self).model_fields[name].alias
                given = getattr(self, name) if name in self.model_fields_set else None
                if given is not None and (given.lower() if name == "key_id" else given) != said:
                    raise clash(f"{alias} contradicts what uri says")
                # Still the construction of the model, which is frozen afterwards.
                self.__dict__[name] = said
            self.__dict__["uri"] = parts.text
        if not self.module_path:
            raise clash("must name the module: give modulePath, or say it in uri")

    @property
    def pin_secret(self) -> Secret | None:
        return self.pin


PROVIDER: Final = ProviderDescriptor(
    "pkcs11", GenericPkcs11Settings, "Install the vendor's PKCS#11 module, or correct modulePath."
)


def _module_of(parts: UriParts) -> str | None:
    """Return the module's path. module-path may be a folder, if module-name names a module in it."""
    if parts.module_name is None or (parts.module_path is not None and not Path(parts.module_path).is_dir()):
        return parts.module_path
    return locate_module(parts.module_name, parts.module_path)


_FOLDERS = (
    "/usr/lib/{triplet}/pkcs11",
    "/usr/lib64/pkcs11",
    "/usr/lib/pkcs11",
    "/usr/lib/softhsm",
    "/usr/lib/{triplet}",
    "/usr/lib64",
    "/usr/lib",
    "/usr/local/lib/pkcs11",
    "/usr/local/lib",
)
_FORMS = ("lib{name}.so", "{name}.so", "{name}")


def debian_triplet() -> str:
    """Return the name of this machine's architecture in Debian's paths."""
    machine = platform.machine()
    return "arm-linux-gnueabihf" if machine.startswith("armv7") else f"{machine}-linux-gnu"


def locate_module(name: str, folder: str | None = None) -> str:
    """Return the path of module `name`: a file of that name, with or without "lib" and ".so", in `folder` or in the
    usual places. If there is none, the first possible path."""
    folders = [folder] if folder is not None else [place.format(triplet=debian_triplet()) for place in _FOLDERS]
    candidates = [Path(place, form.format(name=name)) for place in folders for form in _FORMS]
    return str(next((path for path in candidates if path.is_file()), candidates[0]))
