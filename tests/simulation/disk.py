"""A simulated disk below one folder. A process sees the folder's real files; what a power cut leaves of them is decided
here, by what was synced until then.

The seam is the interface that the product writes through: `os.fsync`, `os.fdatasync`, `os.replace`, `os.rename`,
`os.link` and `os.unlink` of Python files, and of SQLite's the connection: it syncs its WAL at COMMIT if `synchronous`
is FULL, and WAL and database at a checkpoint. Each of these is one operation of the disk, at which a life may end.

What is assumed: a sync of a file keeps its content, and one of a folder its names. A name that was not synced is there
as it was at any moment since; a content that was not synced is the old one, the new one, or torn. A rename is whole.
The name of a new folder is kept with the first sync below it, as by file systems with a journal.
"""

from __future__ import annotations

import errno
import fcntl
import os
import random
import shutil
import socket
import sqlite3
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

Image = dict[str, bytes | None]
"""Files by their path below the folder; None: a folder."""
_SHARED: Final = "-shm"
"""The end of SQLite's file that each first opener makes anew."""
_mounted: list[Disk] = []
PID: Final = 4242
"""Of each process: records and rows have the same length in each run."""


class Disk:
    """`rng`: chooses what a power cut leaves."""

    def __init__(self, root: Path, rng: random.Random) -> None:
        self.root, self.rng = root, rng
        self._contents: dict[int, bytes | None] = {}
        """What is kept of each file, by inode; None: all of it, as it is."""
        self._unsynced: dict[int, bytes] = {}
        """Contents of files that lost a name before they were synced."""
        self._names: dict[Path, list[dict[str, int]]] = {}
        """By folder: the names that are kept, then those after each change since."""
        self.operations = 0
        self.ends_at: int | None = None
        """The operation at which the life ends,"""
        self.end: Callable[[], object] = lambda: None
        """and what is called then: nothing that happens later counts."""
        self.kills = False
        """Whether that is a kill: then the files stay as they are."""
        self.is_full = False
        self._lies: Callable[[Path], bool] = lambda _path: False
        self.tell: Callable[[str], object] = lambda _what: None
        self.open: list[Any] = []
        """Connections of SQLite, and files that a generator reads: if nothing closed them, they would close descriptors
        that are another's by then."""

    # ---- the life of a process ---------------------------------------------------------------------------------------

    def mount(self, image: Image) -> None:
        """Make the folder's files these, all of them kept, and begin."""
        _mounted.clear()
        shutil.rmtree(self.root, ignore_errors=True)
        self.root.mkdir(mode=0o700, parents=True)
        for name, content in image.items():
            path = self.root / name
            if content is None:
                path.mkdir(mode=0o700)
            else:
                path.write_bytes(content)
                path.chmod(0o600)
        self._contents, self._unsynced = {}, {}
        self._names = {}
        for folder in (self.root, *(self.root / name for name, content in image.items() if content is None)):
            self._names[folder] = [_entries(folder)]
        for name, content in image.items():
            if content is not None:
                self._contents[(self.root / name).stat().st_ino] = content
        self.operations, self.ends_at, self.is_full = 0, None, False
        self._lies = lambda _path: False
        _mounted[:] = [self]

    def unmount(self) -> None:
        _mounted.clear()

    def close(self) -> None:
        """Close what a process has left open."""
        left, self.open = self.open, []
        for one in left:
            one.close()
        for number in [*Path("/proc/self/fd").iterdir()]:
            with suppress(OSError):
                if self.has(number.readlink()):
                    os.close(int(number.name))

    def lie(self, of: Callable[[Path], bool]) -> None:
        """From now on a sync of these files keeps nothing of their content."""
        for path in self.root.rglob("*"):
            if path.is_file() and of(path) and self._contents.get(inode := path.stat().st_ino, b"") is None:
                self._contents[inode] = path.read_bytes()
        self._lies = of

    def left_by_kill(self) -> Image:
        """Return the files as they are."""
        found: Image = {}
        for path in sorted(self.root.rglob("*")):
            found[str(path.relative_to(self.root))] = None if path.is_dir() else path.read_bytes()
        return found

    def left_by_cut(self) -> Image:
        """Return the files as a power cut leaves them."""
        now = {path.stat().st_ino: path for path in sorted(self.root.rglob("*")) if not path.is_symlink()}
        found: Image = {}
        self._leave(self.root, now, found)
        return found

    def _leave(self, folder: Path, now: dict[int, Path], found: Image) -> None:
        names = self._names.get(folder, [{}])
        seen = [*names, _entries(folder)]
        kept = seen[self.rng.choice((0, 0, len(seen) - 1, self.rng.randrange(len(seen))))]
        for name, inode in sorted(kept.items()):
            path, at = folder / name, now.get(inode)
            if name.endswith(_SHARED):
                continue
            if at is not None and at.is_dir():
                found[str(path.relative_to(self.root))] = None
                self._leave(path, now, found)
                continue
            content = self._content(inode, at)
            if content is not None:
                found[str(path.relative_to(self.root))] = content

    def _content(self, inode: int, at: Path | None) -> bytes | None:
        """None: there is nothing of it, and SQLite has removed its name."""
        present = at.read_bytes() if at is not None else self._unsynced.get(inode)
        kept = self._contents.get(inode, b"")
        if kept is None or present is None or kept == present:
            return kept or present
        return self.torn(kept, present)

    def torn(self, kept: bytes, present: bytes) -> bytes:
        """Return what may be left of a change that was not synced."""
        kind = self.rng.choice(("old", "old", "new", "torn", "zeros"))
        if kind in ("old", "new"):
            return kept if kind == "old" else present
        same = _same(kept, present)
        cut = self.rng.randrange(same, len(present) + 1)
        rest = kept[cut:] if len(kept) > same else b""  # written over; else behind it
        return present[:cut] + (rest or (bytes(len(present) - cut) if kind == "zeros" else b""))

    # ---- operations --------------------------------------------------------------------------------------------------

    def operation(self, what: str) -> None:
        """One more has begun, and nothing of it is kept yet."""
        self.operations += 1
        if self.operations == self.ends_at:
            self.tell(f"at operation {self.operations}: {what}")
            self.end()

    @property
    def ends_now(self) -> bool:
        """Whether the life ends at the next operation."""
        return self.operations + 1 == self.ends_at

    def require_space(self) -> None:
        """Raises OSError."""
        if self.is_full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def path_of(self, descriptor: int) -> Path | None:
        """The path of an open file; None: it is not below the folder."""
        try:
            path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))  # noqa: PTH115  # as it is
        except OSError:
            return None
        return path if self.has(path) else None

    def has(self, path: Path) -> bool:
        return path == self.root or self.root in path.parents

    def sync(self, descriptor: int, path: Path) -> None:
        """Keep the content of a file, or the names of a folder."""
        found = os.fstat(descriptor)
        if path.is_dir():
            self.keep_names(path)
        else:
            writes_only = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_WRONLY
            if not self._lies(path):
                content = path.read_bytes() if writes_only else os.pread(descriptor, found.st_size, 0)
                self._contents[found.st_ino] = content
            self._keep_folders(path.parent)

    def keeps(self, text: bytes) -> bool:
        """Whether a file that was synced as a whole has a text: if the power is cut now, that stays."""
        return any(content is not None and text in content for content in self._contents.values())

    def keep_names(self, folder: Path) -> None:
        self._names[folder] = [_entries(folder)]
        self._keep_folders(folder)

    def _keep_folders(self, folder: Path) -> None:
        while folder != self.root:
            above = self._names.setdefault(folder.parent, [{}])
            if folder.name not in above[0]:
                inode = folder.stat().st_ino
                for names in above:
                    names[folder.name] = inode
            self._names.setdefault(folder, [{}])
            folder = folder.parent

    def changes(self, *paths: Path) -> None:
        """The names at these paths are about to change."""
        for path in paths:
            if not self.has(path):
                continue
            folder = path.parent
            self._names.setdefault(folder, [{}]).append(_entries(folder))
            if path.is_file() and (inode := path.stat().st_ino) not in self._contents:
                self._unsynced[inode] = path.read_bytes()

    def as_it_is(self, path: Path) -> None:
        """All of a file is kept: SQLite has synced it, and its name the first time."""
        try:
            inode = path.stat().st_ino
        except FileNotFoundError:
            return
        if self._lies(path):
            self._contents.setdefault(inode, b"")
        elif self._contents.get(inode, b"") is not None:
            self._contents[inode] = None
            self.keep_names(path.parent)

    def as_it_was(self, path: Path, content: bytes) -> None:
        """No more than this is kept of a file."""
        self._contents[path.stat().st_ino] = content

    def is_as_it_is(self, path: Path) -> bool:
        return self._contents.get(path.stat().st_ino, b"") is None


