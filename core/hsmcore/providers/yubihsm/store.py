"""Keeps the entries of a YubiHSM's log in the folder of our audit log, each as a line of JSON.

devices/<member>.jsonl   the entries, in the form of LogEntry.to_json
devices/<member>.json    the anchor (the last kept entry), and how far the entries were joined
devices/<member>.lock    held by the process that drains
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Final

import orjson

from hsmcore.audit.layout import Layout
from hsmcore.audit.lock import FolderLock
from hsmcore.base.files import replace as replace_file
from hsmcore.base.files import write_all
from hsmcore.base.ownership import make_folder, open_or_make, sync
from hsmcore.errors import AuditUnavailable
from hsmcore.providers.yubihsm.chain import Anchor, ChainFinding, LogEntry, verify_chain

_TAIL_BYTES: Final = 4096


@dataclass(frozen=True, slots=True)
class Progress:
    """The progress of joining entries with records."""

    begun_ns: int = 0
    """Time of the first reading, which is trusted; 0: there was none."""
    joined: int = 0
    """Lines of the file of entries that were joined."""
    seq: int = 0
    """Our records up to this one were joined."""
    since_ns: int = 0
    """Our records that were not joined are not older than this."""
    slack: int = 0
    """Signatures that may have been in progress at the first reading, and whose records had no entry to match yet."""
    slack_seq: int = 0
    """The last record that may speak of one of them."""
    left: tuple[Mapping[str, Any], ...] = ()
    """Records whose entry may come with the next reading."""


@contextmanager
def opened(layout: Layout, member: str) -> Iterator[EntryStore]:
    """Hold the lock of a member's kept log. Raises AuditUnavailable if another process drains or the files are damaged,
    OSError."""
    # Names that differ only in characters that a file name cannot have get different digests.
    digest = hashlib.sha256(member.encode()).hexdigest()[:8]
    path = layout.devices / f"{re.sub(r'[^A-Za-z0-9.]+', '-', member)[:80]}-{digest}"
    make_folder(layout.devices)
    lock = FolderLock(path.with_name(path.name + ".lock"), "draining the device's log", "Wait until it has ended.")
    try:
        yield EntryStore(path)
    finally:
        lock.release()


class EntryStore:
    """The kept log of one member, for the holder of its lock. Blocks."""

    def __init__(self, path: Path) -> None:
        """Load the files `path`.jsonl and `path`.json. Raises AuditUnavailable if they are damaged, OSError."""
        self._folder = path.parent
        self._entries = path.with_name(path.name + ".jsonl")
        self._state = path.with_name(path.name + ".json")
        self.anchor: Anchor | None = None
        self.progress = Progress()
        self.findings: list[ChainFinding] = []
        """Faults of the kept files."""
        self._load()

    def _load(self) -> None:
        if self._state.exists():
            try:
                value = orjson.loads(self._state.read_bytes())
                self.anchor = None if value["anchor"] is None else Anchor.from_json(value["anchor"])
                self.progress = Progress(**{**value["progress"], "left": tuple(value["progress"]["left"])})
            except (orjson.JSONDecodeError, KeyError, TypeError, ValueError):
                hint = "Restore it from a copy, or move it and the .jsonl beside it away: the next reading begins anew."
                raise AuditUnavailable(f"{self._state} is damaged", hint=hint) from None
        last, whole = self._last()
        if self._entries.exists() and self._entries.stat().st_size > whole:
            os.truncate(self._entries, whole)  # a crash cut the line off; the device still has the entry
        if last is None:
            if self.anchor is not None:
                self.findings.append(
                    ChainFinding("cut", self.anchor.number, f"the end of {self._entries.name} is no entry")
                )
            return
        entry, serial = last
        known = self.anchor
        # A crash leaves entries after the anchor; an anchor that is not in the file shows that entries were cut off.
        moved = known is not None and (entry.number, entry.digest) != (known.number, known.digest)
        if known is not None and moved and not self._holds(known):
            detail = f"{self._entries.name} does not hold entry {known.number}, which was kept in it"
            self.findings.append(ChainFinding("cut", known.number, detail))
            return
        self.anchor = Anchor(serial, entry.number, entry.digest)

    def _last(self) -> tuple[tuple[LogEntry, int] | None, int]:
        """Return the last complete line, as entry and serial number, and the length of all complete lines."""
        if not self._entries.exists():
            return None, 0
        with self._entries.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            start = file.seek(max(0, size - _TAIL_BYTES))
            tail = file.read()
        whole = tail.rfind(b"\n") + 1
        if whole == 0:
            return None, start
        line = tail[tail.rfind(b"\n", 0, whole - 1) + 1 : whole]
        return _parsed(line), start + whole

    def _holds(self, anchor: Anchor) -> bool:
        return any((e.number, e.digest) == (anchor.number, anchor.digest) for e in self.entries())

    def keep(self, entries: Sequence[LogEntry], anchor: Anchor) -> None:
        """Make entries and anchor durable, before the device deletes them. Raises OSError."""
        text = b"".join(orjson.dumps(entry.to_json() | {"serial": anchor.serial}) + b"\n" for entry in entries)
        descriptor = open_or_make(self._entries, os.O_WRONLY | os.O_APPEND)
        try:
            write_all(descriptor, text)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        sync(self._folder)
        self.anchor = anchor
        self._store()

    def advance(self, **changes: Any) -> None:
        """Store the progress of joining. Raises OSError."""
        self.progress = replace(self.progress, **changes)
        self._store()

    def _store(self) -> None:
        anchor = None if self.anchor is None else self.anchor.to_json()
        replace_file(self._state, orjson.dumps({"anchor": anchor, "progress": asdict(self.progress)}))

    def entries(self, skip: int = 0) -> Iterator[LogEntry]:
        """Return the kept entries, oldest first, without the first `skip` lines and without invalid lines. Raises
        OSError."""
        return (entry for entry in islice(self._lines(), skip, None) if entry is not None)

    def _lines(self) -> Iterator[LogEntry | None]:
        """Yield each kept line as an entry, or None if it is invalid."""
        if self._entries.exists():
            with self._entries.open("rb") as file:
                for line in file:
                    parsed = _parsed(line)
                    yield None if parsed is None else parsed[0]

    def verify(self) -> tuple[int, list[ChainFinding]]:
        """Return the number of lines, and what is wrong with the chain of all kept entries. Raises OSError."""
        found: list[ChainFinding] = []
        before: LogEntry | None = None
        count = 0
        for count, entry in enumerate(self._lines(), 1):
            if entry is None:
                found.append(ChainFinding("tampered", 0, f"line {count} of {self._entries.name} is no entry"))
                continue
            found += verify_chain([entry], before)
            before = entry
        return count, found


def _parsed(line: bytes) -> tuple[LogEntry, int] | None:
    try:
        value = orjson.loads(line)
        return LogEntry.from_json(value), int(value["serial"])
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError):
        return None
