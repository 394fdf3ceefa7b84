"""Ways in which other programs treat the files of an audit log and of a state store, under a key manager that signs."""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

from tests.support.audit_logs import SMALLEST_SEGMENT
from tests.support.managers import opened
from tests.support.policed import ordered
from tests.support.softhsm import Token

import hsmcore
from hsmcore.audit.check.verify import verify
from hsmcore.audit.layout import Layout
from hsmcore.errors import HsmError

CALLERS: Final = 8
ENOUGH: Final = 300
"""Signatures that are begun after a change and handed out: then nothing stops the key manager."""


class Place:
    """The files of one key manager. `earlier`: a copy of them from before most of the signatures."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.earlier = folder, folder / "earlier"
        self.logs, self.stores = folder / "audit", folder / "state"
        self.log, self.store = self.logs / "audit.log", self.stores / "state.db"
        self.parts = Layout(self.log)
        self.aside = folder / "aside"
        self.aside.mkdir(parents=True)

    def config(self, token: Token) -> dict[str, Any]:
        """Its configuration: positions, a sealed store, an audit log."""
        rules = {"checkpointEverySeconds": 1, "rotateBytes": SMALLEST_SEGMENT, "durability": "write"}
        policy = {"policy": {"kinds": ["block"]}, "stateFile": str(self.store), "maxCacheSize": 0}
        config = token.config("ed25519", auditLogFile=str(self.log), audit=rules, **policy)
        config["sequencer"]["stateSecret"] = "s" * 32
        return config

    def keep(self) -> None:
        """Copy the files as they are, as a backup tool does."""
        self.earlier.mkdir()
        shutil.copytree(self.logs, self.earlier / "audit")
        with closing(sqlite3.connect(self.store)) as now, closing(sqlite3.connect(self.earlier / "state.db")) as copy:
            now.backup(copy)

    def of_store(self) -> list[Path]:
        """The files of the store."""
        return [self.store.with_name(f"state.db{end}") for end in ("", "-wal", "-shm")]


def _cut(path: Path, size: int) -> None:
    os.truncate(path, size if size >= 0 else max(0, path.stat().st_size + size))


def _append(path: Path, text: bytes) -> None:
    with path.open("ab") as file:
        file.write(text)


def _write_over(path: Path, text: bytes) -> None:
    """In its place: the same file."""
    with path.open("r+b") as file:
        file.truncate()
        file.write(text)


def _change_a_byte(path: Path) -> None:
    text = path.read_bytes()
    with path.open("r+b") as file:
        file.seek(text.rindex(b'{"seq"'))
        file.write(b"[")


def _away(place: Place, path: Path) -> Path:
    return path.rename(place.aside / path.name)


def _replace(path: Path, text: bytes) -> None:
    beside = path.with_name(path.name + ".other")
    beside.write_bytes(text)
    beside.replace(path)


def _link(place: Place, path: Path) -> None:
    """In one step, as a program does that means well: there is no moment without the file."""
    aside, beside = place.aside / path.name, path.with_name(path.name + ".other")
    aside.hardlink_to(path)
    beside.symlink_to(aside)
    beside.replace(path)


def _older_folder(place: Place) -> None:
    _away(place, place.parts.folder)
    shutil.copytree(place.earlier / "audit" / place.parts.folder.name, place.parts.folder)


def _older_folders(place: Place) -> None:
    _away(place, place.logs)
    shutil.copytree(place.earlier / "audit", place.logs)


def _new_folder(place: Place) -> None:
    _away(place, place.log)
    place.log.mkdir()


def _forge(path: Path) -> None:
    last = path.read_bytes().splitlines()[-1]
    _append(path, last.replace(b'"result":"ok"', b'"result":"no"') + b"\n")


def _shrink(path: Path) -> None:
    _cut(path, path.stat().st_size // 2)


def _unlink(*paths: Path) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def _older_checkpoint(place: Place) -> None:
    shutil.copy(place.earlier / "audit" / place.parts.folder.name / "checkpoint", place.parts.checkpoint)


LOG: Final[dict[str, Callable[[Place], object]]] = {
    "log deleted": lambda at: _unlink(at.log),
    "log renamed": lambda at: _away(at, at.log),
    "log replaced by an older copy": lambda at: _replace(at.log, (at.earlier / "audit/audit.log").read_bytes()),
    "log replaced by its own copy": lambda at: _replace(at.log, at.log.read_bytes()),
    "log replaced by an empty file": lambda at: _replace(at.log, b""),
    "older log copied over it": lambda at: _write_over(at.log, (at.earlier / "audit/audit.log").read_bytes()),
    "log emptied": lambda at: _cut(at.log, 0),
    "log halved": lambda at: _shrink(at.log),
    "log without its last byte": lambda at: _cut(at.log, -1),
    "log without its last line": lambda at: _cut(at.log, at.log.read_bytes().rstrip(b"\n").rfind(b"\n") + 1),
    "a space appended to the log": lambda at: _append(at.log, b" "),
    "a line end appended to the log": lambda at: _append(at.log, b"\n"),
    "a record appended to the log": lambda at: _forge(at.log),
    "zeros appended to the log": lambda at: _append(at.log, bytes(4096)),
    "a folder in the log's place": _new_folder,
    "a link in the log's place": lambda at: _link(at, at.log),
    "the log's folder deleted": lambda at: shutil.rmtree(at.parts.folder),
    "the log's folder renamed": lambda at: _away(at, at.parts.folder),
    "the folder above the log deleted": lambda at: shutil.rmtree(at.logs),
    "the folder above the log renamed": lambda at: _away(at, at.logs),
    "all of the log older": _older_folders,
}
"""What the journal sees at its next group."""

STORE: Final[dict[str, Callable[[Place], object]]] = {
    "store deleted": lambda at: _unlink(at.store),
    "store and its log deleted": lambda at: _unlink(*at.of_store()),
    "store renamed": lambda at: _away(at, at.store),
    "store replaced by an older copy": lambda at: _replace(at.store, (at.earlier / "state.db").read_bytes()),
    "store replaced by its own copy": lambda at: _replace(at.store, at.store.read_bytes()),
    "store replaced by an empty file": lambda at: _replace(at.store, b""),
    "the folder above the store deleted": lambda at: shutil.rmtree(at.stores),
    "the folder above the store renamed": lambda at: _away(at, at.stores),
    "older store copied over it": lambda at: _write_over(at.store, (at.earlier / "state.db").read_bytes()),
    "store emptied": lambda at: _cut(at.store, 0),
    "store halved": lambda at: _shrink(at.store),
    "bytes appended to the store": lambda at: _append(at.store, bytes(4096)),
    "the store's log deleted": lambda at: _unlink(at.of_store()[1]),
    "the store's log emptied": lambda at: _cut(at.of_store()[1], 0),
    "the store's index deleted": lambda at: _unlink(at.of_store()[2]),
}
"""What the store sees in its next transaction."""

LATER: Final[dict[str, Callable[[Place], object]]] = {
    "a byte of the log changed": lambda at: _change_a_byte(at.log),
    "full files deleted": lambda at: shutil.rmtree(at.parts.segments),
    "tiles deleted": lambda at: shutil.rmtree(at.parts.tiles),
    "all checkpoints deleted": lambda at: _unlink(at.parts.checkpoint, at.parts.history),
    "verifier keys deleted": lambda at: _unlink(at.parts.keys),
    "origin deleted": lambda at: _unlink(at.parts.origin),
    "all but the log older": _older_folder,
}
"""What a later checkpoint sees, a verification and the next start. The log itself is whole: signing goes on."""

HARMLESS: Final[dict[str, Callable[[Place], object]]] = {
    "newest checkpoint deleted": lambda at: _unlink(at.parts.checkpoint),
    "older checkpoint": _older_checkpoint,
    "a link in the store's place": lambda at: _link(at, at.store),
    "log not to be read": lambda at: at.log.chmod(0),
    "the log's folder not to be written": lambda at: at.parts.folder.chmod(0o500),
    "store not to be read": lambda at: at.store.chmod(0),
    "the log's lock deleted": lambda at: _unlink(at.parts.lock),
}
"""What takes nothing: the process has the files open, may be root, or writes what is gone again."""


@dataclass
class Seen:
    """What came of a change."""

    after: int = 0
    """Signatures that were begun after it, and handed out."""
    refused: str = ""
    """The first error of a caller."""
    told: str = ""
    """How the key manager says that something is wrong; "": it does not."""
    found: str = ""
    """The first finding of a verification; "": there is none."""
    start: str = ""
    """The error of the next start; "": it went on."""
    twice: int = 0
    """Positions that the next life signed another payload for."""


class Trial:
    """One change, under callers that sign one position after another."""

    def __init__(self, token: Token, folder: Path) -> None:
        self.place = Place(folder)
        self._config = self.place.config(token)
        self._signed: dict[int, bytes] = {}
        self._begun = 0
        self._changed = False
        self.seen = Seen()

    async def run(self, change: Callable[[Place], object], *, tells: bool) -> Seen:
        """Sign, change, sign, start again. `tells`: the key manager must say something; wait for it."""
        try:
            async with opened(self._config) as manager:
                manager.on("store-not-genuine", lambda event: self._tell(f"event: {event['scope']}"))
                callers = [asyncio.create_task(self._call(manager)) for _ in range(CALLERS)]
                await self._until(100)
                self.place.keep()
                await self._until(300)
                await manager.audit.checkpoint()
                await self._until(500)
                change(self.place)
                self._changed = True
                await asyncio.gather(*callers)
                await self._look(manager, tells=tells)
        except (HsmError, OSError) as error:
            self.seen.told = self.seen.told or f"at the end: {type(error).__name__}"
        self._verify()
        await self._start_again()
        return self.seen

    async def _until(self, signed: int) -> None:
        while len(self._signed) < signed and not self.seen.refused:  # noqa: ASYNC110  # callers in other tasks
            await asyncio.sleep(0)

    async def _call(self, manager: hsmcore.KeyManager) -> None:
        while self.seen.after < ENOUGH:
            self._begun += 1
            position, is_after = self._begun, self._changed
            try:
                await manager.sign(ordered(position))
            except HsmError as error:
                self.seen.refused = self.seen.refused or f"{type(error).__name__}: {error}"
                return
            self._signed[position] = b""
            self.seen.after += is_after

    def _tell(self, how: str) -> None:
        self.seen.told = self.seen.told or how

    async def _look(self, manager: hsmcore.KeyManager, *, tells: bool) -> None:
        """Note what is told. `tells`: it is, after a moment."""
        try:
            await manager.audit.checkpoint()
        except (HsmError, OSError) as error:
            self._tell(f"no checkpoint: {error}")
        while tells and not self.seen.told:
            await asyncio.sleep(0.01)
            status = manager.audit.status
            if status is not None and status.failing:
                self._tell(f"failing: {status.failure}")

    def _verify(self) -> None:
        try:
            report = verify(self.place.parts)
        except (HsmError, OSError) as error:
            self.seen.found = f"{type(error).__name__}: {error}"
        else:
            self.seen.found = "" if report.ok else str(report.findings[0])

    async def _start_again(self) -> None:
        try:
            async with opened(self._config) as manager:
                for position in self._signed:
                    with suppress(HsmError):
                        await manager.sign(ordered(position, b"another"))
                        self.seen.twice += 1
        except (HsmError, OSError) as error:
            self.seen.start = f"{type(error).__name__}: {error}"


CHANGES: Final = LOG | STORE | LATER | HARMLESS


def judged(token: Token, folder: Path, name: str) -> Seen:
    """Make a change, and judge what came of it: nothing is signed that was asked for after a change that can be
    noticed, it is told, and no later life signs a position twice."""
    is_noticed = name in LOG or name in STORE
    with patch("hsmcore.state.sqlite._CHECKPOINT_EVERY", 16):  # so that the store's file counts, too
        seen = asyncio.run(Trial(token, folder).run(CHANGES[name], tells=is_noticed))
    assert seen.twice == 0, seen
    if is_noticed:
        assert seen.after == 0, seen
        assert seen.refused, seen
        assert seen.told, seen
    if name in STORE or name in HARMLESS:
        assert not seen.found, seen  # the log is whole
    if name in LATER:
        assert seen.found, seen
        assert seen.told, seen
    if name in HARMLESS:
        assert (seen.told, seen.start) == ("", ""), seen
        assert seen.after >= ENOUGH, seen
    return seen
