"""The descriptor of a provider. `registry` finds it; docs/ARCHITECTURE.md says how to add one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Self, TypeAlias

from hsmcore.config.base import Model

_STRICT: Final = {"extra": "forbid", "strict": True, "frozen": True}


class ProviderSettings(Model):
    """The base of a provider's `config`."""

    @property
    def name_part(self) -> object:
        """The part of the member's name after the type, such as a token's label; None: no part. Holds no secret."""
        return None

    @property
    def place_part(self) -> object:
        """The part that says where the keys are, and no key: the default state store is named after it."""
        return self.name_part

    @property
    def key_alias(self) -> str | None:
        """The alias that names the key, if a rotation can point it to another key."""
        return None

    def split(self) -> tuple[Self, ...]:
        """Return the settings of each member, in order. Most providers are one member."""
        return (self,)

    def pinned(self, key_id: str, public_key: str, algorithm: str, *, configured: bool) -> Self:
        """Return the settings with the key ring's current key in place of the configured one. `key_id` and `public_key`
        are hexadecimal. `configured`: the configuration names the current key."""
        del key_id, public_key, algorithm, configured
        return self


SettingsClass: TypeAlias = type[ProviderSettings]


@dataclass(frozen=True, slots=True)
class ProviderDescriptor:
    """One type of provider. References are "module:attribute"; they are imported when they are used, so a descriptor
    imports no more than its settings. The defaults are those of a PKCS#11 module."""

    type: str
    """`type` in the configuration, and the name of the entry point."""
    settings: SettingsClass
    install_hint: str
    """The advice if the provider's software is not on the machine."""
    extra: str = ""
    """The extra of hsmcore that brings the provider's packages: the advice then names them."""
    patience_ms: int = 0
    """The longest usual time of one answer, in milliseconds; 0: too short to matter. `hang_after_ms` of the settings
    goes before it."""
    member: str = "hsmcore.members.pkcs11:Pkcs11Member"
    """A class of `members.base.Member`, called with a `members.base.MemberSpec`."""
    probe: str = "hsmcore.doctor.pkcs11:probe_module"
    """The checks of `hsmcore doctor`: a `doctor.subject.Probe`."""
    surroundings: str | None = None
    """Checks of the device's surroundings, before `probe`: a function from `doctor.subject.Subject` to steps. They say
    more than the device when it cannot be reached."""
    cluster: str | None = None
    """For `hsmcore cluster`: a function from settings to `members.cloudhsm.ClusterHealth`."""
    device_log: str | None = None
    """For `hsmcore audit device-log`: a coroutine function from provider and `audit.layout.Layout` to a report."""
    certificates: str | None = None
    """For evidence about a key: a function from settings and a key's id to the certificates (DER) by which the device
    says that it holds the key, the key's first. It blocks."""
    judge: str | None = None
    """For evidence about a key: a function from such certificates, settings, the public key, the key's id and the
    token's serial number to why they do not show, by `attestation_roots` of the settings, that the device made the key;
    "": they do. Raises OSError."""
    exportable: str | None = None
    """For evidence about a key: a function from such certificates to whether they say that the key can leave the device
    under a wrapping key; None: they do not say."""
    note_bytes: int | None = None
    """The longest text that the device signs, in bytes, if that is less than a note of a key set may have."""
    secret_variables: frozenset[str] = frozenset()
    """Environment variables with secrets that the provider uses in this process. No child process inherits them."""
    ephemeral: bool = False
    """Whether a key is made at each start and lost with the process. Such a provider stands at the emergency level, at
    another one only with `allow_ephemeral_primary` in its settings; no other provider stands at the emergency level."""
    rotates: bool = True
    """Whether `keyRotation` can replace the key."""

    def __post_init__(self) -> None:
        """Raise TypeError for settings that accept unknown keys or other types, or that can change."""
        rules = self.settings.model_config
        if any(rules.get(name) != value for name, value in _STRICT.items()):
            raise TypeError(f"the settings of provider {self.type!r} are not strict and frozen")
