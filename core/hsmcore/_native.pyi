"""Types of the extension module. The docstrings in bindings/ say what each call does, in which thread, its errors."""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable, Sequence
from contextvars import Context
from typing import Any, Generic, NamedTuple, Self, TypeVar, final

from hsmcore.base.keyring import KeyVersion
from hsmcore.base.receipt import Receipt
from hsmcore.errors import HsmError

_T = TypeVar("_T")

@final
class Digest:
    """Takes the place of a message: 32 bytes that an ECDSA key signs as they are."""

    value: bytes
    def __init__(self, value: object) -> None: ...
    def __len__(self) -> int: ...

class Requests:
    """One member's rings, signature cache and futures: the event loop's side of an Engine or a Guest."""

    completed: int
    rejected: int
    abandoned: int
    refused: int
    def __init__(
        self,
        *,
        member: str,
        slots: int,
        max_message: int,
        max_workers: int,
        coalesce_seconds: float,
        default_timeout: float,
        cache_size: int,
        single_flight: bool,
        cache_nondeterministic: bool,
        digests: bool = False,
        takes_digests: bool = False,
    ) -> None: ...
    def set_down(self, down: bool, status: str | None = None) -> None: ...
    def signs_with(self, index: int) -> bool: ...
    def attach(self, loop: asyncio.AbstractEventLoop, on_overdue: Callable[[], None] | None = None) -> None: ...
    def signs_as(self, key: int, version: KeyVersion, member: str, level: str) -> None: ...
    def refuse(self) -> None: ...
    def detach(self) -> None: ...
    def idle(self) -> asyncio.Future[None]: ...
    def submit(
        self, message: object, timeout: float | None = None, key: int = 0, extra: bytes | None = None, own: bool = False
    ) -> bytes | asyncio.Future[bytes]: ...
    def ask(
        self,
        message: object,
        timeout: float | None = None,
        key: int = 0,
        extra: bytes | None = None,
        gather: bool = False,
        waiter: Waiter | None = None,
    ) -> asyncio.Future[Receipt]: ...
    def hand_out_under(self, lease: Lease | None) -> None: ...
    def record_in(self, journal: Journal) -> None: ...
    def set_tail(self, key: int, tail: bytes) -> None: ...
    def submit_many(
        self,
        messages: object,
        timeout: float | None = None,
        return_exceptions: bool = False,
        key: int = 0,
        extra: bytes | None = None,
    ) -> asyncio.Future[list[Any]]: ...
    def abandon(self, future: asyncio.Future[Any]) -> bool: ...
    place: Any
    def asked_for(self, answer: Any) -> tuple[int, bytes | Digest] | None: ...
    def move(self, status: str = "DEADLINE_EXCEEDED") -> None: ...
    def clear_cache(self) -> None: ...
    @property
    def in_flight(self) -> int: ...
    @property
    def waiting(self) -> int: ...
    def stats(self) -> dict[str, Any]: ...
    def cache_stats(self) -> dict[str, int]: ...

@final
class Lease:
    """Until when this host may hand out signatures: set by the event loop, ended by the clock."""

    until: int
    holder: str
    epoch: int
    reason: str
    @property
    def is_over(self) -> bool: ...
    @property
    def awaited(self) -> int: ...
    @property
    def round(self) -> int: ...
    def confirm_each(self, wake: Callable[[bool], object]) -> None: ...
    def begin_round(self) -> int: ...
    def end_round(self, round: int) -> None: ...
    def refusal(self, member: str | None = None) -> HsmError: ...

@final
class Engine(Requests):
    """One member's rings, workers, signature cache and futures. Belongs to the event loop of `attach`."""

    def start(
        self,
        *,
        module_path: str,
        module_args: str | None = None,
        quirks: str | None = None,
        token_label: str | None = None,
        token_serial: str | None = None,
        slot_id: int = -1,
        pin: bytearray | None = None,
        workers: int = 1,
        spin_seconds: float = 0.0,
        patience_seconds: float = 0.0,
        verify_every: int = 0,
        host_program: str | None = None,
        environment: list[bytes] | None = None,
        memory_limit: int = 0,
        host_timeout: float = 30.0,
    ) -> None: ...
    @property
    def host_fd(self) -> int: ...
    @property
    def host_pid(self) -> int | None: ...
    @property
    def hardening(self) -> tuple[tuple[str, ...], int] | None: ...
    def kill_host(self) -> None: ...
    def recover(self) -> int: ...
    def restart_host(self, pin: bytearray | None = None) -> str | None: ...
    def supervise(self) -> tuple[int, int]: ...
    def add_key(
        self,
        *,
        label: str | None = None,
        id: bytes | None = None,
        handle: int = -1,
        algorithm: str | None = None,
        public_key: bytes | None = None,
    ) -> dict[str, Any]: ...
    def retire_key(self, index: int) -> None: ...
    def stop(self, timeout: float) -> int: ...
    def release(self) -> None: ...
    def token(self) -> dict[str, Any]: ...

