"""Where the entries of a YubiHSM's log are kept: beside our own audit log, one line of JSON each, chained.

devices/<member>.jsonl   the entries, as LogEntry.to_json has them
devices/<member>.json    the anchor (the last entry that was kept), and how far the entries were joined
devices/<member>.lock    held by whoever drains
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import Any, Final, Self

import orjson

from hsmcore.audit.devices.yubihsm_chain import Anchor, Finding, LogEntry, verify_chain
from hsmcore.audit.files import replace as replace_file
from hsmcore.audit.files import sync, write_all
from hsmcore.audit.layout import Layout
from hsmcore.audit.lock import FolderLock
from hsmcore.errors import AuditUnavailable
from hsmcore.state.ownership import make_folder, open_or_make

_TAIL_BYTES: Final = 4096


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the joining of entries and records is."""

    begun_ns: int = 0
    """When the log was read first; what came before is taken on trust. 0: never."""
    joined: int = 0
    """So many lines of the file of entries were joined."""
    seq: int = 0
    """Our records up to this one were looked at."""
    since_ns: int = 0
    """No record that was not looked at is older."""
    slack: int = 0
    """Signatures that may have been under way at the first reading."""
    left: tuple[Mapping[str, Any], ...] = ()
    """Records whose entry may come with the next reading."""


class EntryStore:
    """The kept log of one member. Blocks; use as a context manager, which holds the lock."""

    def __init__(self, layout: Layout, member: str) -> None:
        # The digest, because two names may differ in what a file name cannot have.
        digest = hashlib.sha256(member.encode()).hexdigest()[:8]
        name = f"{re.sub(r'[^A-Za-z0-9.]+', '-', member)[:80]}-{digest}"
        self._folder = layout.devices
        self._entries = layout.devices / f"{name}.jsonl"
        self._state = layout.devices / f"{name}.json"
        self._lock_path = layout.devices / f"{name}.lock"
        self._lock: FolderLock | None = None
        self.anchor: Anchor | None = None
        self.progress = Progress()
        self.findings: list[Finding] = []
        """What is wrong with the kept files themselves."""

    def __enter__(self) -> Self:
        """Raises AuditUnavailable if another process drains, or the files are unusable; OSError."""
        make_folder(self._folder)
        self._lock = FolderLock(self._lock_path, "draining the device's log", "Wait until it has ended.")
        try:
            self._load()
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(self, *_exc: object) -> None:
        if self._lock is not None:
            self._lock.release()

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
            os.truncate(self._entries, whole)  # a crash cut a line off; the device still has the entry
        if last is None:
            if self.anchor is not None:
                self.findings.append(Finding("cut", self.anchor.number, f"the end of {self._entries.name} is no entry"))
            return
        entry, serial = last
        known = self.anchor
        # Entries behind the anchor are what a crash between the two left; an anchor behind the entries is a cut.
        moved = known is not None and (entry.number, entry.digest) != (known.number, known.digest)
        if known is not None and moved and not self._holds(known):
            detail = f"{self._entries.name} does not hold entry {known.number}, which was kept in it"
            self.findings.append(Finding("cut", known.number, detail))
            return
        self.anchor = Anchor(serial, entry.number, entry.digest)

    def _last(self) -> tuple[tuple[LogEntry, int] | None, int]:
        """The last whole line as entry and serial number, and the length of all whole lines."""
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
        """Have entries and anchor on the disk: what `drain` wants before the device forgets them. Raises OSError."""
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
        """Note how far joining is. Raises OSError."""
        self.progress = replace(self.progress, **changes)
        self._store()

    def _store(self) -> None:
        anchor = None if self.anchor is None else self.anchor.to_json()
        replace_file(self._state, orjson.dumps({"anchor": anchor, "progress": asdict(self.progress)}))

    def entries(self, skip: int = 0) -> Iterator[LogEntry]:
        """The kept entries, oldest first, without the first `skip` lines and without lines that are none. Raises
        OSError."""
        if self._entries.exists():
            with self._entries.open("rb") as file:
                for line in islice(file, skip, None):
                    if (parsed := _parsed(line)) is not None:
                        yield parsed[0]

    def verify(self) -> tuple[int, list[Finding]]:
        """How many lines there are, and what is wrong with the chain of all that is kept. Raises OSError."""
        found: list[Finding] = []
        before: LogEntry | None = None
        count = 0
        if self._entries.exists():
            with self._entries.open("rb") as file:
                for count, line in enumerate(file, 1):
                    parsed = _parsed(line)
                    if parsed is None:
                        found.append(Finding("tampered", 0, f"line {count} of {self._entries.name} is no entry"))
                        continue
                    anchor = None if before is None else Anchor(0, before.number, before.digest)
                    before = parsed[0]
                    found += verify_chain([before], anchor)
        return count, found


def _parsed(line: bytes) -> tuple[LogEntry, int] | None:
    try:
        value = orjson.loads(line)
        return LogEntry.from_json(value), int(value["serial"])
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError):
        return None
