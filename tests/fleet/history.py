"""What a signer writes down of itself, a line of JSON each, with one write: whole or not at all, however it ends.

`release` is written as soon as a signature was handed out, before anything else is asked for. Its times are of the
kernel's clocks, also where the process is shown others (libfaketime).
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hsmcore.audit.layout import Layout
from hsmcore.audit.query import Query

BOOTTIME = 7
_CLOCK_GETTIME = {"x86_64": 228, "aarch64": 113}[platform.machine()]


class _Time(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


_syscall = ctypes.CDLL(None).syscall


def true_boottime() -> int:
    """CLOCK_BOOTTIME in nanoseconds, by the system call itself: libfaketime replaces functions of the C library."""
    found = _Time()
    _syscall(ctypes.c_long(_CLOCK_GETTIME), ctypes.c_long(BOOTTIME), ctypes.byref(found))
    return int(found.seconds) * 1_000_000_000 + int(found.nanoseconds)


def lines_of(history: Path) -> list[dict[str, Any]]:
    """The whole lines of a history. The kernel ends a write at a page's end if the process is killed in it, and shows
    the part that is there to those who read meanwhile: such a line was not yet written."""
    return lines_since(history, 0)[0]


def lines_since(history: Path, place: int) -> tuple[list[dict[str, Any]], int]:
    """The whole lines behind a place of a history, and the place behind them: who looks again and again reads each line
    once."""
    found = []
    if not history.exists():
        return [], 0
    with history.open("rb") as file:
        file.seek(place)
        *lines, rest = file.read().split(b"\n")
        place = file.tell() - len(rest)
    for line in lines:
        with suppress(json.JSONDecodeError):
            found.append(json.loads(line))
    return found, place


def stalled_for(histories: Iterable[Sequence[dict[str, Any]]], since: int) -> float:
    """For how many seconds since a moment the machine had no time for one of some processes at least, as they note."""
    spans = sorted((max(line["since"], since), line["at"]) for lines in histories for line in lines
                   if line["what"] == "stall" and line["at"] > since)  # fmt: skip
    total, until = 0, since
    for begun, ended in spans:
        total, until = total + max(ended - max(begun, until), 0), max(until, ended)
    return total / 1e9


class Writer:
    """Appends to a history. A process that goes on from an earlier one appends to the same file."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.write(self._fd, b"\n")  # an earlier process may have been killed in a line

    def write(self, what: str, **fields: Any) -> None:
        """Append a line."""
        os.write(self._fd, json.dumps({"what": what, "at": true_boottime(), **fields}).encode() + b"\n")

    def close(self) -> None:
        """End it."""
        os.close(self._fd)


@dataclass
class Host:
    """All that one host has written down, in all its lives."""

    name: str
    lines: list[dict[str, Any]] = field(default_factory=list)
    records: list[dict[str, Any]] = field(default_factory=list)
    """Of its audit log."""
    stops: list[tuple[int, int]] = field(default_factory=list)
    """When it was stopped, or the machine had no time for it, and it went on."""
    rate: float = 1.0
    """Of the clock that it was shown, against the true one."""

    @classmethod
    def read(cls, name: str, history: Path, log: Path, **more: Any) -> Host:
        """Read a host's files."""
        lines = lines_of(history)
        stalls = [(line["since"], line["at"]) for line in lines if line["what"] == "stall"]
        more["stops"] = [*more.get("stops", ()), *stalls]
        found = [record for block in Query(Layout(log), None, None, None).blocks() for record in block]
        return cls(name, lines, found, **more)

    def of(self, what: str) -> list[dict[str, Any]]:
        """The lines of that sort."""
        return [line for line in self.lines if line["what"] == what]

    def answers(self) -> Counter[str]:
        """Outcomes by status."""
        return Counter(line["status"] for line in self.of("answer")) + Counter(released=len(self.of("release")))
