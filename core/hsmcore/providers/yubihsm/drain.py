"""Drains the audit log of a YubiHSM 2: read it, verify its chain, have it kept, and only then let the device delete it.

PKCS#11 does not offer the log, which holds 62 entries; so python-yubihsm (extra `hsmcore[yubihsm]`) reads it, as a user
that needs the capability get-log-entries only. With force-audit the device refuses to sign while its log is full: drain
at least every 40 signatures.

anchor = Anchor.from_json(…) or None
result = await drain(settings, anchor, keep)      # keep(entries, anchor) makes both durable before it returns
"""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import struct
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from types import ModuleType
from typing import TYPE_CHECKING, Final

from hsmcore.base.extras import install
from hsmcore.base.waiting import shielded
from hsmcore.config import Secret
from hsmcore.errors import BadArgument, HsmError, error_of
from hsmcore.providers.yubihsm.chain import ENTRY_BYTES, Anchor, ChainFinding, LogEntry, after, verify_chain
from hsmcore.providers.yubihsm.settings import YubiHsmSettings

if TYPE_CHECKING:
    from yubihsm.core import AuthSession, YubiHsm

TIMEOUT_SECONDS: Final = 5
"""Timeout of the connection and of each answer."""

# Yubico, "Core Concepts": derivation of K-ENC and K-MAC from a password.
_SALT: Final = b"Yubico"
_ITERATIONS: Final = 10_000
_KEY_BYTES: Final = 16
_HEAD: Final = struct.Struct("!HHB")  # unlogged boots, unlogged authentications, number of entries

Keep = Callable[[Sequence[LogEntry], Anchor], Awaitable[None] | None]
"""Makes entries and their anchor durable. The device deletes them once it has returned."""


@dataclass(frozen=True, slots=True)
class LogSource:
    """One device and the user that reads its log."""

    connector: str
    auth_key_id: int
    password: Secret
    member: str | None = None

    @classmethod
    def of(cls, settings: YubiHsmSettings) -> LogSource:
        """Return the source of a member with one connector. The user is auditAuthKeyId if it is given, else the signing
        user. Raises BadArgument."""
        if len(settings.connector_urls) != 1:
            raise BadArgument("several connectors are several logs: drain each of config.members_of(provider)")
        [connector] = settings.connector_urls
        member = f"yubihsm:{connector}"
        if settings.audit_auth_key_id is not None and settings.audit_password is not None:
            return cls(connector, settings.audit_auth_key_id, settings.audit_password, member)
        return cls(connector, settings.auth_key_id, settings.password, member)


@dataclass(frozen=True, slots=True)
class DrainResult:
    """The result of one reading. `entries`: new ones only, all of them kept."""

    entries: Sequence[LogEntry]
    anchor: Anchor | None
    """The `since` of the next reading; None if the log never held an entry."""
    findings: Sequence[ChainFinding] = field(default=())
    """Faults of the chain. The entries are kept nevertheless, as evidence."""
    unlogged_boots: int = 0
    unlogged_authentications: int = 0
    """Events that a full log under force-audit had no room for."""


async def drain(settings: YubiHsmSettings | LogSource, since: Anchor | None, keep: Keep) -> DrainResult:
    """Read, verify, keep and delete the device's log. Does not block; takes a few exchanges with the device.

    `since`: the anchor of the last reading; None for the first one, which is trusted. If `keep` raises, the device
    keeps the entries and the next reading returns them again. Raises HsmError: LoginError (do not repeat),
    RequestRejected if the user may not read the log, MemberDown if the device does not answer.
    """
    source = settings if isinstance(settings, LogSource) else LogSource.of(settings)
    reader = _Reader(source)
    loop = asyncio.get_running_loop()
    # One thread, so that `close` runs after a call that a cancelled drain left running.
    thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="hsmcore-device-log")
    try:
        reading = await loop.run_in_executor(thread, reader.read)
        result = _judge(reading, since, source)
        if result.entries and result.anchor is not None:
            kept = keep(result.entries, result.anchor)
            if inspect.isawaitable(kept):
                await kept
        if reading.entries:
            await loop.run_in_executor(thread, reader.forget, reading.entries[-1].number)
        return result
    finally:
        closing = loop.run_in_executor(thread, reader.close)
        thread.shutdown(wait=False)
        await shielded(closing)


@dataclass(frozen=True, slots=True)
class _Reading:
    serial: int
    unlogged_boots: int
    unlogged_authentications: int
    entries: Sequence[LogEntry]


def _judge(reading: _Reading, since: Anchor | None, source: LogSource) -> DrainResult:
    serial, boots, authentications = reading.serial, reading.unlogged_boots, reading.unlogged_authentications
    if since is not None and since.serial != serial:
        detail = f"the device has serial number {serial}, the kept log is that of {since.serial}"
        raise error_of("TOKEN_NOT_FOUND", detail=detail, member=source.member)
    entries = after(reading.entries, since)
    findings = verify_chain(entries, since)
    if boots or authentications:
        number = entries[-1].number if entries else 0
        missed = f"{boots} boots and {authentications} authentications found the log full"
        findings.append(ChainFinding("unlogged", number, missed))
    anchor = Anchor(serial, entries[-1].number, entries[-1].digest) if entries else since
    return DrainResult(entries, anchor, findings, boots, authentications)