class Guest(Requests):
    """An engine without workers: its runners, numbered from 0, are the caller's. Belongs to one event loop."""

    def serve(self, runners: int, verify_every: int, pump: Callable[[], None]) -> None: ...
    def pin(
        self, algorithm: str, public_key: bytes, max_message: int | None = None, limit: str = "its limit"
    ) -> int: ...
    def retire_key(self, index: int) -> None: ...
    def begin(self, runner: int) -> tuple[int, Any] | None: ...
    def end(self, runner: int, result: bytes | HsmError) -> None: ...
    def deliver(self) -> None: ...
    def overran(self, runner: int) -> bool: ...
    def refuse_queued(self, status: str) -> None: ...
    def release(self) -> None: ...

@final
class Routes:
    """The members that share the requests of callers now. Belongs to one event loop."""

    def __init__(
        self,
        long_way: Callable[[Any, float | None, bytes | None], Awaitable[bytes]],
        long_way_with_receipt: Callable[[Any, float | None, bytes | None, bytes | None], Coroutine[Any, Any, Receipt]],
        fall_back: Callable[..., asyncio.Future[Any]],
    ) -> None: ...
    def aim(
        self,
        ramping: Sequence[tuple[Any, int, int]],
        steady: Sequence[tuple[Any, int, int]],
        *,
        round: int = 1,
        halve: bool = False,
        decide: Callable[[Any], bool] | bool | None = None,
    ) -> None: ...
    def pick(self) -> Any: ...
    def submit(
        self, message: object, timeout: float | None = None, _key: int = 0, extra: bytes | None = None
    ) -> bytes | Awaitable[bytes]: ...
    def ask(
        self,
        message: object,
        timeout: float | None = None,
        _key: int = 0,
        extra: bytes | None = None,
        gather: bool = False,
        only: bytes | None = None,
        waiter: Waiter | None = None,
    ) -> asyncio.Future[Receipt] | Coroutine[Any, Any, Receipt]: ...

@final
class Journal:
    """Appends lines to an audit log and has a native thread write them in groups. Belongs to one event loop."""

    fail_open: bool
    dropped: int
    def __init__(
        self,
        *,
        path: str,
        archive: str,
        first_seq: int,
        next_seq: int,
        rotate_bytes: int,
        interval_seconds: float,
        durability: str,
        fail_open: bool,
        wait_seconds: float,
        max_pending: int,
        last_time_ns: int = 0,
    ) -> None: ...
    def attach(
        self,
        loop: asyncio.AbstractEventLoop,
        changed: Callable[[int, int], None],
        refusal: Callable[[int], Exception],
        clock_stepped: Callable[[int, int], None],
    ) -> None: ...
    def stamp(self) -> int: ...
    def condemn(self) -> None: ...
    def detach(self) -> None: ...
    def close(self) -> int: ...
    def put(self, line: bytes) -> None: ...
    @property
    def next(self) -> int: ...
    @property
    def kept(self) -> int: ...
    @property
    def written(self) -> int: ...
    @property
    def failure(self) -> int: ...
    @property
    def pending(self) -> int: ...
    @property
    def full(self) -> bool: ...
    @property
    def late(self) -> bool: ...
    def stats(self) -> dict[str, Any]: ...

@final
class Turn:
    """A context in which no other thread, in any process of this machine, is in one for the same token store
    (hsm_turn_begin). Entering it blocks for a second at most. They nest."""

    def __init__(self, path: str, quirks: str | None = None) -> None: ...
    def __enter__(self) -> None: ...
    def __exit__(self, *exc_info: object) -> None: ...

@final
class Module:
    """Keeps a module loaded and initialized, for the control plane. Blocks. Any thread."""

    path: str
    def __init__(self, path: str, args: str | None = None) -> None: ...
    def enter(self) -> int: ...
    def exit(self) -> None: ...
    def close(self) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(self, *exc_info: object) -> None: ...

@final
class MerkleTree:
    """An RFC 6962 tree over SHA-256 that keeps its frontier. One thread at a time."""

    def __init__(self, size: int = 0, frontier: bytes = b"") -> None: ...
    @property
    def size(self) -> int: ...
    def frontier(self) -> bytes: ...
    def append(self, leaf: bytes) -> None: ...
    def root(self) -> bytes: ...
    def leaf(self, line: bytes) -> bytes: ...
    def node(self, left: bytes, right: bytes) -> bytes: ...
    def over(self, hashes: bytes, width: int = 0) -> bytes: ...
    def scan(
        self, text: bytes, offset: int, next_seq: int, max_lines: int
    ) -> tuple[str, int, bytes, list[tuple[int, int, int, int, int, int, int, int, int]]]: ...
    def scan_file(
        self, fd: int, offset: int, next_seq: int, max_lines: int, mark: bytes
    ) -> tuple[str, int, bytes, list[tuple[int, int, int, int, int, int, int, int, int]], bytes]: ...

