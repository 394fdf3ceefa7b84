"""Devices that take their time: a token behind the fault-injecting module, with the latency and capacity of a profile.

What they can do at most is known beforehand: servers divided by the mean time of a signature.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import exp, inf
from pathlib import Path
from typing import Any

import orjson

PR_SET_TIMERSLACK, PR_GET_TIMERSLACK = 29, 30


@dataclass(frozen=True, slots=True)
class Device:
    """A profile of the module, with another number of servers if one is given. Without a profile it is transparent."""

    profile: str | None
    servers: int | None = None

    def configuration(self, module: str, socket: Path | None = None) -> dict[str, Any]:
        """The file that makes the chaos module this device around `module`."""
        made: dict[str, Any] = {"module": module}
        if self.profile is not None:
            made["profile"] = self.profile
        if self.servers is not None:
            made["capacity"] = {"servers": self.servers}
        if socket is not None:
            made["socket"] = str(socket)
        return made

    def ceiling(self, profiles: Path) -> float | None:
        """Signatures per second at most; None where only the wrapped module limits them."""
        if self.profile is None:
            return None
        profile = orjson.loads((profiles / f"{self.profile}.json").read_bytes())
        servers: int = self.servers or profile["capacity"]["servers"]
        return servers / (mean_microseconds(profile["latency"]["C_Sign"]) / 1e6)


DEVICES: Mapping[str, Device] = {
    "5ms": Device("network-5ms"),
    "5ms-16": Device("network-5ms", servers=16),
    "5ms-64": Device("network-5ms", servers=64),
    "x2": Device("cloudhsm-hsm2m-x2"),
    "x3": Device("cloudhsm-hsm2m-x3"),
    "x6": Device("cloudhsm-hsm2m-x6"),
    "yubihsm2": Device("yubihsm2"),
    "transparent": Device(None),
}


def mean_microseconds(latency: Mapping[str, Any]) -> float:
    """The mean of one latency of a profile."""
    kind = latency["kind"]
    if kind == "constant":
        return float(latency["microseconds"])
    if kind == "lognormal" and "capMicroseconds" not in latency:
        offset = float(latency.get("offsetMicroseconds", 0.0))
        if "meanMicroseconds" in latency:
            return offset + float(latency["meanMicroseconds"])
        return offset + float(latency["medianMicroseconds"]) * exp(latency["sigma"] ** 2 / 2)
    if kind == "exponential":
        offset, mean = float(latency.get("offsetMicroseconds", 0.0)), float(latency["meanMicroseconds"])
        cap = float(latency.get("capMicroseconds", inf))
        return offset + mean * (1.0 - exp(-(cap - offset) / mean))  # of a message without bytes that cost extra
    raise ValueError(f"no mean is known for the latency {latency!r}")


@contextmanager
def punctual() -> Iterator[None]:
    """Processes that are started in here sleep exactly: the kernel would let them sleep 50 µs longer, one percent of
    what a network device takes, and the module that plays the device sleeps in them."""
    prctl = ctypes.CDLL(None).prctl
    before = prctl(PR_GET_TIMERSLACK, 0, 0, 0, 0)
    prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0)
    try:
        yield
    finally:
        prctl(PR_SET_TIMERSLACK, before, 0, 0, 0)
