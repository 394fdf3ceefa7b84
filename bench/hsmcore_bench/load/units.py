"""Durations, rates and sizes as people write them."""

from __future__ import annotations

import re
from typing import Final

from hsmcore_bench.load.problems import UsageProblem

SECONDS_OF_UNIT: Final = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
BYTES_OF_UNIT: Final = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
_NUMBER: Final = r"(\d+(?:\.\d+)?)"
LONGEST: Final = 7 * 86_400.0
"""Seconds: a run that is longer is a slip."""
FASTEST: Final = 100e6
"""Requests per second."""


def seconds_of(text: str, what: str) -> float:
    """A duration such as 200ms, 30s, 10m or 1h. Raises UsageProblem, also for one without a unit."""
    match = re.fullmatch(_NUMBER + r"\s*([a-zµ]+)", text.strip())
    if match is None or match[2] not in SECONDS_OF_UNIT:
        raise UsageProblem(f"{what} {text!r}: a duration has a unit: {', '.join(SECONDS_OF_UNIT)}, such as 30s")
    seconds = float(match[1]) * SECONDS_OF_UNIT[match[2]]
    if seconds > LONGEST:
        raise UsageProblem(f"{what} {text!r}: at most a week")
    return seconds


def positive_seconds(text: str, what: str) -> float:
    """The same, and not zero."""
    seconds = seconds_of(text, what)
    if seconds <= 0:
        raise UsageProblem(f"{what} {text!r}: must be more than zero")
    return seconds


def rate_of(text: str, what: str) -> tuple[float, bool]:
    """A rate: (requests per second, False), or for "80%" (0.8, True), a share of what the device can do. Raises
    UsageProblem."""
    match = re.fullmatch(_NUMBER + r"\s*(%|/s)?", text.strip().replace("_", "").replace(",", ""))
    if match is None:
        raise UsageProblem(f"{what} {text!r}: expected requests per second, such as 2000, or a share, such as 80%")
    number, share = float(match[1]), match[2] == "%"
    if number <= 0 or number > (1000 if share else FASTEST):
        raise UsageProblem(f"{what} {text!r}: must be more than zero and at most {'1000%' if share else '100,000,000'}")
    return (number / 100, True) if share else (number, False)