def store_files(files: list[tuple[bytes, bytes]]) -> None: ...

@final
class Histogram:
    """Times in nanoseconds that Python measures, in the native core's buckets. One writer; readers in any thread."""

    sum: int
    def __init__(self) -> None: ...
    def add(self, ns: int) -> None: ...
    def rows(self) -> list[tuple[int, int]]: ...
    def octaves(self) -> list[int]: ...

class Look(NamedTuple):
    """What a message is. `refusal`: why the rules refuse it, as one sentence; None: they do not."""

    kind: str
    refusal: str | None
    domain: str | None
    position: int | None
    moves: tuple[tuple[str, int], ...] = ()
    """What leaves owned accounts: (address, amount) of each."""

MOST_OWNED: int
"""Accounts that may be owned."""
PROGRAMS: dict[str, tuple[tuple[bytes, ...], tuple[str, ...]]]
"""The programs that have a name: their addresses, and their instructions' names; none: they are not told apart."""

@final
class Gate:
    """Says what a message is, and whether the rules of a policy for payloads let it be signed. Any thread."""

    def __init__(
        self,
        *,
        kinds: Collection[str] | None,
        domain: str,
        formats: Sequence[tuple[str, bytes, int, int, int, bool]] = (),
        programs: Sequence[bytes] | None = None,
        instructions: Iterable[tuple[str, str]] = (),
        recipients: Sequence[bytes] | None = None,
        owned: Iterable[bytes] = (),
        max_fee: int = 0,
        role: str = "any",
        callers: bool = False,
    ) -> None: ...
    def passes(self, message: object, kind: str | None, position: int | None = None) -> bool: ...
    def passes_all(self, messages: list[Any], kind: str | None = None) -> bool: ...
    def look(self, message: object, kind: str | None = None, signers: Sequence[bytes] = ()) -> Look: ...

@final
class BatchedSignature:
    """A message's place in a batch that is signed. It keeps the tree of its batch."""

    @property
    def proof(self) -> bytes:
        """The C2SP tlog-proof. Made at each use."""
    @property
    def index(self) -> int:
        """The message's number: each is given once under a domain."""
    @property
    def root(self) -> bytes:
        """The root of the batch's tree."""
    @property
    def key_id(self) -> str:
        """The id of the key that signed the root."""
    @property
    def public_key(self) -> bytes:
        """The public key that signed the root."""
    @property
    def audit_seq(self) -> int | None:
        """The number of the root's audit record; None without a log."""

@final
class Leaves:
    """The messages of one batch. Belongs to one event loop, but for `build`."""

    first: int
    count: int
    def __init__(self, loop: asyncio.AbstractEventLoop | None = None) -> None: ...
    def add(
        self, gate: Gate, message: object, kind: str | None, timeout: int, most: int, caller: str | None = None
    ) -> asyncio.Future[BatchedSignature] | None: ...
    def add_judged(
        self, message: bytes, kind: str, timeout: int, most: int, caller: str | None = None
    ) -> asyncio.Future[BatchedSignature]: ...
    def add_many(
        self,
        gate: Gate,
        messages: list[Any],
        begin: int,
        end: int,
        kind: str | None,
        timeout: int,
        caller: str | None = None,
        judged: list[str] | None = None,
    ) -> asyncio.Future[list[BatchedSignature]]: ...
    @staticmethod
    def passing(gate: Gate, messages: list[Any], kind: str | None, most: int) -> bool: ...
    @staticmethod
    def fitting(messages: list[Any], most: int) -> None: ...
    def drop_done(self) -> int: ...
    @property
    def age_ns(self) -> int: ...
    def callers(self) -> list[tuple[str | None, int]]: ...
    @property
    def seconds_left(self) -> float: ...
    def build(self, first: int, blind: bool) -> bytes: ...
    def leaves(self) -> bytes: ...
    def restore(self, leaves: bytes, count: int) -> None: ...
    def proof(self, at: int) -> bytes: ...
    def signed(self, note: bytes, key_id: str, public_key: bytes, audit_seq: int | None) -> None: ...
    def answer(self, most: int) -> bool: ...
    def fail(self, error: BaseException, most: int) -> bool: ...

