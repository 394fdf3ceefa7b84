"""A YubiHSM 2 in software: device, secure channel and connector, for tests and demonstrations.

It does what the real one does as far as a client can tell: sessions, permissions, audit log, latency. It protects
nothing: keys lie in this process's memory. `python -m tests.support.yubihsm --help` runs one as a program.
"""

from __future__ import annotations

from .codes import Algorithm, Capability, Command, Error, Kind
from .connector import Connector
from .device import PROFILES, Device

__all__ = ["PROFILES", "Algorithm", "Capability", "Command", "Connector", "Device", "Error", "Kind"]
