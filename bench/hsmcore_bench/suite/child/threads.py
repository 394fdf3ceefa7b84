"""The closed loop in plain threads: each one signs, reads the clock, and signs again."""

from __future__ import annotations

import threading
from array import array
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from time import perf_counter_ns
from typing import Any

from hsmcore_bench.suite.child.protocol import slice_figures
from hsmcore_bench.suite.stats import percentiles


def threaded_slice(signers: Sequence[Callable[[], object]], seconds: float) -> dict[str, Any]:
    """Call each signer in a thread of its own, again and again, for so long. Raises what a failing call does."""
    barrier = threading.Barrier(len(signers))

    def work(sign: Callable[[], object]) -> tuple[int, int, array[int]]:
        latencies = array("q")
        record, clock = latencies.append, perf_counter_ns
        barrier.wait()
        began = last = clock()
        deadline = last + int(seconds * 1e9)
        while last < deadline:
            sign()
            now = clock()
            record(now - last)
            last = now
        return began, last, latencies

    with ThreadPoolExecutor(len(signers)) as pool:
        slices = [future.result() for future in [pool.submit(work, sign) for sign in signers]]
    began = min(start for start, _, _ in slices)
    ended = max(end for _, end, _ in slices)
    together = [value for _, _, latencies in slices for value in latencies]
    figures = percentiles(together)
    return slice_figures(len(together), (ended - began) / 1e9, None if figures is None else asdict(figures))
