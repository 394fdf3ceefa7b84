"""Faults that a test asks for: what goes wrong, with which command, and how often."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Literal

FaultKind = Literal[
    "drop",  # the connection is closed, nothing is executed
    "lose-reply",  # executed, then the connection is closed
    "hang",  # no answer and nothing executed until `Faults.release`
    "garbage",  # random bytes for an answer
    "truncate",  # half an answer
    "http-error",  # status 500, as the connector answers while the device is unplugged
    "error",  # a device error, by `code`
    "corrupt-mac",  # an answer whose R-MAC is wrong
    "wrong-signature",  # a signature with one bit flipped
    "slow",  # `seconds` more
]
TRANSPORT = frozenset({"drop", "lose-reply", "hang", "garbage", "truncate", "http-error"})


@dataclass(slots=True)
class Fault:
    """One fault. `command` None: any; `count` None: until cleared; `after`: so many are let through first."""

    kind: FaultKind
    command: int | None = None
    count: int | None = 1
    after: int = 0
    code: int = 0
    seconds: float = 0.0


class Faults:
    """The plan of one device. Any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._plan: list[Fault] = []
        self._released = threading.Event()
        self.struck: list[str] = []
        self.hanging = 0

    def add(self, fault: Fault) -> None:
        """Plan a fault; earlier ones come first."""
        with self._lock:
            if fault.kind == "hang":
                self._released.clear()
            self._plan.append(fault)

    def clear(self) -> None:
        """Forget what is planned, and let go what hangs."""
        with self._lock:
            self._plan.clear()
        self.release()

    def take(self, command: int) -> Fault | None:
        """The fault that strikes this command, if any."""
        with self._lock:
            for fault in self._plan:
                if fault.command not in (None, command):
                    continue
                if fault.after > 0:
                    fault.after -= 1
                    continue
                if fault.count is not None:
                    fault.count -= 1
                    if fault.count == 0:
                        self._plan.remove(fault)
                self.struck.append(fault.kind)
                return fault
        return None

    def wait(self) -> None:
        """Hang until released."""
        with self._lock:
            self.hanging += 1
        self._released.wait()
        with self._lock:
            self.hanging -= 1

    def release(self) -> None:
        """End every hang, now and of those that are planned."""
        self._released.set()
