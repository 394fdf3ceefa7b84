"""A file made in a folder belongs to the folder's owner. Nobody else can open it, whatever the umask is.

An administrator runs commands as root in the folders of a service that runs as another user. The service must be able
to use the files that root makes there, so they are given to the folder's owner.

That owner may be hostile to root: any entry of the folder can be a link, and be exchanged at any moment. So a file is
made relative to a descriptor of its folder, with O_EXCL, and given away through its own descriptor. A file that was
there before is never given away, with one exception: `adopt`.
"""

from __future__ import annotations

import os
import pwd
import secrets
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from hsmcore.base.log import get_logger, printable

EXPOSED_HINT: Final = (
    "Run chmod 700 on the folder, or name one that does not exist: hsmcore makes it for this user alone."
)
FOREIGN_HINT: Final = "Who may write the file has the rights of this process: see who has written it."
_NEW = os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


@contextmanager
def _opened(folder: Path) -> Iterator[int]:
    descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _give(descriptor: int, folder: int) -> None:
    owner = os.fstat(folder)
    if owner.st_uid != os.fstat(descriptor).st_uid:
        with suppress(PermissionError):  # not root: the owner stays as it is
            os.fchown(descriptor, owner.st_uid, owner.st_gid)


def make(path: Path, flags: int = os.O_WRONLY, mode: int = 0o600) -> int:
    """Make a file and return its descriptor. Raises FileExistsError if the name is taken, OSError."""
    with _opened(path.parent) as folder:
        descriptor = os.open(path.name, flags | _NEW, mode, dir_fd=folder)
        try:
            os.fchmod(descriptor, mode)
            _give(descriptor, folder)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor


def make_empty(path: Path) -> None:
    """Make an empty file of mode 0600 that never shows under another owner, and that this process never has open under
    its name. Raises FileExistsError if the name is taken, OSError."""
    with _opened(path.parent) as folder:
        beside = f".{path.name}.{secrets.token_hex(8)}"
        descriptor = os.open(beside, os.O_WRONLY | _NEW, 0o600, dir_fd=folder)
        try:
            try:
                os.fchmod(descriptor, 0o600)
                _give(descriptor, folder)
            finally:
                os.close(descriptor)
            try:
                os.link(beside, path.name, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)
            except FileExistsError:
                raise
            except OSError:  # a file system without hard links: as a rule it has no owners either
                os.mknod(path.name, stat.S_IFREG | 0o600, dir_fd=folder)
        finally:
            os.unlink(beside, dir_fd=folder)


