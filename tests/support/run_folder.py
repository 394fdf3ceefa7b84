"""One folder for all that a run of the tests writes: in memory where there is room, which no power cut of these tests
reaches either, so that no test waits for the disk. A process of its own deletes it after the run, also a killed one."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

_MEMORY = Path("/dev/shm")
_ROOM = 3 << 30  # bytes; the server of each worker may come to 400 MB
_VARIABLE = "HSMCORE_TESTS_FOLDER"
# A server that a killed run left works in the folder.
_KEEPER = """
import os, shutil, signal, sys
sys.stdin.read()
folder = sys.argv[1]
for process in filter(str.isdigit, os.listdir("/proc")):
    try:
        if os.readlink(f"/proc/{process}/cwd").startswith(f"{folder}/"):
            os.kill(int(process), signal.SIGKILL)
    except OSError:
        pass
shutil.rmtree(folder, ignore_errors=True)
"""


@cache
def fast_folder() -> str | None:
    """For the `dir` of tempfile: memory, or None, the disk, where it has no room or runs no program. None also for
    other users than root: systemd deletes what is theirs in /dev/shm when they log out."""
    if os.geteuid() != 0 or not os.access(_MEMORY, os.W_OK):
        return None
    found = os.statvfs(_MEMORY)
    return None if found.f_flag & os.ST_NOEXEC or found.f_bavail * found.f_frsize < _ROOM else str(_MEMORY)


def run_folder() -> Path | None:
    """The folder of this run, which other users may enter. None outside of a run."""
    found = os.environ.get(_VARIABLE)
    return Path(found) if found else None


class Keeper:
    """Makes the folder of a run, for this process and its children. `pid`: the process that deletes it."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="hsmcore-", dir=fast_folder()))
        self.folder.chmod(0o711)
        os.environ[_VARIABLE] = str(self.folder)
        command = [sys.executable, "-ISc", _KEEPER, str(self.folder)]
        # In a session of its own: Ctrl-C ends the tests, and this one when they have ended.
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
        self.pid = self._process.pid

    def close(self) -> None:
        """Delete the folder."""
        self._process.communicate()
        del os.environ[_VARIABLE]
