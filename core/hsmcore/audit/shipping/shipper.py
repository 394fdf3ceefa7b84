"""Ships a log to one destination: at least once, in order, from the files, in a dedicated thread."""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from hsmcore.audit.layout import Layout
from hsmcore.audit.lock import FolderLock
from hsmcore.audit.segment import SegmentError
from hsmcore.audit.shipping.cursor import CursorFile
from hsmcore.audit.shipping.destination import Destination, ShippingError, ShippingStatus
from hsmcore.audit.shipping.follow import Follower
from hsmcore.base.log import get_logger
from hsmcore.base.ownership import make_folder
from hsmcore.errors import AuditUnavailable

POLL_SECONDS: Final = 0.2
"""Seconds between two looks for new records."""
PAUSE_FIRST: Final = 0.5
PAUSE_MOST: Final = 60.0
_STORE_SECONDS: Final = 1.0
"""Seconds between two stores of the cursor: after a crash, records sent since the last one are sent again."""
_BESIDE_BYTES: Final = 1 << 18
_BESIDE_SHARE: Final = 3
"""Beside a signing loop: batches of at most 256 KiB, and a pause of three times a batch's CPU time, so that the loop
does not wait long for the interpreter's lock."""
_GATHER_SECONDS: Final = 1.0
"""Seconds that records gather while there are fewer than a batch: a request costs far more than a record."""

_FAILURES = (ShippingError, SegmentError, AuditUnavailable, OSError)


class Shipper:
    """One log and one destination. `newest` returns the newest durable record; called in the shipper's thread."""

    def __init__(
        self, layout: Layout, destination: Destination, newest: Callable[[], int], *, beside: bool = False
    ) -> None:
        """`beside`: it runs in the process that signs."""
        self._layout, self.destination, self._newest = layout, destination, newest
        self._beside = beside
        self._cursor = CursorFile(layout, destination.kind, destination.identity)
        self._follower: Follower | None = None
        self._lock: FolderLock | None = None
        self._left: list[bytes] = []
        self._sent = 0
        self._stored = 0
        self._stored_at = 0.0
        self._settling: deque[tuple[float, int, bytes]] = deque()
        """For each batch that may still be lost: when it was sent, its last record and that record's line."""
        self._settled: tuple[int, bytes] = (0, b"")
        self._error: str | None = None
        self._stop, self._abandoned = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def status(self) -> ShippingStatus:
        """Progress of the destination. From any thread."""
        return ShippingStatus(self._sent, max(self._newest() - self._sent, 0), self._error)

    def _begin(self) -> Follower:
        """Take the destination's lock and load the cursor, unless that is done. Raises AuditUnavailable if another
        process ships there, SegmentError, OSError."""
        if self._follower is not None:
            return self._follower
        if self._lock is None:
            make_folder(self._layout.shipping)
            self._lock = FolderLock(
                self._cursor.lock, f"shipping it to {self.destination.kind}", "It ships what is left; see to that one."
            )
        found = self._cursor.load()
        self._sent = self._stored = found.seq
        self._settled = found.seq, b""
        self._follower = Follower(self._layout, found.seq)
        return self._follower

    def step(self) -> int:
        """Send one batch. Return its number of records; 0 if there is nothing to send. Raises any of _FAILURES."""
        follower, place = self._begin(), self.destination
        if not self._left:
            most = min(place.batch_bytes, _BESIDE_BYTES) if self._beside else place.batch_bytes
            self._left = follower.take(self._newest(), most, place.batch_records)
            for first, last in follower.missing:
                get_logger().error(
                    "records were gone before they were shipped", destination=place.kind, first=first, last=last
                )
            follower.missing.clear()
        if not self._left:
            if self._settling:
                place.check()
            self.store()
            return 0
        count = place.send(self._left)
        line = self._left[count - 1]
        del self._left[:count]
        self._sent = follower.next - 1 - len(self._left)
        self._settling.append((time.monotonic(), self._sent, line))
        if time.monotonic() - self._stored_at > _STORE_SECONDS:
            self.store()
        return count

    def store(self) -> None:
        """Store the last record that cannot be lost any more. Raises OSError."""
        self._settle()
        seq, line = self._settled
        if seq > self._stored:
            self._cursor.store(seq, line)
            self._stored, self._stored_at = seq, time.monotonic()

    def _settle(self) -> None:
        before = time.monotonic() - self.destination.settle_seconds
        while self._settling and self._settling[0][0] <= before:
            self._settled = self._settling.popleft()[1:]

    def go_back(self) -> None:
        """Forget the batches that the destination may have lost: they are sent again."""
        self._settle()
        self._settling.clear()
        self._left = []
        if self._follower is not None:
            self._follower.close()
            self._sent = self._settled[0]
            self._follower = Follower(self._layout, self._sent)

    def end(self) -> None:
        """Store the cursor, close all files and release the lock. Raises OSError."""
        try:
            if self._settling and self.destination.finish():
                self._settled = self._settling[-1][1:]
            self._settling.clear()
            self.store()
        finally:
            try:
                self.destination.close()
            finally:
                self._release()

    def _release(self) -> None:
        if self._follower is not None:
            self._follower.close()
        self._follower, self._left = None, []
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def start(self) -> None:
        """Start the thread."""
        self._thread = threading.Thread(target=self._run, name=f"hsmcore-ship-{self.destination.kind}", daemon=True)
        self._thread.start()

    def stop(self, seconds: float) -> None:
        """Ship what is left, for at most `seconds` or until the destination fails; then stop the thread. Blocks."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        self._stop.set()
        thread.join(seconds)
        if thread.is_alive():
            self._abandoned.set()
            self.destination.interrupt()
            thread.join(1.0)

    def _run(self) -> None:
        failures = 0
        while not self._abandoned.is_set():
            begun, ending = time.thread_time(), self._stop.is_set()
            try:
                count = self.step()
            except Exception as error:  # noqa: BLE001  # a thread that ended would keep its lock and report no error
                failures += 1
                self._note(str(error) if isinstance(error, _FAILURES) else type(error).__name__)
                self.go_back()
                if ending:
                    break
                self._stop.wait(_full_jitter(failures))
                continue
            if self._error is not None and (count or self.status.lag_records == 0):
                self._note(None)
            failures = 0
            if count == 0:
                if ending:
                    break
                self._stop.wait(POLL_SECONDS)
                continue
            time.sleep(self.destination.pause)
            if self._beside:
                spent = time.thread_time() - begun
                gather = _GATHER_SECONDS if self.status.lag_records < count else 0.0
                self._stop.wait(max(_BESIDE_SHARE * spent, gather))
        try:
            self.end()
        except Exception as error:  # noqa: BLE001  # the thread ends; what was sent since is sent again
            get_logger().warning("how far shipping came was not stored", error=str(error))

    def _note(self, error: str | None) -> None:
        before, self._error = self._error, error
        if error is None:
            get_logger().info("audit records are shipped again", destination=self.destination.kind)
        elif error != before:
            get_logger().warning("audit records are not shipped", destination=self.destination.kind, error=error)


def _full_jitter(failures: int) -> float:
    return random.uniform(0, min(PAUSE_FIRST * 2.0 ** min(failures, 30), PAUSE_MOST))  # noqa: S311  # spreads load
