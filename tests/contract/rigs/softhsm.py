"""SoftHSM behind a module that can be told to fail and to wait (tests/support/shim.c), in this process and outside."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Any, ClassVar

import pytest
from tests.contract.rig import Rig
from tests.support.shim import Shim, compile_shim
from tests.support.softhsm import Folder, Token, find_module, make_token

DEVICE_REMOVED = 0x32
AWAY = ("C_SignInit", "C_Sign", "C_OpenSession", "C_Login", "C_FindObjectsInit", "C_GetTokenInfo")


class Shimmed(Rig):
    """What all modules behind the shim have in common."""

    shim: Shim

    def put_shim(self, module: Path) -> None:
        compiled = compile_shim(module, self.folder)
        self.shim = Shim(compiled, self.folder / "module.so", shared=True)

    def attempts(self) -> int:
        return self.shim.calls("C_Login")

    def break_device(self) -> None:
        for function in AWAY:
            self.shim.fail(function, DEVICE_REMOVED)

    def mend_device(self) -> None:
        for function in AWAY:
            self.shim.fail(function, 0, 0)

    def hold(self) -> None:
        self.shim.hold()

    def release(self) -> None:
        self.shim.release()

    def begun(self) -> int:
        return self.shim.calls("C_Sign")

    def wrong_pin_file(self) -> dict[str, str]:
        """A reference to a PIN that no token has."""
        path = self.folder / "wrong-pin"
        path.touch(mode=0o600)
        path.write_text(secrets.token_hex(8))
        return {"file": str(path)}


class SoftHsm(Shimmed):
    """A token of its own in the tests' SoftHSM."""

    isolation: ClassVar[str]
    token: Token

    def setup(self) -> None:
        module = find_module()
        if module is None:
            pytest.skip("SoftHSM is not installed")
        self.put_shim(module)
        folder = Folder.of(os.environ["SOFTHSM2_CONF"])
        self.token = make_token(folder, module, [{"name": "main", "kind": self.algorithm}], pin=self.pin())

    def pin(self) -> str:
        return secrets.token_hex(8)

    def teardown(self) -> None:
        if hasattr(self, "token"):
            self.token.remove()

    def config(self, settings: dict[str, Any] | None = None, **rules: Any) -> dict[str, Any]:
        own = {"modulePath": self.shim.path, "isolation": self.isolation, **(settings or {})}
        return self.token.config("main", settings=own, **{"maxCacheSize": 0, **rules})

    @property
    def public_key(self) -> bytes:
        return self.token.keys["main"].public_key

    def wrong_pin(self) -> dict[str, Any]:
        return self.config({"pin": self.wrong_pin_file()})

    def missing_key(self) -> dict[str, Any]:
        return self.config({"keyLabel": "no-such-key"})


class SoftHsmThread(SoftHsm):
    name = "softhsm-thread"
    can = frozenset({"logins", "breaks", "holds", "generates", "destroys", "lasts"})
    isolation = "thread"


class SoftHsmProcess(SoftHsm):
    name = "softhsm-process"
    can = SoftHsmThread.can
    isolation = "process"


class SoftHsmP256(SoftHsm):
    """SoftHSM before 2.7 wraps keys of this kind only."""

    name = "softhsm-p256"
    can = SoftHsmThread.can | {"backs-up"}
    isolation = "thread"
    algorithm = "ecdsa-p256"


class SoftHsmFolder(SoftHsm):
    """SoftHSM whose token's folder goes away, as on a file system that is unmounted."""

    name = "softhsm-folder"
    can = frozenset({"breaks", "lasts"})
    isolation = "process"

    @property
    def away(self) -> Path:
        """Where the folder is while it is away: on the same file system, and where SoftHSM does not look."""
        return self.token.folder.parent.parent / f"{self.token.folder.name}-away"

    def break_device(self) -> None:
        self.token.folder.rename(self.away)

    def mend_device(self) -> None:
        if self.away.exists():
            self.away.rename(self.token.folder)
