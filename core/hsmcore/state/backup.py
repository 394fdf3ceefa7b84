"""A backup of a state store: one file, whatever database the store is in, so that either kind is restored from it.

It is a line of JSON that says what it is, a line with that line's digest and, with a stateSecret, its MAC; then the
whole store as a file of SQLite, whose digest the first line has. A store has no secrets: what counts is that none of it
is changed. The seal of the store (state/seal.py) is in it like every other row.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import os
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import astuple, dataclass
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any, Final

import orjson
from sqlalchemy import Connection, select

from hsmcore.base.files import pieces
from hsmcore.base.ownership import make
from hsmcore.base.waiting import whole
from hsmcore.state.database import Told
from hsmcore.state.errors import StoreError
from hsmcore.state.positions import marks
from hsmcore.state.schema import MIGRATIONS, SEAL
from hsmcore.state.seal import SealSecret, derive
from hsmcore.state.sqlite import FILE_HINT
from hsmcore.state.store import Store

FORMAT: Final = "hsmcore-state-backup-1"
SUFFIX: Final = ".hsmstate"
_KEYS: Final = ("schema", "madeNs", "subject", "manager", "sealed", "audit", "highest", "bytes", "sha256")
"""The fields of BackupStatement, as the file names them."""
_LABEL: Final = b"hsmcore: a backup of a state store, version 1\0"
_MOST_LINE: Final = 1 << 20
_LIMIT: Final = 1 << 63


class BackupUnusable(StoreError):
    """A file is not a backup of this store, or was changed. Nothing of it is restored."""

    default_hint = "Take another backup, and find out what happened to this one."


@dataclass(frozen=True, slots=True)
class BackupStatement:
    """The header of a backup."""

    schema: int
    made_ns: int
    subject: str
    """The owner: the fleet's name, or the origin of the audit log; "": there is no log."""
    manager: str | None
    """The key manager, where there are several."""
    sealed: bool
    audit: dict[str, Any] | None
    """The log's last checkpoint before the copy was made: `origin`, `size`, `root`, and the signed `note`."""
    highest: dict[str, int]
    """The highest position of each domain, at least."""
    size: int
    sha256: str

    def as_data(self) -> dict[str, Any]:
        """Return it as data for JSON, as it stands in the file."""
        return {"format": FORMAT, **dict(zip(_KEYS, astuple(self), strict=True))}


@contextmanager
def folder() -> Iterator[Path]:
    """A folder for the copy of a store, which is removed at the end. Raises StoreError."""
    try:
        with tempfile.TemporaryDirectory(prefix="hsmcore-state-") as made:
            yield Path(made)
    except OSError as error:
        where = error.filename or tempfile.gettempdir()
        raise StoreError(f"{where}: {error.strerror}", call="write", hint=FILE_HINT) from None


@asynccontextmanager
async def folder_aside() -> AsyncIterator[Path]:
    """As `folder`, made and removed outside the event loop's thread: to remove a large file takes long."""
    made = folder()

    async def leave(*raised: Any) -> bool | None:
        return await whole(asyncio.to_thread(made.__exit__, *raised))

    async with AsyncExitStack() as rest:
        place = await whole(asyncio.to_thread(made.__enter__))
        rest.push_async_exit(leave)
        yield place


@asynccontextmanager
async def mapping(path: Path) -> AsyncIterator[mmap]:
    """As `mapped`, also until it is closed: the last use of a file that was removed frees its room."""
    data = await whole(asyncio.to_thread(mapped, path))
    try:
        yield data
    finally:
        with suppress(BufferError):  # an error's traceback has a part of it
            await whole(asyncio.to_thread(data.close))


@asynccontextmanager
async def made_backup(
    store: Store,
    subject: str,
    manager: str | None,
    audit: dict[str, Any] | None,
    secret: SealSecret | None,
    told: Told | None = None,
) -> AsyncIterator[tuple[BackupStatement, bytes, mmap]]:
    """Copy a store that is open, and yield the backup: what it says, and its two parts. The copy is a file that is
    mapped, and goes away at the end. `audit`: the checkpoint that was read before. Raises StoreError,
    SecretUnavailable."""

    def look(connection: Connection) -> tuple[dict[str, int], bool]:
        highest = {name: mark.high for name, mark in marks(connection).items()}
        return highest, connection.execute(select(SEAL.c.name)).first() is not None

    def seal(data: mmap) -> tuple[BackupStatement, bytes, mmap]:
        schema, digest = MIGRATIONS[-1].number, _sha256(data)
        statement = BackupStatement(schema, made, subject, manager, sealed, audit, highest, len(data), digest)
        line = orjson.dumps(statement.as_data(), option=orjson.OPT_SORT_KEYS)
        vouched = f"{hashlib.sha256(line).hexdigest()} {_mac(line, secret)}\n"
        return statement, line + b"\n" + vouched.encode(), data

    made, (highest, sealed) = time.time_ns(), await store.run(look, shows=True)
    async with folder_aside() as place:
        path = place / "state.db"
        await store.copy_to(path, told)
        async with mapping(path) as data:
            yield await whole(asyncio.to_thread(seal, data))


