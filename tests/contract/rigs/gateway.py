"""hsmcore on hsmcore: libhsmcore_pkcs11.so before a gateway that signs with SoftHSM. The device goes away when the
gateway is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from typing import Any

from tests.contract.rigs.softhsm import SoftHsm
from tests.support.leaks import LASTING
from tests.support.pkcs11_module import MODULE
from tests.support.zygote import CLI, Forked


class Gateway(SoftHsm):
    """The key manager's name is the token's label, and that of its key."""

    can = frozenset({"breaks", "holds", "lasts"})
    process: Any = None

    def setup(self) -> None:
        super().setup()
        client = {"uid": [os.getuid()], "keys": ["default"], "inFlight": 1024}
        inner = super().config({"isolation": "thread"})["sequencer"]
        document = inner | {"gateway": {"listen": [f"unix:{self.folder}/sign.sock"], "clients": {"test": client}}}
        (self.folder / "gateway.json").write_text(json.dumps(document))
        self.mend_device()
        LASTING.append(self)

    def teardown(self) -> None:
        if self in LASTING:
            LASTING.remove(self)
        self.break_device()
        super().teardown()

    @property
    def pid(self) -> int:
        """The gateway's."""
        return 0 if self.process is None else self.process.pid

    @property
    def descriptors(self) -> tuple[int, ...]:
        """By which this process hears of it."""
        return () if self.process is None else (self.process.stdout.fileno(), self.process._status)

    def config(self, settings: dict[str, Any] | None = None, **rules: Any) -> dict[str, Any]:
        own = {"modulePath": MODULE, "tokenLabel": "default", "keyLabel": "default", "pin": "none", "sessions": 2}
        own["moduleArgs"] = f"address=unix:{self.folder}/sign.sock timeout_ms=3000"
        manager = {"type": "pkcs11", "config": own | {"isolation": self.isolation} | (settings or {})}
        return {"sequencer": {"keyManager": manager | {"maxCacheSize": 0} | rules}}

    def break_device(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
            self.process.stdout.close()
            self.process = None

    def mend_device(self) -> None:
        if self.process is None:
            command = [CLI, "gateway", "--config", str(self.folder / "gateway.json"), "--json"]
            self.process = Forked(command, stdout=subprocess.PIPE)
            assert self.process.stdout.readline()


class GatewayThread(Gateway):
    name = "gateway-thread"
    isolation = "thread"


class GatewayProcess(Gateway):
    name = "gateway-process"
    isolation = "process"
