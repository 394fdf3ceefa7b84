"""Benchmarks: hsmcore beside a raw C loop and beside the libraries one would use otherwise, measured in turn.

>>> from hsmcore_bench.suite import Options, run
>>> result = run(Options(rounds=3, seconds=0.3, only="raw,sign-64"))
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hsmcore_bench.suite.model import HsmToken, Options
    from hsmcore_bench.suite.result import Result
    from hsmcore_bench.suite.runner import Progress, run

__all__ = ["HsmToken", "Options", "Progress", "Result", "run"]


def __getattr__(name: str) -> Any:
    """What runs a benchmark is loaded when it is asked for: the processes that only sign do without it."""
    if name in ("Progress", "run"):
        from hsmcore_bench.suite import runner

        return getattr(runner, name)
    if name == "Result":
        from hsmcore_bench.suite.result import Result

        return Result
    if name in ("HsmToken", "Options"):
        from hsmcore_bench.suite import model

        return getattr(model, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
