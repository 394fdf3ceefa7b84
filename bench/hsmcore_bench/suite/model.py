"""What a benchmark run is made of. Plain data, which goes into the JSON file (result.py).

Times are nanoseconds where the name says `_ns`, seconds where it says `seconds`; rates are signatures per second.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from hsmcore.members.control.curves import Algorithm

TokenName = Literal["hsm", "noop", "none"]
Isolation = Literal["thread", "process"]
VerifySignatures = Literal["never", "always"]
Kind = Literal[
    "raw",  # the C loop
    "raw-open",  # the same of requests that come at random, so many a second
    "pkcs11-shared",  # python-pkcs11 as shipped: threads around one session
    "pkcs11-threads",  # python-pkcs11, module made thread-safe first: a session per thread
    "pkcs11-executor",  # the same behind run_in_executor
    "pykcs11",
    "sign",  # ours: await km.sign
    "sign-many",  # ours: await km.sign_many
    "sign-receipt",  # ours: await km.sign_with_receipt
    "cache-hit",  # ours: await km.sign of messages that the cache holds
    "cache-lookup",  # the cache's C function alone
    "gateway",  # ours: await sign of a client, through a gateway in a process of its own
    "gateway-vault",  # the same by Vault's API over HTTPS: `batch_input` of `batch`
    "sign-batched",  # ours: await km.sign_batched; with `batch`, sign_batched_many
    "verify-batched",  # no HSM: hsmcore.verify_batched, of a proof for a batch of 10,000
    "sign-open",  # ours: await km.sign of requests that come at random, so many a second
    "idle",  # ours: a key manager that nobody asks
    "verify",  # no HSM: one Ed25519 verification
    "flush",  # signs nothing: one line appended to a file, and fdatasync
    "echo",  # signs nothing: bytes to another process and back, by a Unix socket between two event loops
    "hand-over",  # signs nothing: two sleeping threads hand a token over and back
    "pynacl",  # a key in memory, libsodium
    "cryptography",  # a key in memory, OpenSSL
]
RAW: Final[tuple[Kind, ...]] = ("raw", "raw-open")
Call = Literal["met", "missed", "undecided", "not measured", ""]
Strike = Literal["host", "token", "hang", "flapping"]
Durability = Literal["write", "interval", "fsync"]


@dataclass(frozen=True, slots=True)
class Percentiles:
    p50: float
    p99: float
    p999: float
    mean: float


@dataclass(frozen=True, slots=True)
class Spread:
    median: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Contender:
    """One way to sign, measured in a process of its own."""

    name: str
    title: str
    kind: Kind
    group: str
    reference: str | None  # the contender that its rate is divided by, round by round
    token: TokenName = "hsm"
    algorithm: Algorithm = "ed25519"
    in_flight: int = 1  # callers that wait at the same time: threads or coroutines
    sessions: int = 1
    batch: int = 1  # messages per sign_many, or sign_batched_many
    latency_of: str = "call"  # what one latency value is the time of
    timed_every: int = 1  # one caller in so many reads the clock after each call
    isolation: Isolation = "thread"  # of ours: whether the module runs in a host process
    verify: VerifySignatures = "never"  # of ours: verify-after-sign
    device: str | None = None  # a name in devices.DEVICES: the token behind a device that takes its time
    members: int = 0  # of ours: so many in the primary level; 0: no failover block
    slices: float = 1.0  # its slices are so many times as long as the others'
    message_bytes: int | None = None  # None: as the run says
    per_second: float | None = None  # of sign-open and raw-open: requests a second
    share: float | None = None  # of these, instead: of the device's ceiling, or of what a closed loop just made
    watch_lag: bool = False  # a coroutine looks each millisecond how late the loop is
    audit: Durability | None = None  # of ours: with an audit log that is as durable
    scrape: bool = False  # of ours: with its console's server, whose /metrics is read once a second
    transactions: bool = False  # of ours: the messages are transactions
    policy: bool = False  # of ours: with a policy
    publish: bool = False  # of ours, with one: blocks are published in a log
    interval_ms: int = 20  # of sign-batched: when a batch closes
    strangers: int = 0  # of gateway: connections that say nothing
    neighbour: int = 0  # of gateway: requests that another client has open all the time
    blocks: float = 0.0  # of ours: the share of the calls that sign a block, each at a new position
    series: str = ""  # the line of a picture that it belongs to
    scenario: str = ""  # the file it comes from


@dataclass(frozen=True, slots=True)
class Scenario:
    """What one file in `scenarios/` says of all its contenders together."""

    name: str
    title: str  # of its part of the report; the group of its contenders
    about: str
    table: Literal["main", "apart"] = "apart"  # whether its rates are held against raw C on the token
    chart: Literal["bars", "curve", "parts", "open", "latency"] = "bars"
    x: str | None = None  # the contenders' field that a curve has on its x axis
    sizes: str | None = None  # a curve over sessions: the device that `bench size` may take from it
    words: list[str] = field(default_factory=list)  # other names for --only
    rounds: int | None = None  # at most so many


@dataclass(frozen=True, slots=True)
class RecoveryCase:
    """What is killed, how often, and what the killing is measured by."""

    name: str
    title: str
    kind: str  # of the child's job
    times: int
    token: TokenName
    device: str | None = None
    isolation: Isolation = "thread"
    sessions: int | None = None  # None: one per processor
    in_flight: int = 64


@dataclass(frozen=True, slots=True)
class FailoverCase:
    """What befalls the primary member, and how often; the secondary one is well."""

    name: Strike
    title: str
    times: int
    device: str
    isolation: Isolation
    seconds: float  # of load before and after it; of all of it for the one that comes and goes
    quick_seconds: float
    bound_ms: float | None  # of the longest pause of all
    median_ms: float | None = None  # of their median

    @property
    def kind(self) -> str:
        """Of the child's job."""
        return f"failover-{self.name}"


