"""tpm2-pkcs11 on a TPM that is a program (swtpm): every signature is a command to one serial device, and the module
must not be called from two threads."""

from __future__ import annotations

import socket
import subprocess
from pathlib import Path
from typing import Any, ClassVar

import pytest
from tests.contract.rigs.generic import Generic
from tests.support.daemons import await_daemon, end_daemon

MODULES = tuple(
    Path(f"/usr/lib/{machine}/pkcs11/libtpm2_pkcs11.so") for machine in ("x86_64-linux-gnu", "aarch64-linux-gnu")
)
TPM = Path("/usr/bin/swtpm")
# TPM2_DictionaryAttackParameters with the lockout's empty authorization: 1000 tries. To a TPM that has used a key, the
# loss of its power without notice counts as a wrong PIN.
MANY_TRIES = bytes.fromhex("8002 00000027 0000013a 4000000a 00000009 40000009 0000 00 0000" + "000003e8" * 3)


class Tpm2(Generic):
    """A TPM and a store of the rig's own. The device goes away when the program that is the TPM is killed."""

    settings: ClassVar[dict[str, Any]] = {}

    def setup(self) -> None:
        module = next((path for path in MODULES if path.is_file()), None)
        if module is None or not TPM.is_file():
            pytest.skip("tpm2-pkcs11 or swtpm is not installed")
        self.socket, self.pid_file = self.folder / "tpm", self.folder / "tpm.pid"
        for folder in ("state", "store"):
            (self.folder / folder).mkdir()
        self.patch = pytest.MonkeyPatch()
        self.patch.setenv("TPM2_PKCS11_STORE", str(self.folder / "store"))
        self.patch.setenv("TPM2_PKCS11_TCTI", f"swtpm:path={self.socket}")
        self.patch.setenv("TPM2_PKCS11_BACKEND", "esysdb")
        self.mend_device()
        with socket.socket(socket.AF_UNIX) as device:
            device.connect(str(self.socket))
            device.sendall(MANY_TRIES)
            assert device.recv(64)[6:10] == bytes(4)
        self.put_token(module)
        self.mend_device()

    def teardown(self) -> None:
        if hasattr(self, "patch"):
            self.break_device()
            self.patch.undo()

    def break_device(self) -> None:
        end_daemon(self.pid_file)

    def mend_device(self) -> None:
        """Start the TPM again, also after each test: it keeps what a process leaves loaded, and has room for three
        keys. The kernel's /dev/tpmrm0 clears that away."""
        self.break_device()
        control = f"{self.socket}.ctrl"
        command = [str(TPM), "socket", "--tpm2", "--tpmstate", f"dir={self.folder / 'state'}", "--daemon"]
        command += ["--pid", f"file={self.pid_file}", "--flags", "not-need-init,startup-clear"]
        command += ["--server", f"type=unixio,path={self.socket}", "--ctrl", f"type=unixio,path={control}"]
        subprocess.run(command, check=True, capture_output=True, timeout=60)
        await_daemon(self.socket, self.pid_file)


class Tpm2Thread(Tpm2):
    name = "tpm2-thread"
    can = frozenset({"logins", "breaks", "holds", "generates", "destroys", "lasts"})
    isolation = "thread"


class Tpm2Process(Tpm2):
    """A key more than the first, in two processes, is more than this TPM has room for without a resource manager. See
    tests/integration/test_tpm2.py."""

    name = "tpm2-process"
    can = Tpm2Thread.can - {"generates"}
    isolation = "process"