def replace(path: Path, data: bytes) -> None:
    """Replace a file's content atomically and durably, also while other processes do the same: after a crash it is the
    old or the new one. Mode 0600. Raises OSError."""
    beside = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with os.fdopen(make(beside), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except BaseException:
        with suppress(OSError):
            beside.unlink()
        raise
    sync(path.parent)


def sync(path: Path) -> None:
    """Flush a file, or the entries of a folder, to the disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def open_or_make(path: Path, flags: int = os.O_RDWR) -> int:
    """Open a file that is not a link; make it (empty, mode 0600) if it is missing. Raises OSError."""
    flags |= os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return os.open(path, flags)
    except FileNotFoundError:
        with suppress(FileExistsError):
            make_empty(path)
    return os.open(path, flags)


def exposed(folder: Path) -> str:
    """Return what is wrong if everyone may replace files of a folder, else "". Warned about are a folder that its group
    may write, unless it is lent by root, as a volume of Kubernetes with an fsGroup is; and a volume of root's that
    everyone may write, as some provisioners make them: its mode is the platform's. Raises OSError."""
    found = folder.stat()
    if found.st_mode & stat.S_ISVTX:
        return ""
    lent, mode = found.st_uid == 0 != os.geteuid(), f"{stat.S_IMODE(found.st_mode):04o}"
    if found.st_mode & stat.S_IWOTH:
        if not (lent and folder.is_mount()):
            return f"everyone may write to {folder} (mode {mode})"
        get_logger().warning("everyone may write to a volume of hsmcore's", folder=str(folder), mode=mode)
    elif found.st_mode & stat.S_IWGRP and not lent:
        get_logger().warning("its group may write to a folder of hsmcore's", folder=str(folder), mode=mode)
    return ""


def foreign(path: Path, opened: int | None = None, *, root_takes_all: bool = False) -> str:
    """Return what is wrong with a file that this process is to load or to obey, or a folder of such files, and what
    mends it, else "": everyone may write it, or it belongs to neither this user nor root. Links are followed; `opened`
    is a descriptor of the file. Warned about are a file that its group may write, and one of another user's on a
    read-only volume, as container platforms mount them, or for root with `root_takes_all`. Raises OSError."""
    found = path.stat() if opened is None else os.fstat(opened)
    name, mode, root = printable(str(path)), f"{stat.S_IMODE(found.st_mode):04o}", os.geteuid() == 0
    if stat.S_ISDIR(found.st_mode):
        if problem := exposed(path):
            return problem
    elif found.st_mode & stat.S_IWOTH:
        return f"everyone may write {name} (mode {mode}): run chmod go-w on it"
    warns = found.st_mode & stat.S_IWGRP and (root or found.st_uid != 0) and not stat.S_ISDIR(found.st_mode)
    if found.st_uid not in (0, os.geteuid()):
        # systemd may show a service the whole root file system as read-only, which others write.
        fixed = os.statvfs(path).f_flag & os.ST_RDONLY and found.st_dev != Path("/").stat().st_dev
        warns = fixed or (root and root_takes_all)
        if not warns:
            return f"user {found.st_uid} may write {name}: run chown root and chmod go-w on it"
    if warns:
        get_logger().warning("others may write what is loaded or obeyed", path=name, mode=mode, owner=found.st_uid)
    return ""


def make_folder(path: Path, *, parents: bool = False) -> None:
    """Make a folder, with `parents` also the missing ones above it. An existing one stays as it is. Raises OSError."""
    if path.is_dir():
        return
    if parents and not path.parent.is_dir():
        make_folder(path.parent, parents=True)
    with _opened(path.parent) as above:
        try:
            os.mkdir(path.name, 0o700, dir_fd=above)
        except FileExistsError:
            if not path.is_dir():
                raise
            return
        _let_owner_in(path.name, above)
        descriptor = os.open(path.name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=above)
        try:
            if not os.listdir(descriptor):  # noqa: PTH208  # no path would do; else it is not the one that was made here
                _give(descriptor, above)
        finally:
            os.close(descriptor)


def _let_owner_in(name: str, above: int) -> None:
    """Undo what the umask has taken from a folder that was made here. Nothing that was exchanged for it is changed: it
    must be of this user, and closed to it."""
    descriptor = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=above)
    try:
        found = os.fstat(descriptor)
        if found.st_uid == os.geteuid() and found.st_mode & stat.S_IRWXU != stat.S_IRWXU:
            Path(f"/proc/self/fd/{descriptor}").chmod(0o700)
    finally:
        os.close(descriptor)


def adopt(path: Path, is_ours: Callable[[int], bool]) -> None:
    """Give a file that native code of this process may have made to the folder's owner: a file of this user with one
    name, whose content shows that it is ours. Raises OSError."""
    with _opened(path.parent) as folder:
        if os.fstat(folder).st_uid == os.geteuid():
            return
        try:
            descriptor = os.open(path.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=folder)
        except FileNotFoundError:
            return
        try:
            found = os.fstat(descriptor)
            plain = stat.S_ISREG(found.st_mode) and found.st_nlink == 1 and found.st_uid == os.geteuid()
            if plain and is_ours(descriptor):
                _give(descriptor, folder)
        finally:
            os.close(descriptor)


def user_name(uid: int) -> str:
    """Return the name of a user, or "uid <uid>" if it has none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"


def ownership_of(path: Path) -> str:
    """Return whose a file is that this user may not open, or the first folder above it that may be looked at, and who
    this user is."""
    me = f"this process runs as {user_name(os.geteuid())}"
    for place in (path, *path.parents):
        with suppress(OSError):
            found = place.stat()
            owner, mode = user_name(found.st_uid), stat.S_IMODE(found.st_mode)
            return f"{place.absolute()} belongs to {owner} (mode {mode:04o}), and {me}"
    return me


def owns(folder: Path) -> bool:
    """Return whether a folder belongs to this user. Raises OSError."""
    return folder.stat().st_uid == os.geteuid()
