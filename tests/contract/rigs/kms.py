"""AWS KMS, as tests/support/kms imitates it: it signs for real and checks every request's own signature."""

from __future__ import annotations

from typing import Any

import pytest
from tests.contract.rig import Rig
from tests.support.kms.keys import Key
from tests.support.kms.server import KmsServer
from tests.support.kms.settings import config, set_credentials


class Kms(Rig):
    name = "aws-kms"
    can = frozenset({"breaks", "holds", "generates", "destroys", "lasts"})
    key: Key

    def setup(self) -> None:
        pytest.importorskip("boto3")
        self.patch = pytest.MonkeyPatch()
        set_credentials(self.patch)
        self.server = KmsServer()
        self.server.__enter__()
        self.key = self.server.store.make("ECC_NIST_EDWARDS25519")

    def teardown(self) -> None:
        if hasattr(self, "server"):
            self.server.__exit__(None, None, None)
            self.patch.undo()

    def config(self, settings: dict[str, Any] | None = None, **rules: Any) -> dict[str, Any]:
        return config(self.server, self.key, settings, **{"maxCacheSize": 0, **rules})

    @property
    def public_key(self) -> bytes:
        return self.key.raw_public

    def missing_key(self) -> dict[str, Any]:
        return config(self.server, "12345678-1234-1234-1234-123456789012")

    def break_device(self) -> None:
        self.server.faults.add("drop", None, times=1_000_000)

    def mend_device(self) -> None:
        self.server.faults.queue.clear()

    def hold(self) -> None:
        self.server.hold()

    def release(self) -> None:
        self.server.release()

    def begun(self) -> int:
        return self.server.calls["Sign"]
