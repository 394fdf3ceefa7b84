"""The provider SoftHSM 2."""

from __future__ import annotations

from typing import Final

from hsmcore.config.credentials import PinCredentials
from hsmcore.config.descriptor import ProviderDescriptor
from hsmcore.config.pkcs11 import ModulePath, Pkcs11Settings, Quirks
from hsmcore.config.secret import Secret


class SoftHsmSettings(Pkcs11Settings):
    """SoftHSM 2, the embedded default."""

    module_path: ModulePath = "/usr/lib/softhsm/libsofthsm2.so"
    quirks: Quirks | None = "softhsm"
    pin: Secret
    """The token user's PIN."""
    admin_credentials: PinCredentials | None = None

    @property
    def pin_secret(self) -> Secret | None:
        return self.pin


PROVIDER: Final = ProviderDescriptor(
    "softhsm", SoftHsmSettings, "Install SoftHSM (apt-get install softhsm2), or correct modulePath."
)
