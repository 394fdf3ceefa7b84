"""The host process that an engine runs in: to look for, and to kill."""

from __future__ import annotations

import os
import signal

from hsmcore import MemberSnapshot


def host_pid(member: MemberSnapshot) -> int:
    """The host process of a member. Raises RuntimeError when there is none: a pid of 0 or -1 would name this process's
    group, or every process."""
    pid = member.host_pid
    if type(pid) is not int or pid <= 1 or pid == os.getpid():
        raise RuntimeError(f"no host process is running (its pid is {pid!r})")
    return pid


def kill_host(member: MemberSnapshot) -> int:
    """SIGKILL for the host process of a member. Returns its pid."""
    pid = host_pid(member)
    os.kill(pid, signal.SIGKILL)
    return pid
