"""What goes wrong next: a queue of faults, and how the service behaves as a whole."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal["error", "hang", "drop", "garbage", "patch"]


@dataclass
class Fault:
    """One answer that goes wrong. `operation` None: whatever is called."""

    kind: Kind
    operation: str | None = None
    error: str = ""
    status: int = 400
    patch: dict[str, Any] = field(default_factory=dict)
    times: int = 1


class Faults:
    """Set from the test's thread, read by the server's: single assignments and deque operations only."""

    def __init__(self) -> None:
        self.latency = 0.0
        """Seconds that every answer takes."""
        self.clock_ahead = 0.0
        """Seconds by which the service's clock is ahead of this machine's."""
        self.ceiling: int | None = None
        """Requests served at once; more are throttled."""
        self.queue: deque[Fault] = deque()

    def add(self, kind: Kind, operation: str | None = "Sign", *, times: int = 1, **details: Any) -> None:
        """Have the next `times` calls of the operation go wrong."""
        self.queue.append(Fault(kind, operation, times=times, **details))

    def error(self, name: str, operation: str | None = "Sign", *, status: int = 400, times: int = 1) -> None:
        """Have the next `times` calls of the operation answered with an error of AWS."""
        self.add("error", operation, error=name, status=status, times=times)

    def take(self, operation: str) -> Fault | None:
        """The fault for this call, if there is one."""
        for fault in list(self.queue):
            if fault.operation in (None, operation):
                fault.times -= 1
                if fault.times <= 0:
                    self.queue.remove(fault)
                return fault
        return None
