"""What a number depends on: the machine, the system, the versions, and what else was running."""

from __future__ import annotations

import os
import platform
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Self

LIBRARIES = ("hsmcore", "python-pkcs11", "PyKCS11", "PyNaCl", "cryptography", "uvloop")


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0))


def describe() -> dict[str, Any]:
    """The environment at the start of a run. No host name, user name or path."""
    return {
        "processors": cores(),
        "processor": _cpu_model(),
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
        "kernel": platform.release(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "versions": {name: version for name in LIBRARIES if (version := _version(name)) is not None},
        "load_average": [round(value, 2) for value in os.getloadavg()],
        "free_threaded": not getattr(sys, "_is_gil_enabled", lambda: True)(),
    }


@dataclass(frozen=True, slots=True)
class ProcessorTimes:
    """Seconds of all processors together since the start of the system."""

    total: float
    busy: float  # by anyone, the hypervisor included
    stolen: float  # by the hypervisor

    @classmethod
    def read(cls) -> Self:
        first_line = Path("/proc/stat").read_text().split("\n", 1)[0]
        user, nice, system, idle, waiting, irq, softirq, stolen = (
            int(field) / os.sysconf("SC_CLK_TCK") for field in first_line.split()[1:9]
        )
        busy = user + nice + system + irq + softirq + stolen
        return cls(total=busy + idle + waiting, busy=busy, stolen=stolen)

    def others_share(self, later: ProcessorTimes, own_seconds: float) -> float:
        """The share (0..1) of the machine that others used from here to `later`, while we used `own_seconds`."""
        total = later.total - self.total
        return max(0.0, (later.busy - self.busy - own_seconds) / total) if total > 0 else 0.0

    def stolen_share(self, later: ProcessorTimes) -> float:
        """The share (0..1) that the hypervisor gave to other machines from here to `later`."""
        total = later.total - self.total
        return (later.stolen - self.stolen) / total if total > 0 else 0.0


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "Model"):
            return value.strip()
    return platform.machine()
