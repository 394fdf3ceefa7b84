"""How a child is told what to do: its job as JSON in argv, commands on standard input, JSON lines on standard output.

`run SECONDS` signs for so long and answers with the figures of one slice (a recovery job then kills something, and
signs for as long again; a failover job has the primary of two levels fail); `memory N` makes N signatures and answers
with the resident memory; `quit`, or the end of the input, ends it. The PIN comes in an environment variable.
"""

from __future__ import annotations

import fcntl
import gc
import os
import resource
import sys
from array import array
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from math import inf
from pathlib import Path
from time import perf_counter_ns
from typing import Any, Protocol, runtime_checkable

import orjson

PIN_ENV = "HSM_PIN"
TIMING_CALLS = 4_000


@dataclass(frozen=True, slots=True)
class Job:
    kind: str
    module: str
    token: str
    label: str
    algorithm: str
    in_flight: int
    sessions: int
    batch: int
    message_bytes: int
    timed_every: int
    watch_lag: bool
    provider: str  # "softhsm" or "pkcs11": the key manager type for hsmcore
    isolation: str = "thread"
    verify: str = "never"
    control: str | None = None  # the socket of the module that injects faults
    places: list[dict[str, str]] = field(default_factory=list)  # members of levels: module, args, token, control
    state: str = ""  # where levels keep their state
    audit: str | None = None  # durability of the audit log; None: there is none
    audit_file: str = ""
    scrape: bool = False  # /metrics is read over HTTP once a second
    transactions: bool = False  # the messages are transactions
    policy: bool = False  # there is one, whose positions are in `state`
    public: str = ""  # the folder of the public log of blocks; "": there is none
    interval_ms: int = 20  # of sign-batched
    strangers: int = 0  # of gateway: connections that say nothing
    neighbour: int = 0  # of gateway: requests that another client has open all the time
    blocks: float = 0.0  # the share of calls that sign a block, each at a new position
    per_second: float = 0.0  # of sign-open
    share: float = 0.0  # of sign-open without it: of what a closed loop made just before
    rotate: bool = False  # keys may be rotated; the state is in `state`
    turn: str = ""  # a file to lock while the token is opened: SoftHSM rewrites its files at each login

    def to_json(self) -> str:
        return orjson.dumps(asdict(self)).decode()

    @classmethod
    def from_json(cls, text: str) -> Job:
        return cls(**orjson.loads(text))


class Signer(Protocol):
    """What a child measures. All calls come from its main thread."""

    def describe(self) -> Mapping[str, Any]:
        """`signature` of the check message in hex, and what may be told of the module and the event loop."""

    def run(self, seconds: float) -> Mapping[str, Any]: ...

    def close(self) -> None: ...


@runtime_checkable
class CountingSigner(Signer, Protocol):
    """One whose memory is measured."""

    def sign_times(self, count: int) -> None: ...


def check_message(size: int) -> bytes:
    """The bytes 0, 1, 2, ...: what the raw C loop signs, too."""
    return bytes(i & 0xFF for i in range(size))


def distinct_messages(count: int, size: int) -> list[bytes]:
    """Messages that differ from each other in their first bytes."""
    if size < 4:
        raise ValueError("distinct messages need at least 4 bytes")
    rest = check_message(size - 4)
    return [i.to_bytes(4, "little") + rest for i in range(count)]


def slice_figures(
    signatures: int, seconds: float, latencies: Mapping[str, float] | None, lag: Mapping[str, float] | None = None
) -> dict[str, Any]:
    return {"signatures": signatures, "seconds": seconds, "latency_ns": latencies, "lag_ns": lag}


def timing_cost_ns() -> float:
    """What taking one latency costs at least: a clock reading, a subtraction, an append."""
    best = inf
    for _ in range(5):
        record = array("q").append
        last = began = perf_counter_ns()
        for _ in range(TIMING_CALLS):
            now = perf_counter_ns()
            record(now - last)
            last = now
        best = min(best, (last - began) / TIMING_CALLS)
    return best


def rss_bytes() -> int:
    """Resident memory of this process, after a full garbage collection."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


@contextmanager
def one_at_a_time(path: str) -> Iterator[None]:
    """Hold the lock of a file; without a path there is nothing to hold."""
    if not path:
        yield
        return
    with Path(path).open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


class Replies:
    """The line back to the parent. Any other output goes to standard error from now on."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "wb", buffering=0)
        os.dup2(2, 1)
        sys.stdout = sys.stderr

    def send(self, reply: Mapping[str, Any]) -> None:
        self._out.write(orjson.dumps(dict(reply)) + b"\n")


def serve(signer: Signer, replies: Replies) -> None:
    """Answer commands until told to stop."""
    replies.send({"ready": True, "timing_ns": timing_cost_ns(), **signer.describe()})
    for line in sys.stdin:
        command, _, argument = line.strip().partition(" ")
        if command == "run":
            replies.send(signer.run(float(argument)))
        elif command == "memory" and isinstance(signer, CountingSigner):
            signer.sign_times(int(argument))
            replies.send({"rss_bytes": rss_bytes()})
        elif command == "quit":
            return
        else:
            raise ValueError(f"unknown command {command!r}")
