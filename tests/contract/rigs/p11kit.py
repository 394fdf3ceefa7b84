"""p11-kit's two modules before SoftHSM: the client, which calls a server over a socket, and the proxy, which calls the
modules that a configuration names."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any, ClassVar

import pytest
from tests.contract.rigs.softhsm import SoftHsm, SoftHsmThread
from tests.support.daemons import await_daemon, end_daemon
from tests.support.relocate import relocate, short_folder

LIBRARIES = (Path("/usr/lib/x86_64-linux-gnu"), Path("/usr/lib/aarch64-linux-gnu"))
SERVER = Path("/usr/libexec/p11-kit/p11-kit-server")


class P11Kit(SoftHsm):
    """The shim stands behind p11-kit, and may be in another process."""

    can = SoftHsmThread.can
    library: ClassVar[str]
    module: Path

    def setup(self) -> None:
        found = next((folder / self.library for folder in LIBRARIES if (folder / self.library).is_file()), None)
        if found is None or not SERVER.is_file():
            pytest.skip("p11-kit is not installed")
        self.module = found
        super().setup()

    def config(self, settings: dict[str, Any] | None = None, **rules: Any) -> dict[str, Any]:
        config = super().config({"modulePath": str(self.module), **(settings or {})}, **rules)
        config["sequencer"]["keyManager"]["type"] = "pkcs11"
        return config


class P11KitClient(P11Kit):
    """The device goes away when the server and its processes, one for each connection, are killed. The client does not
    pass on CKM_EDDSA."""

    algorithm = "ecdsa-p256"
    library = "pkcs11/p11-kit-client.so"

    def setup(self) -> None:
        super().setup()
        self.socket, self.pid_file = self.folder / "server", self.folder / "server.pid"
        self.patch = pytest.MonkeyPatch()
        self.patch.setenv("P11_KIT_SERVER_ADDRESS", f"unix:path={self.socket}")
        self.mend_device()

    def teardown(self) -> None:
        if hasattr(self, "patch"):
            self.break_device()
            self.patch.undo()
        super().teardown()

    def break_device(self) -> None:
        if self.pid_file.exists():
            os.killpg(int(self.pid_file.read_text()), signal.SIGKILL)
            end_daemon(self.pid_file)
        self.socket.unlink(missing_ok=True)

    def mend_device(self) -> None:
        if self.pid_file.exists():
            return
        command = [str(SERVER), "--provider", self.shim.path, "--name", str(self.socket)]
        command.append(f"pkcs11:token={self.token.label}")
        said = self.folder / "server.out"  # no pipe: the server, too, would hold it open
        with said.open("w") as out:
            subprocess.run(command, stdout=out, stderr=out, check=True, timeout=60)
        found = re.search(r"P11_KIT_SERVER_PID=(\d+)", said.read_text())
        assert found is not None
        self.pid_file.write_text(found[1])
        await_daemon(self.socket, self.pid_file)


class P11KitClientThread(P11KitClient):
    name = "p11-kit-client-thread"
    isolation = "thread"


class P11KitClientProcess(P11KitClient):
    name = "p11-kit-client-process"
    isolation = "process"


class P11KitProxy(P11Kit):
    """It has its folders compiled in, and heeds no other one when root runs it: the rig's copy names others."""

    library = "p11-kit-proxy.so"

    def setup(self) -> None:
        super().setup()
        self.home = short_folder()
        modules = self.home / "modules"
        modules.mkdir()
        (modules / "shim.module").write_text(f"module: {self.shim.path}\ncritical: yes\n")
        copy = self.home / self.library
        relocate(self.module, copy, {"/etc/pkcs11": self.home, "/usr/share/p11-kit/modules": self.home / "none"})
        self.module = copy

    def teardown(self) -> None:
        if hasattr(self, "home"):
            shutil.rmtree(self.home)
        super().teardown()


class P11KitProxyThread(P11KitProxy):
    name = "p11-kit-proxy-thread"
    isolation = "thread"


class P11KitProxyProcess(P11KitProxy):
    name = "p11-kit-proxy-process"
    isolation = "process"
