"""The aws-cloudhsm provider as in production, on an imitation of the vendor's module in front of SoftHSM, with the
speed of a cluster of two."""

from __future__ import annotations

from typing import Any

import pytest
from tests.contract.rigs.softhsm import SoftHsm
from tests.support.chaos import CHAOS, Chaos, Wrapped, copy_of

USER = "sequencer"


class CloudHsm(SoftHsm):
    name = "aws-cloudhsm"
    can = frozenset({"logins", "breaks", "holds", "generates", "destroys", "lasts"})
    isolation = "process"
    chaos: Chaos

    def pin(self) -> str:
        return f"{USER}:{super().pin()}"

    def setup(self) -> None:
        if not CHAOS.is_file():
            pytest.skip("the fault-injecting module is not built")
        super().setup()
        profiles = str(CHAOS.parent / "profiles")
        wrapped = Wrapped(self.shim.path, {}, self.public_key)
        self.chaos = Chaos(
            self.folder,
            wrapped,
            module=copy_of(CHAOS, self.folder),
            profile=["cloudhsm", "cloudhsm-hsm2m-x2"],
            profileDir=profiles,
            socket=str(self.folder / "chaos-%p.sock"),
        )
        self.password = self.folder / "password"
        self.password.touch(mode=0o600)
        self.password.write_text(self.token.pin.partition(":")[2])

    def config(self, settings: dict[str, Any] | None = None, **rules: Any) -> dict[str, Any]:
        config: dict[str, Any] = {
            "modulePath": self.chaos.module,
            "moduleArgs": self.chaos.args,
            "tokenLabel": self.token.label,
            "username": USER,
            "password": {"file": str(self.password)},
            "keyLabel": self.token.keys["main"].label,
            "sessions": 4,
            "clusterHealthIntervalMs": 0,
        } | (settings or {})
        return {"sequencer": {"keyManager": {"type": "aws-cloudhsm", "config": config, "maxCacheSize": 0, **rules}}}

    def wrong_pin(self) -> dict[str, Any]:
        return self.config({"password": self.wrong_pin_file()})
