"""The host process that an engine runs in: to look for, and to kill."""

from __future__ import annotations

import os
import signal

from hsmcore import KeyManager
from hsmcore.members import Pkcs11Member


def host_pid(manager: KeyManager) -> int:
    """The host process of the manager's member. Raises RuntimeError when there is none: a pid of 0 or -1 would name
    this process's group, or every process."""
    return engine_host_pid(manager._member)  # noqa: SLF001 - nothing public tells the pid


def engine_host_pid(member: object) -> int:
    """The same of one member."""
    pid = member.engine.host_pid if isinstance(member, Pkcs11Member) else None
    if type(pid) is not int or pid <= 1 or pid == os.getpid():
        raise RuntimeError(f"no host process is running (its pid is {pid!r})")
    return pid


def kill_host(manager: KeyManager) -> int:
    """SIGKILL for the host process. Returns its pid."""
    return kill_engine_host(manager._member)  # noqa: SLF001 - nothing public tells the pid


def kill_engine_host(member: object) -> int:
    """The same of one member."""
    pid = engine_host_pid(member)
    os.kill(pid, signal.SIGKILL)
    return pid
