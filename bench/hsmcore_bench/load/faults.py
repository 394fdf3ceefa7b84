"""Faults on a timeline: what the chaos module is told, and when."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from hsmcore_bench.load.problems import UsageProblem
from hsmcore_bench.load.units import positive_seconds, seconds_of

ACTIONS: Final = (
    "return",
    "hang",
    "kill-session",
    "kill-all-sessions",
    "logout",
    "remove-token",
    "wrong-signature",
    "other-key-signature",
    "long-signature",
    "short-signature",
    "recycle-handle",
    "crash",
    "exit",
)
_TIMED: Final = ("hang", "remove-token")
_DEFAULT_MS: Final = 1000
_FORM: Final = "[AT] [every PERIOD]:FUNCTION:ACTION[:DETAIL][:xTIMES]"
_NEVER: Final = 1 << 62
"""The call that no run reaches: a fault for it only shows whether the chaos module understands it."""


@dataclass(frozen=True, slots=True)
class Fault:
    """A command for the chaos module `at` seconds after the start, and again each `every` seconds."""

    text: str
    at: float
    every: float | None
    command: Mapping[str, Any]

    def moments(self, seconds: float) -> Iterator[float]:
        """When it is due in a run of so many seconds."""
        at = self.at
        while at < seconds:
            yield at
            if self.every is None:
                return
            at += self.every

    @property
    def rehearsal(self) -> Mapping[str, Any] | None:
        """The same command without an effect; None if there is none."""
        if self.command.get("cmd") != "fault":
            return None
        chances = ("nth", "every", "probability", "count")
        return {**{key: value for key, value in self.command.items() if key not in chances}, "nth": _NEVER}


def fault_of(text: str) -> Fault:
    """Parse "5s:C_Sign:hang:200ms", "every 5s:C_Sign:kill-session" or "2s every 5s:C_Sign:return:CKR_DEVICE_ERROR:x4".
    Raises UsageProblem."""
    when, *what = [part.strip() for part in text.split(":")]
    match = re.fullmatch(r"(\S+)?\s*(?:\bevery\s+(\S+))?", when)
    if len(what) < 2 or match is None or not when:
        raise UsageProblem(f"--fault {text!r}: expected {_FORM}, such as 5s:C_Sign:hang:200ms")
    every = positive_seconds(match[2], f"--fault {text!r}: every") if match[2] else None
    at = seconds_of(match[1], f"--fault {text!r}: at") if match[1] else every or 0.0
    return Fault(text, at, every, {"cmd": "fault", **_strike(text, what)})


def _strike(text: str, what: Sequence[str]) -> dict[str, Any]:
    function, action, *details = what
    if action not in ACTIONS:
        raise UsageProblem(f"--fault {text!r}: no action {action!r}; there are {', '.join(ACTIONS)}")
    fault: dict[str, Any] = {"function": function, "action": action, "nth": 1}
    times = next((detail for detail in details if re.fullmatch(r"x\d{1,6}", detail)), None)
    if times is not None:
        details.remove(times)
        del fault["nth"]
        fault |= {"every": 1, "count": max(1, int(times[1:]))}
    detail = details.pop(0) if details else None
    if details:
        raise UsageProblem(f"--fault {text!r}: too much behind {action}; expected {_FORM}")
    if action == "return":
        if detail is None:
            raise UsageProblem(f"--fault {text!r}: say what the call returns, such as return:CKR_DEVICE_ERROR")
        return {**fault, "ckr": int(detail, 0) if re.fullmatch(r"0x[0-9a-fA-F]+|\d+", detail) else detail}
    if action in _TIMED:
        if detail == "forever":
            return {**fault, "forever": True}
        long = _DEFAULT_MS if detail is None else round(positive_seconds(detail, f"--fault {text!r}: {action}") * 1000)
        return {**fault, "milliseconds": max(1, long)}
    if action == "exit" and detail is not None:
        return {**fault, "code": int(detail) if detail.isdecimal() else detail}
    if detail is not None:
        raise UsageProblem(f"--fault {text!r}: {action} takes no {detail!r}")
    return fault


def timeline_of(path: Path) -> tuple[Fault, ...]:
    """Read a timeline: a JSON array of {"at": "5s", "every": "20s", "fault": {…}} or, instead of a fault, any "command"
    of the chaos module's control socket. Raises UsageProblem."""
    try:
        entries = json.loads(path.read_bytes())
    except OSError as error:
        raise UsageProblem(f"--timeline {path}: {error.strerror}") from None
    except ValueError as error:
        raise UsageProblem(f"--timeline {path}: {error}") from None
    if not isinstance(entries, list):
        raise UsageProblem(f"--timeline {path}: expected a JSON array")
    return tuple(_entry(entry, f"--timeline {path}: $[{index}]") for index, entry in enumerate(entries))


def _entry(entry: object, where: str) -> Fault:
    if not isinstance(entry, dict) or not {"fault", "command"} & entry.keys():
        raise UsageProblem(f'{where}: expected an object with "at" and either "fault" or "command"')
    unknown = entry.keys() - {"at", "every", "fault", "command"}
    if unknown or len({"fault", "command"} & entry.keys()) > 1:
        raise UsageProblem(f"{where}: unknown or too many fields: {', '.join(sorted(unknown or entry.keys()))}")
    body = entry.get("fault", entry.get("command"))
    if not isinstance(body, dict):
        raise UsageProblem(f"{where}: a fault is an object, as docs/CHAOS.md has it")
    every = positive_seconds(str(entry["every"]), f"{where}.every") if "every" in entry else None
    at = seconds_of(str(entry["at"]), f"{where}.at") if "at" in entry else every or 0.0
    command = {"cmd": "fault", **body} if "fault" in entry else body
    if "fault" in entry and not {"nth", "every", "probability"} & command.keys():
        command = {**command, "nth": 1}
    return Fault(json.dumps(body, sort_keys=True), at, every, command)
