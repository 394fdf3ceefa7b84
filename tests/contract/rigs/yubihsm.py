"""The YubiHSM 2 module on a simulated device."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest
from tests.contract.rig import Rig
from tests.support.yubihsm import Command
from tests.support.yubihsm.rig import Rig as Simulated

from hsmcore.providers.yubihsm.settings import default_yubihsm_module

SIGN = {"ed25519": Command.SIGN_EDDSA}
MANAGER, PASSWORD = 0x0005, "manager-password"


class YubiHsm(Rig):
    name = "yubihsm"
    can = frozenset({"logins", "breaks", "holds", "generates", "destroys", "backs-up", "lasts"})
    isolation: ClassVar[str] = "process"
    simulated: Simulated

    def setup(self) -> None:
        module = default_yubihsm_module()
        if not Path(module).is_file():
            pytest.skip("yubihsm_pkcs11.so is not installed")
        self.simulated = Simulated(self.folder, module)
        self.simulated.device.put_user(MANAGER, PASSWORD)
        self.simulated.__enter__()

    def teardown(self) -> None:
        if hasattr(self, "simulated"):
            self.simulated.__exit__()

    def config(self, settings: dict[str, Any] | None = None, **rules: Any) -> dict[str, Any]:
        own = {"isolation": self.isolation, "password": {"file": self.simulated.password_file(PASSWORD)}}
        return self.simulated.config(MANAGER, settings={**own, **(settings or {})}, **rules)

    @property
    def public_key(self) -> bytes:
        return self.simulated.public_key

    def wrong_pin(self) -> dict[str, Any]:
        return self.config({"password": {"file": self.simulated.password_file("not-the-password")}})

    def attempts(self) -> int:
        return self.simulated.device.openings[MANAGER]

    def missing_key(self) -> dict[str, Any]:
        return self.config({"keyId": "0bad"})

    def break_device(self) -> None:
        self.simulated.device.inject("drop", count=None)

    def mend_device(self) -> None:
        self.simulated.device.faults.clear()

    def hold(self) -> None:
        self.simulated.device.inject("hang", SIGN[self.algorithm], count=None)

    def release(self) -> None:
        self.simulated.device.faults.clear()

    def begun(self) -> int:
        return self.simulated.device.counts[SIGN[self.algorithm]]