def mapped(path: Path) -> mmap:
    """Return a file's content, which takes no memory of the process's own. Raises BackupUnusable for an empty one,
    OSError."""
    with path.open("rb") as file:
        if not os.fstat(file.fileno()).st_size:
            raise BackupUnusable("the backup is empty")
        return mmap(file.fileno(), 0, access=ACCESS_READ)


def _sha256(data: bytes | mmap, begin: int = 0) -> str:
    digest = hashlib.sha256()
    for piece in pieces(data, begin):
        digest.update(piece)
    return digest.hexdigest()


def parse(data: bytes | mmap, secret: SealSecret | None) -> tuple[BackupStatement, memoryview]:
    """Return what a backup says and the store in it, all of it compared with digests and MAC. Blocks. Raises
    BackupUnusable, SecretUnavailable."""
    line, _, rest = data[:_MOST_LINE].partition(b"\n")
    vouched, _, _ = rest.partition(b"\n")
    if not line.startswith(b"{") or f'"{FORMAT}"'.encode() not in line:
        raise BackupUnusable(f"this is no backup of the form {FORMAT}")
    digest, _, mac = vouched.decode("ascii", "replace").partition(" ")
    if digest != hashlib.sha256(line).hexdigest():
        raise BackupUnusable("the backup was changed or cut off: its first line has another digest")
    try:
        found = orjson.loads(line)
        statement = BackupStatement(*(found[name] for name in _KEYS))
    except (orjson.JSONDecodeError, KeyError, TypeError):
        raise BackupUnusable("the backup was not made by hsmcore") from None
    if not _is_well_formed(statement):
        raise BackupUnusable("the backup was not made by hsmcore: its first line has values that are none")
    if secret is not None and mac == "-":
        raise BackupUnusable(
            "the backup has no seal, and the configuration has a stateSecret",
            hint="To use it all the same, leave stateSecret out, restore, and then adopt it: `hsmcore state seal`.",
        )
    if secret is not None and not hmac.compare_digest(mac.encode(), _mac(line, secret).encode()):
        raise BackupUnusable("the backup was sealed with another stateSecret, or changed")
    if statement.schema > MIGRATIONS[-1].number:
        newest = MIGRATIONS[-1].number
        raise BackupUnusable(
            f"a newer version of hsmcore has made it (schema {statement.schema}, known up to {newest})"
        )
    body = memoryview(data)[len(line) + len(vouched) + 2 :]
    if len(body) != statement.size:
        raise BackupUnusable(f"the backup was cut off or added to: {len(body)} of {statement.size} bytes")
    if _sha256(data, len(data) - len(body)) != statement.sha256:
        raise BackupUnusable("the backup was changed: its content has another digest")
    return statement, body


def _is_well_formed(statement: BackupStatement) -> bool:
    """Return whether the values have their types; `audit` is looked at where it is compared (recovery/anchor.py)."""
    highest, manager = statement.highest, statement.manager
    return (
        all(type(each) is int and 0 <= each < _LIMIT for each in (statement.schema, statement.made_ns, statement.size))
        and (type(statement.subject), type(statement.sealed), type(statement.sha256)) == (str, bool, str)
        and (manager is None or type(manager) is str)
        and type(highest) is dict
        and all(type(each) is int and -1 <= each < _LIMIT for each in highest.values())
    )


@asynccontextmanager
async def unpacked(body: memoryview, path: Path, state_secret: SealSecret | None) -> AsyncIterator[Store]:
    """Write the store of a backup into a new file, bring it up to date, and open it. It is closed at the end; the file
    stays. Raises BackupUnusable, StoreError."""
    opening = asyncio.ensure_future(_open_copy(path, body, state_secret))
    try:
        store = await whole(opening)
    except asyncio.CancelledError:
        if not opening.cancelled() and opening.exception() is None:
            await opening.result().close()
        raise
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror}", call="write", hint=FILE_HINT) from None
    except StoreError as error:
        raise BackupUnusable(f"the store in the backup cannot be opened: {error.args[0]}") from None
    try:
        status = await store.seal_status()
        foreign = await store.foreign()
        if foreign:
            raise BackupUnusable(f"the store in the backup has another schema: {foreign} is not of hsmcore's making")
        if status is not None and status.sealed and status.problems:
            scope, problem = next(iter(status.problems.items()))
            raise BackupUnusable(f"the store in the backup is not genuine: {scope}: {problem}")
        yield store
    finally:
        await store.close()


async def _open_copy(path: Path, body: memoryview, state_secret: SealSecret | None) -> Store:
    await asyncio.to_thread(_write, path, body)
    return await Store.open(path, state_secret, shows=True)


def _write(path: Path, body: memoryview) -> None:
    whole: bytes | mmap = body.obj  # type: ignore[assignment]  # what `parse` was given
    with os.fdopen(make(path), "wb") as file:
        for piece in pieces(whole, len(whole) - len(body)):
            file.write(piece)


def _mac(line: bytes, secret: SealSecret | None) -> str:
    if secret is None:
        return "-"
    key = derive(secret)
    try:
        return hmac.digest(hmac.digest(key, _LABEL, "sha256"), line, "sha256").hex()
    finally:
        key[:] = bytes(len(key))
