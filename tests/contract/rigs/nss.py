"""NSS softoken, by the generic pkcs11 provider: raw EC points, exact buffers, CKR_HOST_MEMORY after a logout."""

from __future__ import annotations

from typing import Any

from tests.contract.rigs.softhsm import Shimmed
from tests.support.nss import Nss, make_nss


class NssSoftoken(Shimmed):
    name = "nss"
    can = frozenset({"logins", "breaks", "holds", "generates", "destroys", "lasts"})
    nss: Nss

    def setup(self) -> None:
        self.nss = make_nss(self.folder)
        self.put_shim(self.nss.module)

    def config(self, settings: dict[str, Any] | None = None, **rules: Any) -> dict[str, Any]:
        config = self.nss.config(self.algorithm, **{"modulePath": self.shim.path, **(settings or {})})
        config["sequencer"]["keyManager"] |= rules
        return config

    @property
    def public_key(self) -> bytes:
        return self.nss.public_key(self.algorithm)

    def wrong_pin(self) -> dict[str, Any]:
        return self.config({"pin": self.wrong_pin_file()})

    def missing_key(self) -> dict[str, Any]:
        return self.config({"keyId": "0bad"})
