"""What this kernel keeps a module in a host process from, and what is missing."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from hsmcore.doctor.report import Step, ok, warn

_SCOPE: Final = Path("/proc/sys/kernel/yama/ptrace_scope")
_LANDLOCK: Final = (
    'Boot Linux 5.13 or newer with landlock in "lsm=", and let a container\'s seccomp profile pass landlock_*'
)

_SINCE: Final = {
    2: "the module cannot move or link a file into another folder (Linux 5.19)",
    6: "this version keeps signals from no other process: signals only by the filter (Linux 6.12)",
}
"""What a version of Landlock brought, and what is without it."""


def ptrace_scope() -> int | None:
    """Return Yama's setting; None: the kernel has no Yama."""
    try:
        return int(_SCOPE.read_text())
    except (OSError, ValueError):
        return None


def judge(lacking: tuple[str, ...], landlock: int, scope: int | None) -> Step:
    """Judge what a host process said about itself, as in Engine.hardening."""
    data = {"lacking": list(lacking), "landlockAbi": landlock, "ptraceScope": scope}
    if not lacking:
        found = f"Landlock (version {landlock}) and seccomp keep the module to its process, its files and its network"
        lacks = [what for version, what in _SINCE.items() if landlock < version]
        return ok("isolation", "; ".join([found, *lacks]), **data)
    found = f"the host process lacks {', '.join(lacking)}"
    if "landlock" not in lacking:
        return warn("isolation", found, "Look for what refuses prctl and seccomp here: a container's profile?", **data)
    if scope:
        return warn("isolation", f"{found}: the module can read much of /proc", f"{_LANDLOCK}.", **data)
    hint = f"{_LANDLOCK}; or set kernel.yama.ptrace_scope to 1; or make the application's process not dumpable."
    return warn("isolation", f"{found}: the module can read and write the application's memory", hint, **data)
