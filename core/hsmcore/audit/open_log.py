"""The parts of a log while it is open: journal, sealer, spool intake, and the operations that wait for a record."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

from hsmcore._native import Journal, MerkleTree
from hsmcore.audit import record, retention
from hsmcore.audit.intake import Intake
from hsmcore.audit.journal import RecordWaiters, open_journal
from hsmcore.audit.layout import Layout
from hsmcore.audit.lock import FolderLock
from hsmcore.audit.recover import Opened, add_key, open_log
from hsmcore.audit.sealer import Damaged, Sealer
from hsmcore.audit.segment import SegmentError
from hsmcore.audit.shipping import Shipping
from hsmcore.audit.signers import CheckpointSigner, FileSigner
from hsmcore.audit.status import AuditStatus, problem_of
from hsmcore.audit.tiles import TileError
from hsmcore.audit.witnesses import Witnesses
from hsmcore.base.files import replace
from hsmcore.base.log import get_logger
from hsmcore.base.ownership import EXPOSED_HINT, exposed, make_folder
from hsmcore.base.scope import Scope
from hsmcore.base.steady import SteadyClock
from hsmcore.config.audit import AuditSettings
from hsmcore.errors import AuditUnavailable, HsmError
from hsmcore.tlog.checkpoint import Checkpoint
from hsmcore.tlog.note import signed

T = TypeVar("T")


MOST_SEALED: Final = 1 << 20
"""Most records that one checkpoint adds: with many of them left, one is stored every few seconds."""
_WHOLE: Final = 1 << 16
"""A checkpoint that adds more than so many records ends with a multiple of it: then but one tile is partial."""
CLOSE_SECONDS: Final = 1.5
"""How long last checkpoints are made, before the members stop and after the last record. A start seals the rest."""
_TOO_SLOW: Final = "the disk does not answer, or is slower than records come"
_SLOW: Final = "it takes longer than checkpointEverySeconds"
_PRUNE_SECONDS: Final = 3600
_LEAST_SECONDS: Final = 1.0
"""From one checkpoint to the next, however fast records come: each has a flush, and a signature, of its own."""
_LOOK_SECONDS: Final = 1.0
"""Least seconds between two looks at the clock while records come."""


class OpenLog:
    """An open log, for one event loop. Files are read and written in `_thread` and in the journal's native thread."""

    def __init__(self, layout: Layout, settings: AuditSettings, loop: asyncio.AbstractEventLoop) -> None:
        self._layout, self._settings, self._loop = layout, settings, loop
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="hsmcore-audit-seal")
        self._intake = Intake(layout, self.record, self.durable)
        self._sealing = asyncio.Lock()
        self._lock: FolderLock | None = None
        self._opened: Opened | None = None
        self.journal: Journal | None = None
        self._signer: CheckpointSigner | None = None
        self.process = record.this_process()
        self._waiting = RecordWaiters()
        self._timer: asyncio.TimerHandle | None = None
        self._sealed_at = -_LEAST_SECONDS  # when the newest checkpoint was begun, by the loop's clock
        self._seals = Scope()
        self._compressing: asyncio.Future[None] | None = None
        self._seal_until = math.inf
        """The time (monotonic) after which no further checkpoint is begun."""
        self._told = 0
        """The journal's errno that its waiters were told of."""
        self._not_sealed: str | None = None
        """Why the newest attempt at a checkpoint failed; None: it did not."""
        self._unsealed_at: float | None = None
        """Since when there has been a record that no checkpoint covers; None: there is none."""
        self._clock = SteadyClock()
        self._looked_at = 0.0
        self._pruned_at: float | None = None
        self._own_prunes: dict[int, int] = {}
        """Prune records that this process wrote, by sequence number; the value is the last record that each one
        prunes."""
        self.durable_seq = 0
        """The newest record that is as durable as `durability` requires. From any thread."""
        self.found = 0
        """The newest record that earlier processes wrote."""
        self.found_ns = 0
        """The Unix time of that record, and not later than this start."""
        self.found_sealed = 0
        """Records that a checkpoint covered when it was opened: what this process seals, others may have appended."""
        self.origin = ""
        self.keep_from: Shipping | None = None
        """Pruning keeps records that these destinations do not have yet."""
        self.checkpoint: Checkpoint | None = None
        self.witnesses = Witnesses(layout, settings, lambda: self.checkpoint)

    async def _run(self, work: Callable[[], T]) -> T:
        return await self._loop.run_in_executor(self._thread, work)

    async def open(self) -> None:
        opened = await self._run(self._open_files)
        self.origin, self.checkpoint = opened.origin, opened.checkpoint
        self.durable_seq = self.found = opened.sealer.size
        self.found_sealed, sure = self.sealed, self._clock.sure()
        self.found_ns = min(opened.last_time_ns or sure, sure)
        if self.journal is not None:
            self.journal.attach(self._loop, self._changed, self._refusal, self._note_clock_step)
        for operation, fields in opened.events:
            self.record(operation, fields)
        key = self._settings.signing_key
        if key is None or key.file is not None:
            path = self._layout.default_key if key is None or key.file is None else Path(key.file)
            await self.use(await self._run(lambda: FileSigner.load(path, self.origin)))
        self._clock.now()  # a clock that is ahead at the start has not stepped: the machine may have been off
        self._clock.stepped = self._note_step
        await self._intake.begin()

    def _open_files(self) -> Opened:
        make_folder(self._layout.log.parent, parents=True)
        if problem := exposed(self._layout.log.parent):
            raise AuditUnavailable(f"audit log {self._layout.log}: {problem}", hint=EXPOSED_HINT)
        make_folder(self._layout.folder)
        make_folder(self._layout.spool)
        self._lock = FolderLock(self._layout.lock)
        opened = self._opened = open_log(self._layout, self._settings.origin)
        mark = self._layout.clock.read_bytes() if self._layout.clock.is_file() else b""
        self._clock.resume(mark, opened.last_time_ns)
        self.journal = open_journal(self._layout, self._settings, opened)
        return opened

    @property
    def last_seq(self) -> int:
        """The newest record, durable or not."""
        return self.durable_seq if self.journal is None else self.journal.next - 1

    @property
    def sealed(self) -> int:
        """Records that a checkpoint covers. From any thread."""
        checkpoint = self.checkpoint
        return 0 if checkpoint is None else checkpoint.size

    @property
    def failure(self) -> str | None:
        """Why the log cannot be written at present; None if it can."""
        return None if self.journal is None else problem_of(self.journal.failure)

    def status(self) -> AuditStatus | None:
        """Return the state of the log; None if it is closed. From any thread."""
        journal, since = self.journal, self._unsealed_at
        if journal is None:
            return None
        interval = self._settings.checkpoint_every_seconds
        late = 0.0 if since is None else max(0.0, time.monotonic() - since - interval)
        why = (late > 0 and self._not_sealed) or (_SLOW if late > interval else None)
        try:
            times = journal.stats()
            last, kept, pending = journal.next - 1, journal.kept, journal.pending
            failure = self.failure
        except ValueError:  # closed since `journal` was read
            return None
        octaves, total = times["commit_octaves"], times["commit_sum_ns"]
        return AuditStatus(last, kept, self.sealed, pending, failure, times["oldest_ns"], octaves, total, late, why)

    async def use(self, signer: CheckpointSigner) -> None:
        """Sign checkpoints with this key. Record `audit-key` if another key signed before. Raises HsmError, OSError."""
        opened = self._opened
        if opened is None:
            return
        previous, began = opened.keys[-1] if opened.keys else None, self.checkpoint is None
        if began:
            await self._begin_tree(signer, opened.sealer)
        if signer.key not in opened.keys:
            await self._run(lambda: add_key(self._layout, signer.key))
            opened.keys.append(signer.key)
        self._signer = signer
        if previous is not None and previous != signer.key:
            self.record("audit-key", {"verifier_key": str(signer.key), "previous_verifier_key": str(previous)})
        if began:
            await self.seal()

    async def _begin_tree(self, signer: CheckpointSigner, sealer: Sealer) -> None:
        """Store a checkpoint of the empty tree, before the key: then a log with keys and without a checkpoint is one
        whose checkpoints were taken away. Raises HsmError, OSError."""
        await self.durable(self.last_seq)  # `audit-adopted` must not be lost once there is a checkpoint
        empty = Checkpoint(self.origin, 0, MerkleTree().root())
        note = signed(empty.text, signer.key, await signer.sign(empty.text))
        checkpoint = Checkpoint(empty.origin, 0, empty.root, note)
        await self._run(lambda: sealer.store(checkpoint))
        self.checkpoint = checkpoint

    async def close(self) -> None:
        self._seal_until = time.monotonic() + CLOSE_SECONDS
        async with AsyncExitStack() as rest:  # from the last line to the first, whatever one of them raises
            rest.callback(self._thread.shutdown, wait=False)
            rest.push_async_callback(self._run, self._close_files)
            rest.push_async_callback(self._end_journal)
            rest.push_async_callback(self._end_sealing)
            rest.push_async_callback(self._intake.end)

    async def _end_sealing(self) -> None:
        await self._seals.finish()
        if self._timer is not None:
            self._timer.cancel()

    async def _end_journal(self) -> None:
        self._note_dropped()
        last = self.last_seq
        journal, self.journal = self.journal, None
        if journal is not None:
            journal.detach()
            left = await self._run(journal.close)
            if left:
                get_logger().error("audit records were lost", file=str(self._layout.log), records=left)
            self.durable_seq = last - left
            self._waiting.release(self.durable_seq)
            self._waiting.fail(partial(self._unavailable, "it was closed before the record was written"))
            await self.seal_or_say(prune=False)
            await self.compressed()
            if self.sealed < self.durable_seq and self._signer is not None:
                left = self.durable_seq - self.sealed
                get_logger().warning("the next start seals the rest", file=str(self._layout.log), records=left)

    def _close_files(self) -> None:
        if self._opened is not None:
            self._opened.sealer.close()
        if self._lock is not None:
            self._lock.release()

    def record(
        self, operation: str, fields: Mapping[str, object], process: Mapping[str, object] | None = None
    ) -> int | None:
        """Record an operation. `process`: its origin, in the form of `record.this_process`; default: this process.
        Return its sequence number, or None if it is dropped. Raises AuditUnavailable, see AuditLog.record."""
        journal = self.journal
        if journal is None:
            return None
        failure = self.failure
        if self._settings.on_failure == "closed" and (failure is not None or journal.late):
            raise self._unavailable(failure or _TOO_SLOW)
        if journal.full:
            journal.dropped += 1
            return None
        if failure is None:
            self._note_dropped()
        self._put(journal.stamp(), operation, fields, process)
        return self.last_seq

    def _note_dropped(self) -> None:
        journal = self.journal
        if journal is not None and journal.dropped:
            dropped, journal.dropped = journal.dropped, 0
            self._put(journal.stamp(), "audit-lost", {"records": dropped})

    def _put(
        self, now: int, operation: str, fields: Mapping[str, object], process: Mapping[str, object] | None = None
    ) -> None:
        if self.journal is not None:
            self.journal.put(record.line(self.journal.next, now, operation, fields, process or self.process))

    def _note_clock_step(self, before: int, now: int) -> None:
        self._put(now, "clock-step", {"from_ns": before, "to_ns": now})

    def _note_step(self, before: int, now: int) -> None:
        """Record a step forward; the journal notes those back, by its lines."""
        if now > before:
            with suppress(AuditUnavailable):
                self.record("clock-step", {"from_ns": before, "to_ns": now})

    async def durable(self, seq: int) -> None:
        if seq <= self.durable_seq or self.journal is None:
            return
        try:
            if (failure := self.failure) is not None:
                raise self._unavailable(failure)
            future = self._waiting.add(seq)
            try:
                async with asyncio.timeout(self._settings.wait_ms / 1e3):
                    await future
            except TimeoutError:
                raise self._unavailable(_TOO_SLOW) from None
        except AuditUnavailable:
            if self._settings.on_failure == "closed":
                raise

    def _unavailable(self, problem: str) -> AuditUnavailable:
        return AuditUnavailable(f"audit log {self._layout.log}: {problem}")

    def _changed(self, written: int, failure: int) -> None:
        if failure != self._told:
            self._told = failure
            self._note_failure(problem_of(failure))
        self.durable_seq = max(written, self.durable_seq)
        self._waiting.release(self.durable_seq)
        self._schedule()
        if self._loop.time() - self._looked_at > _LOOK_SECONDS:
            self._looked_at = self._loop.time()
            self._clock.now()
        if not failure and self.journal is not None and not self.journal.full:
            self._note_dropped()

    def _refusal(self, failure: int) -> AuditUnavailable:
        return self._unavailable(problem_of(failure) or _TOO_SLOW)

    def _note_failure(self, problem: str | None) -> None:
        if problem is None:
            get_logger().warning("the audit log is written again", file=str(self._layout.log))
            return
        get_logger().error("the audit log cannot be written", file=str(self._layout.log), error=problem)
        self._waiting.fail(partial(self._unavailable, problem))

    def _schedule(self) -> None:
        """Plan the next checkpoint: soon if enough records are unsealed, else when the first of them is old enough."""
        unsealed = self.durable_seq - self.sealed
        if unsealed > 0 and self._unsealed_at is None:
            self._unsealed_at = time.monotonic()
        soon = unsealed >= self._settings.checkpoint_every_records and not self._not_sealed
        when = self._sealed_at + _LEAST_SECONDS if soon else self._loop.time() + self._settings.checkpoint_every_seconds
        if not (self._seals.is_open or (unsealed <= 0 and not self._not_sealed)):
            if self._timer is not None and self._timer.when() > when:
                self._timer.cancel()
                self._timer = None
            self._timer = self._timer or self._loop.call_at(when, self._begin_seal)

    def _begin_seal(self) -> None:
        self._timer = None
        if self.journal is not None and not self._seals.is_open:
            self._sealed_at = self._loop.time()
            self._seals.start(self._keep_sealed(), failed="the audit log was not sealed")

    async def _keep_sealed(self) -> None:
        """Seal, and plan the next checkpoint even if no further record comes."""
        if not self._must_end:
            await self.seal_or_say(prune=True)
        self._loop.call_soon(self._schedule)  # this task is over by then

    @property
    def _must_end(self) -> bool:
        return time.monotonic() >= self._seal_until

    async def seal_last(self) -> None:
        """Seal what there is, for at most about CLOSE_SECONDS. Errors are only logged."""
        before = self._seal_until
        self._seal_until = min(before, time.monotonic() + CLOSE_SECONDS)
        try:
            await self.seal_or_say(prune=False)
        finally:
            self._seal_until = before

    async def seal_or_say(self, *, prune: bool) -> bool:
        try:
            await self.seal()
            if prune:
                await self._prune()
            self._not_sealed = None
        except (HsmError, OSError, TileError, SegmentError) as error:
            self._not_sealed = str(error)
            get_logger().error("no audit checkpoint could be made", file=str(self._layout.log), error=str(error))
        return self._not_sealed is None

    async def seal(self) -> None:
        """Sign checkpoints until they cover all records that are durable now. Raises HsmError, TileError, SegmentError,
        OSError."""
        async with self._sealing:
            opened, signer, size = self._opened, self._signer, self.durable_seq
            if opened is None or signer is None:
                return
            while self.checkpoint is None or self.sealed < size:
                upto = min(self.durable_seq, self.sealed + MOST_SEALED)
                whole = upto - self.sealed > _WHOLE
                await self._seal_to(upto - upto % _WHOLE if whole else upto, opened.sealer, signer)
                if self._settings.compress and (self._compressing is None or self._compressing.done()):
                    # In a thread of its own: the next checkpoint does not wait for it.
                    compress = partial(opened.sealer.compress_full, lambda: 0 if self._must_end else self.sealed)
                    self._compressing = self._loop.run_in_executor(None, compress)
                if self._must_end:
                    return

    async def _seal_to(self, size: int, sealer: Sealer, signer: CheckpointSigner) -> None:
        """Sign a checkpoint over the first `size` records, or those that the tree holds already."""
        begun = time.monotonic()
        await self._advance(sealer, size, lambda: self._must_end)
        await self._disown_prunes(sealer)
        bare = await self._run(lambda: sealer.finish(self.origin))
        note = signed(bare.text, signer.key, await signer.sign(bare.text))
        checkpoint = Checkpoint(bare.origin, bare.size, bare.root, note)
        await self._run(lambda: sealer.store(checkpoint))
        self.checkpoint = checkpoint
        self._unsealed_at = begun if self.durable_seq > checkpoint.size else None

    async def compressed(self) -> None:
        """Wait until the full files that are being compressed are."""
        if self._compressing is not None:
            await self._compressing

    async def _disown_prunes(self, sealer: Sealer) -> None:
        """Record as void each prune record that this log's own retention did not write, before a checkpoint covers it:
        any process that can write the file could have appended it. Raises AuditUnavailable."""
        while foreign := [seq for seq, last in sealer.prunes.items() if self._own_prunes.get(seq) != last]:
            get_logger().error("the audit log holds another's prune records", file=str(self._layout.log), seq=foreign)
            for seq in foreign:
                self.record(retention.VOID, {"first": seq, "last": seq})
            size = self.last_seq
            await self.durable(size)
            if self.journal is None or self.durable_seq < size:
                raise self._unavailable(f"record {foreign[0]} cannot be called void")
            await self._advance(sealer, size)

    async def _advance(self, sealer: Sealer, size: int, must_end: Callable[[], bool] = lambda: False) -> None:
        """Read the lines up to record `size`, or some if it `must_end`. A line that is not a record can never be
        sealed, nor any line behind it: the log then fails from now on. Raises AuditUnavailable, TileError, OSError."""
        try:
            await self._run(lambda: sealer.advance(size, must_end))
        except Damaged as error:
            if self.journal is not None:
                self.journal.condemn()
            raise self._unavailable(str(error)) from None

    async def _prune(self) -> None:
        days, now = self._settings.retain_days, time.monotonic()
        if days is None or (self._pruned_at is not None and now - self._pruned_at < _PRUNE_SECONDS):
            return
        self._pruned_at = now
        await self.compressed()  # a file that is deleted meanwhile would come back
        sure = self._clock.sure()
        await self._run(lambda: replace(self._layout.clock, self._clock.mark.encode()))
        before = retention.before(self._layout, sure, days)
        most = sure if self._clock.agrees else retention.FOREVER
        if (newest := self.checkpoint) is None:
            return
        old = await self._run(lambda: retention.expired(self._layout, before, newest, most))
        shipped = None if self.keep_from is None else self.keep_from.everywhere
        if old is None or (shipped is not None and shipped < old.last):
            return
        # Record and seal the intention before the deletion, so that a verifier finds that the records were pruned.
        seq = self.record(retention.PRUNE, {"first": old.first, "last": old.last, "records": old.last - old.first + 1})
        if seq is None:
            return
        self._own_prunes[seq] = old.last
        await self.durable(seq)
        await self.seal()
        if self.sealed >= seq:
            await self._run(lambda: retention.remove(self._layout, old))
            if old.more:
                self._pruned_at = None