@dataclass(frozen=True, slots=True)
class Sample:
    """One slice: one contender, running alone for a fraction of a second."""

    contender: str
    round: int
    signatures: int
    seconds: float
    latency_ns: Percentiles | None
    lag_ns: Percentiles | None = None  # how late a 1 ms sleep on the event loop ended
    cpu_seconds: float | None = None  # processor time that the contender's process used, all threads
    others: float = 0.0  # share of the machine that other processes and the hypervisor used during it
    ceiling: float | None = None  # signatures per second that the device can make at most
    switches: int | None = (
        None  # voluntary ones of all threads of the process that signs: a gateway's, not its client's
    )
    calls: int | None = None  # of read and write, of a gateway
    parts_ns: Mapping[str, float] | None = None  # of ours: where the mean signature's time went, see child/ours.py

    @property
    def rate(self) -> float:
        return self.signatures / self.seconds


@dataclass(frozen=True, slots=True)
class Memory:
    """Resident memory of a signing process after so many signatures, read from /proc/self/statm after gc.collect()."""

    signatures: tuple[int, ...]
    rss_bytes: tuple[int, ...]

    @property
    def growth_bytes(self) -> int:
        return self.rss_bytes[-1] - self.rss_bytes[0]


@dataclass(frozen=True, slots=True)
class Break:
    """One time that something was killed under load, and the same time before and after it."""

    case: str  # a name in resilience.RECOVERY_CASES
    again_seconds: float  # until good signatures came again: the end of the longest pause between two of them
    rate_before: float
    rate_after: float  # of the whole time after, the pause included
    failed: int  # requests that ended with an error
    wrong: int  # signatures that were not what the key makes
    others: float = 0.0  # share of the machine that others used during it

    @property
    def kept(self) -> float:
        return self.rate_after / self.rate_before


@dataclass(frozen=True, slots=True)
class Switch:
    """One time that the primary of two levels failed under a steady load."""

    case: str  # a name in failover.CASES
    pause_seconds: float | None  # until good signatures came again: the end of the longest pause
    known_seconds: float | None  # the same, from when the levels moved; None: they did not have to
    asked: int
    failed: int  # requests that ended with an error
    lost: int  # requests without an answer
    wrong: int  # signatures that were not what the key makes
    twice: int  # answers beyond one
    p50_ns: float
    slow_percent: float  # of the requests: took longer than twice the median
    moves: int  # failovers
    errors: Mapping[str, int] = field(default_factory=dict)  # status -> how many failed with it
    others: float = 0.0  # share of the machine that others used during it


@dataclass(frozen=True, slots=True)
class Summary:
    """The samples of one contender, in one line."""

    contender: str
    rate: Spread
    ratio: Spread | None  # to the reference: divided within each round, then the median
    p50_ns: float | None
    p99_ns: float | None
    p999_ns: float | None
    lag_p99_ns: float | None
    cpu_ns: float | None  # processor time per signature
    of_ceiling: Spread | None = None  # the rate, relative to what the device can do


@dataclass(frozen=True, slots=True)
class Goal:
    """What is to be reached: what a number means, its unit and its bound."""

    name: str
    what: str
    formula: str
    unit: str
    bound: float | None  # None: a figure for its own sake, which nothing is held against
    at_least: bool


@dataclass(frozen=True, slots=True)
class Verdict(Goal):
    """A goal and what was reached. `met` is None when it was not measured, or when that decides nothing."""

    value: Spread | None
    met: bool | None
    worst_decides: bool = False  # not the median
    interval: tuple[float, float] | None = None  # in which the median lies, see targets.CONFIDENCE; None: too few

    @property
    def call(self) -> Call:
        """Empty for a figure that nothing is held against."""
        if self.value is None:
            return "not measured"
        if self.bound is None:
            return ""
        return "undecided" if self.met is None else "met" if self.met else "missed"

    @property
    def reached(self) -> float | None:
        """The number that is held against the bound."""
        if self.value is None or not self.worst_decides:
            return None if self.value is None else self.value.median
        return self.value.low if self.at_least else self.value.high


@dataclass(frozen=True, slots=True)
class HsmToken:
    """A token to sign on. The PIN stays in the environment variable HSM_PIN."""

    module: str
    token: str
    labels: Mapping[str, str]  # algorithm -> CKA_LABEL of its key


@dataclass(frozen=True, slots=True)
class Options:
    rounds: int = 15
    seconds: float = 0.25  # of each slice
    budget: float | None = 0.0  # seconds for more rounds of what undecided targets need; None: a share of the run
    only: str | None = None  # comma-separated names or patterns
    quick: bool = False  # without `only`: leave out what is not part of a quick run
    files: tuple[str, ...] = ()  # more scenarios
    message_bytes: int = 200
    patience: int = 2  # how often a slice is repeated that others disturbed
    seed: int = 1  # of the order within each round
    memory_signatures: int = 1_000_000
    breaks: int | None = None  # how often each thing is killed; None: as often as its case says
    watch_seconds: float = 1.05  # before and after each kill; five hosts in ten seconds are started again at once
    switch_seconds: float | None = None  # before and after each failure of a primary; None: as its case says
    token: HsmToken | None = None  # None: make one in a temporary directory
    noop_module: str | None = None  # None: the one that was built
