"""openCryptoki's soft token: PKCS#11 3.0, a daemon that every C_Initialize asks, an interface list with a wrong count.

It has its folders compiled in, for one daemon on a machine. The rig's copies of its files name others.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from tests.contract.rigs.generic import Generic
from tests.support.chaos import CHAOS, Chaos, Wrapped, copy_of
from tests.support.daemons import await_daemon, end_daemon
from tests.support.relocate import relocate, short_folder

DAEMON = Path("/usr/sbin/pkcsslotd")
LIBRARIES = tuple(Path(f"/usr/lib/{machine}/opencryptoki") for machine in ("x86_64-linux-gnu", "aarch64-linux-gnu"))
STRENGTHS = Path("/etc/opencryptoki/strength.conf")
GROUP = "pkcs11"
MOVES = {
    "/usr/sbin/pkcsslotd": "pkcsslotd",  # the key of its shared memory is made of this path
    "/etc/opencryptoki": "etc",
    "/run/opencryptoki": "run",
    "/var/lib/opencryptoki": "lib",
    "/var/lock/opencryptoki": "lock",
    "/var/log/opencryptoki": "log",
}
CONFIGURATION = """\
version opencryptoki-3.23
slot 0
{{
stdll = {home}/libpkcs11_sw.so
tokversion = 3.12
}}
"""


class OpenCryptoki(Generic):
    """A daemon, a module and a token of the rig's own."""

    can = frozenset({"logins", "breaks", "holds", "generates", "destroys", "lasts"})
    home: Path

    def setup(self) -> None:
        libraries = next((folder for folder in LIBRARIES if folder.is_dir()), None)
        if libraries is None or not DAEMON.is_file():
            pytest.skip("openCryptoki is not installed")
        if os.geteuid() != 0:
            pytest.skip("openCryptoki's daemon must be started by root")
        self.home = short_folder()
        self.pid_file = self.home / "run" / "pkcsslotd.pid"
        moves = {old: self.home / new for old, new in MOVES.items()}
        for source in (DAEMON, libraries / "libopencryptoki.so.0", libraries / "stdll" / "libpkcs11_sw.so"):
            relocate(source, self.home / source.name, moves)
        for folder in ("etc", "run", "lib/swtok/TOK_OBJ", "lib/HSM_MK_CHANGE", "lock/swtok", "log"):
            (self.home / folder).mkdir(parents=True)
        shutil.copy(STRENGTHS, self.home / "etc")
        (self.home / "etc" / "opencryptoki.conf").write_text(CONFIGURATION.format(home=self.home))
        for path in (self.home, *self.home.rglob("*")):  # the daemon gives up root's rights
            shutil.chown(path, group=GROUP)
            if path.is_dir():
                path.chmod(0o770)
        subprocess.run([str(self.home / DAEMON.name)], check=True, capture_output=True, timeout=60)
        await_daemon(self.home / "run" / "pkcsslotd.socket", self.pid_file)
        self.put_token(self.home / "libopencryptoki.so.0")

    def teardown(self) -> None:
        if not hasattr(self, "home"):
            return
        end_daemon(self.pid_file, signal.SIGTERM)  # it removes its shared memory
        for left in Path("/dev/shm").glob(f"{str(self.home)[1:].replace('/', '.')}.*"):
            left.unlink()
        shutil.rmtree(self.home)


class OpenCryptokiThread(OpenCryptoki):
    name = "opencryptoki-thread"
    isolation = "thread"


class OpenCryptokiProcess(OpenCryptoki):
    name = "opencryptoki-process"
    isolation = "process"


class OpenCryptokiChaos(OpenCryptoki):
    """With the fault-injecting module, left alone, in front."""

    name = "opencryptoki-chaos"
    isolation = "thread"

    def setup(self) -> None:
        if not CHAOS.is_file():
            pytest.skip("the fault-injecting module is not built")
        super().setup()
        module = copy_of(CHAOS, self.folder)
        self.chaos = Chaos(self.folder, Wrapped(self.shim.path, {}), module=module)
        self.settings = {**self.settings, "modulePath": self.chaos.module, "moduleArgs": self.chaos.args}