def classify(message: object) -> str: ...
def freeze(message: object) -> Any: ...
def digest_of(message: object) -> bytes: ...
def timeout_ns(timeout: object) -> int: ...
def fnv1a(text: bytes) -> int: ...
def functions_of(path: str) -> int: ...
def verify(algorithm: str, public_key: bytes, message: object, signature: bytes) -> bool: ...
def recovery_id(public_key: bytes, digest: Digest, signature: bytes) -> int: ...
def wipe(secret: bytearray) -> None: ...
def harden() -> tuple[str, ...]: ...
def fork_generation() -> int: ...
def leaks() -> dict[str, int]: ...
def statuses() -> list[tuple[str, str, str]]: ...
def ckr_table() -> list[tuple[int, str, str]]: ...
def quirks() -> list[str]: ...

class Waiter(asyncio.Future[Any]):
    """Takes an answer in place of a future, and is none that can be awaited; AnswerQueue has it go on."""

    outcome: Any
    def __init__(self) -> None: ...
    def begins(self, answers: AnswerQueue) -> None: ...

@final
class AnswerQueue:
    """The answers of an iteration of an event loop."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, go_on: Callable[[list[Any]], object], context: Context
    ) -> None: ...

def cut_frames(
    data: bytes,
    at: int,
    most: int,
    flags: bytes,
    types: tuple[Any, ...],
    shape: type,
    open: dict[int, Any] | None = None,
    signs: SignIntake | None = None,
) -> tuple[list[Any], int, int, int]: ...

@final
class SeenIds:
    """The numbers of a nonce that were taken."""

    newest: int
    def __init__(self, most: int = 4096) -> None: ...
    def __contains__(self, number: int) -> bool: ...
    @property
    def gaps(self) -> int: ...
    def has_room(self, number: int, before: float) -> bool: ...
    def take(self, number: int, now: float) -> bool: ...
    def take_below(self, number: int) -> None: ...

@final
class MemoryBudget:
    """The memory of one client's answers, in bytes."""

    most: int
    used: int
    def __init__(self, most: int) -> None: ...

class ReplayTable:
    """What one process of a gateway's client asked for, and was answered lately."""

    open: dict[int, tuple[tuple[Any, ...], Any]]
    def __init__(self, room: MemoryBudget, repeats: int, entry_bytes: int, gap_bytes: int) -> None: ...
    @property
    def remembered(self) -> int: ...
    @property
    def last(self) -> tuple[float, int]: ...
    def find(self, number: int, contents: tuple[Any, ...]) -> Any: ...
    def lacks(self, number: int, before: float) -> str: ...
    def begin(self, number: int, contents: tuple[Any, ...], request: object, now: float) -> None: ...
    def close(self, number: int, answer: bytes | None, now: float) -> None: ...
    def acknowledge(self, number: int) -> None: ...
    def expire(self, before: float) -> None: ...

class Flow(Generic[_T]):
    """What one client asks for, in a FairQueue."""

    weight: int
    waiting: dict[_T, int]
    under_way: int
    open: int
    most: int
    rate: Any
    held: Any
    def __init__(self, weight: int = 1) -> None: ...

class RequestOfClient(Waiter):
    """What a gateway keeps of a request."""

    queue: Any
    account: Any
    start: Any
    context: Any
    running: Any
    counter: Any
    operation: Any
    what: Any
    connection: Any
    session: Any
    contents: Any
    others: Any
    number: int
    timeout: float
    until: float
    held_until: float
    cost: int
    size: int
    ended: bool
    takes_turn: bool

@final
class SignIntake:
    """Takes ordinary SIGNs of a connection."""

    def __init__(
        self,
        connection: object,
        session: ReplayTable,
        counters: tuple[Any, ...],
        context: Context,
        operation: object,
        request: type,
        type: int,
        shape: type,
        kinds: tuple[str, ...],
        size: int,
        forgets: float,
    ) -> None: ...
    def begins(self, now: float) -> None: ...
    def taken(self) -> tuple[int, list[Any], list[Any]]: ...

def answer_signs(
    requests: list[Any], turns: FairQueue[Any], levels: dict[str, int], no_record: int
) -> tuple[list[Any], list[tuple[Any, int]]]: ...

@final
class FairQueue(Generic[_T]):
    """Whose turn it is: start-time fair queueing."""

    under_way: int
    def __init__(self, most: int, alone: int = 0, busy: int = -1) -> None: ...
    @property
    def waiting(self) -> int: ...
    @property
    def most(self) -> int: ...
    def begins(self, flow: Flow[_T]) -> bool: ...
    def take(self, flow: Flow[_T], work: _T, cost: int = 1) -> list[tuple[_T, int]]: ...
    def free(self, flow: Flow[_T], cost: int = 1) -> list[tuple[_T, int]]: ...
    def withdraw(self, flow: Flow[_T], work: _T) -> list[tuple[_T, int]]: ...