def _entries(folder: Path) -> dict[str, int]:
    try:
        with os.scandir(folder) as found:
            return {one.name: one.inode() for one in found}
    except FileNotFoundError:
        return {}


def _same(one: bytes, other: bytes) -> int:
    """How many bytes both begin with."""
    if other.startswith(one):
        return len(one)
    return next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


# ---- the seam --------------------------------------------------------------------------------------------------------


class Connection(sqlite3.Connection):
    """SQLite's, on the disk that is mounted."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        if _mounted:
            _mounted[0].open.append(self)

    _file: Path | None = None
    _is_full: bool | None = None
    """Whether COMMIT syncs the WAL: `synchronous` is FULL."""

    def _wal(self, disk: Disk) -> Path | None:
        if self._file is None:
            row = super().execute("PRAGMA database_list").fetchone()
            self._file = Path(row[2] or "/")
        return Path(f"{self._file}-wal") if disk.has(self._file) else None

    def commit(self) -> None:
        disk = _mounted[0] if _mounted and self.in_transaction else None
        wal = None if disk is None else self._wal(disk)
        if disk is None or wal is None or not wal.exists():
            super().commit()
            return
        if self._is_full is None:
            self._is_full = super().execute("PRAGMA synchronous").fetchone()[0] >= 2
        if disk.is_full:
            self.rollback()
            raise sqlite3.OperationalError("database or disk is full")
        ends = disk.ends_now
        if ends and disk.kills and disk.rng.random() < 0.5:
            disk.operation("COMMIT")
            super().commit()
            return
        before = wal.read_bytes() if ends or not self._is_full else b""
        super().commit()
        if not self._is_full:
            if disk.is_as_it_is(wal):
                disk.as_it_was(wal, before)
        elif ends:
            disk.as_it_was(wal, before)
        else:
            disk.as_it_is(wal)
        disk.operation("COMMIT")

    def execute(self, *arguments: Any) -> sqlite3.Cursor:
        done = super().execute(*arguments)
        if _mounted and not self.in_transaction and arguments[0].startswith("PRAGMA"):
            self._settled(done if "checkpoint" in arguments[0] else None)
        return done

    def _settled(self, checkpoint: sqlite3.Cursor | None) -> None:
        disk = _mounted[0]
        wal = self._wal(disk)
        if wal is None or self._file is None:
            return
        if checkpoint is not None:
            disk.operation("checkpoint")
        if self._is_full is not False:
            disk.as_it_is(wal)
        disk.as_it_is(self._file)

    def close(self) -> None:
        disk = _mounted[0] if _mounted else None
        wal = None if disk is None else self._wal(disk)
        super().close()
        if disk is not None and wal is not None and self._file is not None:
            disk.as_it_is(self._file)


def install() -> None:
    """Put the seam into `os` and `sqlite3`. Once in a process; it does nothing while no disk is mounted."""

    def syncs(name: str) -> None:
        real = getattr(os, name)

        def sync(descriptor: Any) -> None:
            disk = _mounted[0] if _mounted else None
            number = descriptor if isinstance(descriptor, int) else descriptor.fileno()
            path = None if disk is None else disk.path_of(number)
            if disk is None or path is None:
                real(descriptor)
                return
            disk.require_space()
            disk.operation(f"sync of {path.relative_to(disk.root)}")
            disk.sync(number, path)

        setattr(os, name, sync)

    def moves(name: str) -> None:
        real = getattr(os, name)

        def move(*paths: Any, **options: Any) -> None:
            if _mounted and not options:
                places = [Path(os.fspath(path)) for path in paths]
                _mounted[0].changes(*places)
                _mounted[0].operation(f"{name} of {places[0].name}")
            real(*paths, **options)

        setattr(os, name, move)

    write = os.write

    def written(descriptor: int, data: Any) -> int:
        if _mounted and _mounted[0].is_full and _mounted[0].path_of(descriptor) is not None:
            _mounted[0].require_space()
        return write(descriptor, data)

    os.write = written
    for name in ("fsync", "fdatasync"):
        syncs(name)
    for name in ("replace", "rename", "link", "unlink"):
        moves(name)
    _keep_readers()
    connect, getpid, gethostname = sqlite3.connect, os.getpid, socket.gethostname
    os.getpid = lambda: PID if _mounted else getpid()
    socket.gethostname = lambda: "host" if _mounted else gethostname()

    def connected(*arguments: Any, **options: Any) -> sqlite3.Connection:
        return connect(*arguments, **{"factory": Connection, **options})

    sqlite3.connect = sqlite3.dbapi2.connect = connected  # type: ignore[assignment, misc]


def _keep_readers() -> None:
    from hsmcore.audit.segment import Segment

    reads = Segment._open

    def read(self: Segment) -> Any:
        file = reads(self)
        if _mounted:
            _mounted[0].open.append(file)
        return file

    Segment._open = read  # type: ignore[method-assign]