class DeviceSession:
    """A session with the device. Blocking; one thread at a time. `right`: a capability that its user needs."""

    def __init__(self, source: LogSource, right: str = "get-log-entries") -> None:
        self._source, self._right = source, right
        self._hsm: YubiHsm | None = None
        self._session: AuthSession | None = None

    def log_in(self, why: str) -> tuple[int, AuthSession]:
        """Begin. Returns the device's serial number, too. Raises HsmError."""
        with self.translated(f"logging in to {why}"):
            self._hsm = _connected(self._source.connector)
            serial = int(self._hsm.get_device_info().serial)
            self._session = _logged_in(self._hsm, self._source)
            return serial, self._session

    def close(self) -> None:
        """End the session; if that fails, it expires."""
        session, self._session = self._session, None
        hsm, self._hsm = self._hsm, None
        with suppress(Exception):
            if session is not None:
                session.close()
        if hsm is not None:
            hsm.close()

    @contextmanager
    def translated(self, what: str) -> Iterator[None]:
        """Raise the device's errors as HsmError."""
        exceptions, member = _exceptions(), self._source.member
        try:
            yield
        except exceptions.YubiHsmAuthenticationError as error:
            raise error_of("PIN_INCORRECT", detail=what, member=member) from error
        except exceptions.YubiHsmDeviceError as error:
            logging_in = self._session is None
            raise _of_device(error.code, what, member, self._right, logging_in=logging_in) from error
        except (exceptions.YubiHsmError, struct.error, ValueError, IndexError) as error:
            problem = f"{what}: {type(error).__name__}"
            raise error_of("TOKEN_LOST", detail=problem, member=member) from error


class _Reader(DeviceSession):
    """Reads and clears the log."""

    def read(self) -> _Reading:
        """Log in and read all entries, oldest first. Raises HsmError."""
        serial, session = self.log_in("read the device's log")
        with self.translated("reading the device's log"):
            from yubihsm.defs import COMMAND

            # Not get_log_entries(), which rejects a log with a broken chain: the log that needs to be read most.
            reply = session.send_secure_cmd(COMMAND.GET_LOG_ENTRIES)
            boots, authentications, count = _HEAD.unpack_from(reply)
            rest = reply[_HEAD.size :]
            if len(rest) != count * ENTRY_BYTES:
                raise ValueError("wrong length")
            entries = [LogEntry.parse(rest[at : at + ENTRY_BYTES]) for at in range(0, len(rest), ENTRY_BYTES)]
            return _Reading(serial, boots, authentications, entries)

    def forget(self, number: int) -> None:
        """Have the device delete its entries up to this one. Raises HsmError."""
        if self._session is not None:
            with self.translated("clearing the device's log"):
                self._session.set_log_index(number)


def _of_device(code: int, what: str, member: str | None, right: str, *, logging_in: bool) -> HsmError:
    from yubihsm.defs import ERROR

    detail = f"{what}: the device says {ERROR(code).name}"
    if code == ERROR.OBJECT_NOT_FOUND and logging_in:
        return error_of("LOGIN_REFUSED", detail=detail, member=member)
    if code == ERROR.AUTHENTICATION_FAILED and logging_in:
        return error_of("PIN_INCORRECT", detail=detail, member=member)
    if code == ERROR.INSUFFICIENT_PERMISSIONS:
        hint = f"Give the user the capability {right}, or name one that has it as auditAuthKeyId."
        return error_of("REQUEST_REJECTED", detail=detail, member=member, hint=hint)
    return error_of("BUSY" if code == ERROR.SESSIONS_FULL else "TOKEN_LOST", detail=detail, member=member)


def _exceptions() -> ModuleType:
    try:
        from yubihsm import exceptions
    except ImportError as error:
        hint = f"Install it: {install('yubihsm')}"
        raise error_of("MODULE_MISSING", detail="python-yubihsm is not installed", hint=hint) from error
    return exceptions


def _connected(url: str) -> YubiHsm:
    from yubihsm.backends import get_backend
    from yubihsm.backends.http import HttpBackend
    from yubihsm.core import YubiHsm

    web = url.startswith(("http://", "https://"))
    return YubiHsm(HttpBackend(url, TIMEOUT_SECONDS) if web else get_backend(url))


def _logged_in(hsm: YubiHsm, source: LogSource) -> AuthSession:
    password = source.password.resolve()
    try:
        keys = hashlib.pbkdf2_hmac("sha256", password, _SALT, _ITERATIONS, 2 * _KEY_BYTES)
    finally:
        password[:] = bytes(len(password))
    return hsm.create_session(source.auth_key_id, keys[:_KEY_BYTES], keys[_KEY_BYTES:])
