"""The audit log's writer and the records of an engine's answers, as bindings/journal.pxi, bindings/records.pxi and
native/src/journal.c have them: lines are written in groups, by a thread that happens as events of the world."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from time import monotonic_ns, time_ns
from typing import Any, Final

from tests.simulation.threads import worlds

from hsmcore._native import Digest

_PACE_NS: Final = 4_000_000
_RETRY_NS: Final = 500_000_000
_USUAL_NS: Final = 300_000


class Journal:
    """As the class of this name in bindings/."""

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
    ) -> None:
        self._path, self._archive = Path(path), Path(archive)
        self._first, self.next, self._rotate_bytes = first_seq, next_seq, rotate_bytes
        self._interval = int(interval_seconds * 1e9) if durability == "interval" else 0
        self._durability, self.fail_open, self._max_pending = durability, fail_open, max_pending
        self._wait_ns = int(wait_seconds * 1e9) + (self._interval or _PACE_NS)
        self._last_time = last_time_ns
        self.dropped = self.failure = 0
        self.written = next_seq - 1
        self._filling: list[tuple[int, bytes]] = []
        """Lines that wait, each with when it was appended."""
        self._next_at = self._since = 0
        self._coming = self._torn = self._moved = self._unsynced = self._condemned = self._closed = False
        self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        self._size = os.fstat(self._file).st_size
        self._sync(self._path.parent)
        self.engines: list[Any] = []
        self._loop: Any = None
        made.append(self)

    def attach(
        self,
        loop: Any,
        changed: Callable[[int, int], None],
        refusal: Callable[[int], Exception],
        clock_stepped: Callable[[int, int], None],
    ) -> None:
        self._loop, self._changed, self.refusal, self._clock_stepped = loop, changed, refusal, clock_stepped

    def detach(self) -> None:
        if self._loop is not None:
            worlds[0].unreadable(self)
            self._loop = None
        for engine in [*self.engines]:
            engine.leave_journal()
        self.engines.clear()

    def close(self) -> int:
        self._closed = True
        if self._filling:
            self._write()
        os.close(self._file)
        return len(self._filling)

    def kill(self) -> None:
        """Leave of it what `kill -9` leaves: nothing that waits is written any more."""
        self._closed, self._filling, self._loop = True, [], None

    def condemn(self) -> None:
        self._condemned = True
        self.failure = errno.ESTALE
        self._tell()

    # ---- lines -----------------------------------------------------------------------------------------------------

    def stamp(self) -> int:
        now, before = time_ns(), self._last_time
        self._last_time = now
        if now < before:
            self._clock_stepped(before, now)
        return now

    def put(self, line: bytes) -> None:
        self._require_open()
        self._append(line)
        self.flush()

    def _append(self, line: bytes) -> None:
        self._filling.append((monotonic_ns(), line))
        self.next += 1

    def put_sign(self, fields: str, tail: bytes) -> int:
        """Append the record of one signature, whose own fields are JSON from a comma on. Return its number."""
        self._require_open()
        now = self.stamp()  # which may append a line of its own
        head = f'{{"seq":{self.next},"time_ns":{now},"operation":"sign"{fields}'
        self._append(head.encode() + tail + b"\n")
        return self.next - 1

    def flush(self) -> None:
        if self._coming or not self._filling or not worlds:
            return
        self._coming = True
        early = max(self._next_at - monotonic_ns(), 0, self._interval)
        rng = worlds[0].chance.time
        worlds[0].happens(early + rng.randrange(_USUAL_NS), self._begin)

    def _begin(self) -> None:
        """The thread takes a group: lines that come later go into the next one."""
        if not self._closed:
            group = len(self._filling)
            takes = worlds[0].chance.time.randrange(_USUAL_NS) + slow[0]
            worlds[0].happens(takes, lambda: self._end(group))

    def _end(self, group: int) -> None:
        self._coming = False
        if self._closed:
            return
        failure = self._write(group)
        if failure != self.failure and not self._condemned:
            self.failure = failure
            self._tell()
        if failure:
            self._coming = True
            worlds[0].happens(_RETRY_NS, self._begin)
            return
        self._next_at = monotonic_ns() + (0 if self._interval else _PACE_NS)
        self._tell()
        self.flush()

    def _tell(self) -> None:
        if self._loop is not None and worlds:
            worlds[0].readable(self, self._ready)

    def _ready(self) -> None:
        if self._loop is None:
            return
        kept, failure = self.next if self.hands_out else self.written, self.failure
        for engine in [*self.engines]:
            engine.release_durable(kept)
            if failure and not self.fail_open:
                engine.refuse_durable(failure)
        self._changed(self.written, failure)

    # ---- the file --------------------------------------------------------------------------------------------------

    def _write(self, group: int | None = None) -> int:
        """Write the first lines that wait. Returns why that fails, an errno."""
        lines = [line for _, line in self._filling[:group]]
        try:
            self._write_group(b"".join(lines))
        except OSError as error:
            return error.errno or errno.EIO
        del self._filling[:group]
        self.written += len(lines)
        return 0

    def _write_group(self, text: bytes) -> None:
        if self._condemned:
            raise OSError(errno.ESTALE, "condemned")
        if self._torn:
            if os.fstat(self._file).st_size < self._size:
                raise OSError(errno.ESTALE, "cut")
            os.ftruncate(self._file, self._size)
            self._torn = False
        if self._moved or (self._size and self._size + len(text) > self._rotate_bytes):
            self._rotate()
        if self._unsynced:
            self._sync(self._archive)
            self._sync(self._path.parent)
            self._unsynced = False
        self._check(self._path)
        self._torn = True
        os.write(self._file, text)
        if self._durability != "write":
            os.fdatasync(self._file)
        self._torn = False
        self._size += len(text)
        self._check(self._path)

    def _check(self, path: Path) -> None:
        ours, there = os.fstat(self._file), path.lstat()
        if ours.st_ino != there.st_ino or ours.st_size != self._size:
            raise OSError(errno.ESTALE, "changed")

    def _rotate(self) -> None:
        name = self._archive / f"{self._first:020d}.jsonl"
        self._check(name if self._moved else self._path)
        if not self._moved:
            os.fsync(self._file)
            if name.exists():
                raise OSError(errno.EEXIST, "there is one")
            self._path.rename(name)
            self._moved = self._unsynced = True
        fresh = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        os.close(self._file)
        self._file, self._size, self._moved, self._first = fresh, 0, False, self.written + 1

    @staticmethod
    def _sync(folder: Path) -> None:
        descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    # ---- figures ---------------------------------------------------------------------------------------------------

    def _require_open(self) -> None:
        if self._closed:
            raise ValueError("the journal is closed")

    @property
    def kept(self) -> int:
        self._require_open()
        return self.next - 1 if self._interval else self.written

    @property
    def pending(self) -> int:
        self._require_open()
        return sum(len(line) for _, line in self._filling)

    @property
    def full(self) -> bool:
        return self.pending >= self._max_pending

    @property
    def late(self) -> bool:
        return self.full or self._oldest_ns() > self._wait_ns

    def _oldest_ns(self) -> int:
        return monotonic_ns() - self._filling[0][0] if self._filling else 0

    def stats(self) -> dict[str, Any]:
        self._require_open()
        return {"oldest_ns": self._oldest_ns(), "commit_sum_ns": 0, "commit_octaves": []}

    @property
    def hands_out(self) -> bool:
        """Whether answers do not wait for the disk at present."""
        if self.fail_open:
            return bool(self._interval or self.failure or self.late)
        return bool(self._interval and not self.failure and not self.late)

    def unwritable(self) -> Exception | None:
        """The exception for a request whose record could not be kept at present."""
        if self.fail_open or not (self.failure or self.late):
            return None
        return self.refusal(self.failure)


made: list[Journal] = []
"""Those of the world that runs, where it counts them."""
slow: list[int] = [0]
"""What each group takes longer, in ns, in the world that runs."""


class Recorder:
    """Records the answers of one engine. As the class of this name in bindings/."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self._tails: dict[int, bytes] = {}

    def set_tail(self, key: int, tail: bytes) -> None:
        self._tails[key] = tail

    def require_writable(self) -> None:
        refusal = self.journal.unwritable()
        if refusal is not None:
            raise refusal

    def wants(self, one: Any) -> bool:
        """Whether an answer gets a record: a signature always; an error that the request itself met, once."""
        if one.seq:
            return False
        return isinstance(one.answer, bytes) or one.slot or one.met

    def put(self, one: Any, *, claimed: bool) -> int:
        """Append the record of an answer. Returns its number; 0: it is dropped."""
        journal = self.journal
        journal._require_open()
        if journal.fail_open and journal.full:
            journal.dropped += 1
            return 0
        data = one.message.value if type(one.message) is Digest else one.message
        signed = isinstance(one.answer, bytes)
        latency = 0 if one.slot else monotonic_ns() - one.begun_ns
        fields = ',"result":"ok"' if claimed else ',"result":"unclaimed"'
        if not signed:
            fields = f',"result":"error","error":"{_status(one.answer)}"'
        digest = data.hex() if type(one.message) is Digest else hashlib.sha256(data).hexdigest()
        fields += f',"message_sha256":"{digest}","message_bytes":{len(data)}'
        if signed:
            fields += f',"signature":"{one.answer.hex()}"'
        fields += f',"latency_ns":{latency},"cached":{"true" if one.cached else "false"}'
        return journal.put_sign(fields, (one.extra or b"") + self._tails.get(one.key, b"}"))


def _status(answer: Any) -> str:
    return str(answer[0] if isinstance(answer, tuple) else answer.status)


def install() -> None:
    """Put the journal, and what writes tiles natively, under the audit log. Once in a process."""
    from hsmcore.audit import journal, tiles

    journal.Journal = Journal  # type: ignore[misc, assignment]
    tiles.store_files = store_files


def store_files(files: list[tuple[bytes, bytes]]) -> None:
    """As the function of this name in bindings/."""
    written: dict[Path, None] = {}
    for name, data in files:
        path = Path(os.fsdecode(name))
        if not (path.exists() and path.read_bytes() == data):
            beside = path.with_name(f"{path.name}.new")
            beside.write_bytes(data)
            beside.chmod(0o600)
            beside.replace(path)
        written |= {path.parent: None, path: None}
    for path in written:
        Journal._sync(path)
