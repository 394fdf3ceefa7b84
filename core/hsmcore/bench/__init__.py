"""Benchmarks: hsmcore beside a raw C loop and beside the libraries one would use otherwise, measured in turn.

>>> from hsmcore.bench import Options, run
>>> result = run(Options(rounds=3, seconds=0.3, only="raw,sign-64"))
"""

from hsmcore.bench.model import HsmToken, Options, Result
from hsmcore.bench.runner import Progress, run

__all__ = ["HsmToken", "Options", "Progress", "Result", "run"]
