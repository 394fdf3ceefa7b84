"""The places of backups: a folder, or an object store. Files are created, never overwritten."""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import chain
from mmap import mmap
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from hsmcore.base.extras import install
from hsmcore.base.files import pieces
from hsmcore.base.ownership import make, make_folder, sync
from hsmcore.errors import HsmError, SystemFailure

if TYPE_CHECKING:
    from obstore.store import ObjectStore

SUFFIX = ".hsmbackup"


class PlaceError(SystemFailure):
    """A place for backups cannot be read or written."""

    default_hint = "Check the location of the backups, the rights to it, and the room there."


class BackupPlace(Protocol):
    """A place. `location` is as configured. Every method raises PlaceError."""

    location: str

    async def create(self, name: str, *parts: bytes | mmap) -> None:
        """Write a file that must not exist, of parts one after the other. It is durable when this returns."""

    async def read(self, name: str) -> bytes | None:
        """Return a file's content; None if it does not exist."""

    async def fetch(self, name: str, path: Path) -> bool:
        """Write a file's content into a new file, as it comes. Returns whether it exists."""

    async def names(self) -> list[str]:
        """Return the names of all backups, sorted."""


def place_at(location: str, endpoint: str | None = None, suffix: str = SUFFIX) -> BackupPlace:
    """Return the place that `backupLocation` names. `endpoint`: another S3 endpoint than AWS's. `suffix`: of the names
    that it lists. Nothing is connected yet."""
    scheme, separator, rest = location.partition("://")
    if not separator:
        return Folder(location, Path(location), suffix)
    if scheme == "file":
        return Folder(location, Path(rest), suffix)
    return Bucket(location, endpoint, suffix)


def name_for(label: str, key_id: str) -> str:
    """Return a backup's name: readable, and safe in every place."""
    return f"{re.sub(r'[^A-Za-z0-9._-]', '_', label)[:60]}.{key_id or 'no-id'}{SUFFIX}"


class Folder:
    """A folder of this machine. Files are 0600, and belong to its owner; the folder is 0700 if it has to be made."""

    def __init__(self, location: str, path: Path, suffix: str = SUFFIX) -> None:
        self.location = location
        self._path, self._suffix = path, suffix

    async def create(self, name: str, *parts: bytes | mmap) -> None:
        await self._run(self._create, name, *parts)

    def _create(self, name: str, *parts: bytes | mmap) -> None:
        make_folder(self._path, parents=True)
        temporary = self._path / f".{name}.{secrets.token_hex(4)}"
        descriptor = make(temporary)
        try:
            with os.fdopen(descriptor, "wb") as file:
                for piece in chain.from_iterable(map(pieces, parts)):
                    file.write(piece)
                file.flush()
                os.fsync(file.fileno())
            os.link(temporary, self._path / name)  # fails if there is one
        finally:
            with suppress(OSError):
                temporary.unlink()
        sync(self._path)

    async def read(self, name: str) -> bytes | None:
        try:
            data: bytes = await self._run((self._path / name).read_bytes)
        except FileNotFoundError:
            return None
        return data

    async def fetch(self, name: str, path: Path) -> bool:
        try:
            await self._run(shutil.copyfile, self._path / name, path)
        except FileNotFoundError:
            return False
        return True

    async def names(self) -> list[str]:
        found: list[Path] = await self._run(lambda: list(self._path.glob(f"*{self._suffix}")))
        return sorted(path.name for path in found if path.name[0] != ".")

    async def _run(self, work: Any, *args: Any) -> Any:
        try:
            return await asyncio.get_running_loop().run_in_executor(None, work, *args)
        except FileNotFoundError:
            raise
        except OSError as error:
            what = f"{args[0]}: {error.strerror}" if args else error.strerror
            raise PlaceError(f"backups at {self.location}: {what}", call=work.__name__.strip("_")) from None


class Bucket:
    """An object store: s3://bucket/prefix, gs://bucket/prefix, az://container/prefix. Credentials come from the places
    of the vendor's own tools (environment, instance metadata; for S3 those of boto3, if it is installed)."""

    def __init__(self, location: str, endpoint: str | None, suffix: str = SUFFIX) -> None:
        self.location = location
        self._endpoint, self._suffix = endpoint, suffix
        self._opened: ObjectStore | None = None

    def _store(self) -> ObjectStore:
        if self._opened is None:
            from obstore.store import from_url

            options: dict[str, Any] = {"retry_config": {"max_retries": 3}}
            if self._endpoint is not None:
                options["config"] = {"aws_endpoint": self._endpoint}
                if self._endpoint.startswith("http://"):  # the configuration allows that on the loopback only
                    options["client_options"] = {"allow_http": True}
            if self.location.startswith("s3://") and (credentials := _boto3_credentials()) is not None:
                options["credential_provider"] = credentials
            self._opened = from_url(self.location, **options)
        return self._opened

    async def create(self, name: str, *parts: bytes | mmap) -> None:
        with _translated(self.location):
            import obstore

            await obstore.put_async(self._store(), name, parts, mode="create")

    async def read(self, name: str) -> bytes | None:
        with _translated(self.location):
            import obstore
            from obstore.exceptions import NotFoundError

            try:
                got = await obstore.get_async(self._store(), name)
            except (NotFoundError, FileNotFoundError):
                return None
            return bytes(await got.bytes_async())

    async def fetch(self, name: str, path: Path) -> bool:
        with _translated(self.location):
            import obstore
            from obstore.exceptions import NotFoundError

            try:
                got = await obstore.get_async(self._store(), name)
            except (NotFoundError, FileNotFoundError):
                return False
            with os.fdopen(make(path), "wb") as file:
                async for chunk in got.stream():
                    await asyncio.to_thread(file.write, chunk)
        return True

    async def names(self) -> list[str]:
        with _translated(self.location):
            import obstore

            found = await obstore.list(self._store()).collect_async()
        return sorted(item["path"] for item in found if item["path"].endswith(self._suffix))


@contextmanager
def _translated(location: str) -> Iterator[None]:
    """Raise errors of obstore as PlaceError: kind and first line. Its whole text may hold a signed request."""
    try:
        yield
    except HsmError:
        raise
    except ImportError:
        hint = f"Run: {install('backup')}"
        raise PlaceError(f"backups at {location}: obstore is not installed", hint=hint) from None
    except Exception as error:  # noqa: BLE001  # obstore has no root of its own errors
        first = (str(error).splitlines() or [""])[0][:200]
        raise PlaceError(f"backups at {location}: {type(error).__name__}: {first}") from None


def _boto3_credentials() -> Any:
    try:
        import boto3
        from obstore.auth.boto3 import Boto3CredentialProvider
    except ImportError:
        return None
    session = boto3.Session()
    return Boto3CredentialProvider(session) if session.get_credentials() is not None else None
