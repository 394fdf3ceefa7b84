"""The later acts of the demonstration, on two SoftHSM tokens of their own."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import structlog
import uvloop

from hsmcore_bench.demo.failover import play_failover
from hsmcore_bench.demo.report import failover_text, rotation_text
from hsmcore_bench.demo.rotation import play_rotation
from hsmcore_bench.demo.steady import Tell, silent
from hsmcore_bench.demo.twins import twins


def run_acts(tell: Tell, *, failover: bool, rotation: bool) -> dict[str, Any]:
    """Play them under uvloop; `tell` hears of what happens, a line each. Raises ModuleMissing without SoftHSM."""
    tell("\nmaking two SoftHSM tokens that hold one key")
    played: dict[str, Any] = {}
    with twins() as made, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner, _silence():
        if failover:
            played["failover"] = runner.run(play_failover(made, tell))
            tell(failover_text(played["failover"]))
        if rotation:
            tell("\nrotating the key of one of them")
            played["rotation"] = runner.run(play_rotation(made, tell))
            tell(rotation_text(played["rotation"]))
    return played


@contextmanager
def _silence() -> Iterator[None]:
    configured = structlog.get_config() if structlog.is_configured() else None
    structlog.configure(processors=[silent])
    try:
        yield
    finally:
        structlog.reset_defaults()
        if configured is not None:
            structlog.configure(**configured)
