"""A token behind a PKCS#11 module, with its engine and its control plane."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from hsmcore._native import Engine, wipe
from hsmcore.base.keyring import KeyVersion
from hsmcore.base.log import get_logger, tell
from hsmcore.base.waiting import CallThread, shielded
from hsmcore.config import Pkcs11Settings
from hsmcore.config.pkcs11 import MAX_SESSIONS
from hsmcore.errors import HsmError, KeyNotFound, LoginError, ModuleMissing, PinIncorrect, error_of
from hsmcore.members.base import VERIFY_EVERY, MemberSpec
from hsmcore.members.control import ControlPlane
from hsmcore.members.control.adopt import require_safe
from hsmcore.members.control.advice import advise
from hsmcore.members.control.nearby import near_keys
from hsmcore.members.control.plane import CLOSE_SECONDS, find_token
from hsmcore.members.control.process import child_environment, lines
from hsmcore.members.control.quirks import quirks_for
from hsmcore.members.control.records import TokenAccess, TokenRecord
from hsmcore.members.control.refused import RefusedLogins
from hsmcore.members.supervisor import HOST_PROGRAM, LOGIN_AWS_SECONDS, LOGIN_SECONDS, Supervisor

if TYPE_CHECKING:
    from hsmcore.audit import AuditLog

T = TypeVar("T")

KILL_AGAIN_SECONDS = 0.05
HUNG_SECONDS = 0.3
"""In place of CLOSE_SECONDS, where a call has been inside the module for longer than `startTimeoutMs`."""
LEAST_PATIENCE_MS = 500
"""`hangAfterMs` of a module whose settings do not give one."""
_MARK_KEY: Final = secrets.token_bytes(32)


class Pkcs11Member:
    """One token behind a PKCS#11 module. Belongs to the event loop that starts it.

    Calls that may block in the module run on the member's own thread.
    """

    def __init__(self, spec: MemberSpec[Pkcs11Settings]) -> None:
        settings, rules = spec.settings, spec.rules
        self.name = spec.provider.name
        self.level = spec.level
        self._provider = spec.provider
        self._patience = (settings.hang_after_ms or max(spec.provider.patience_ms, LEAST_PATIENCE_MS)) / 1e3
        self._settings = settings
        self._thread = CallThread(f"hsmcore-{self.name}")
        self.engine = Engine(
            **spec.engine_rules(),
            slots=rules.queue_size,
            # Room to replace every worker once.
            max_workers=min(2 * settings.sessions, MAX_SESSIONS),
            coalesce_seconds=rules.wake_coalesce_micros / 1e6,
            # The text of a host process about a message is not recorded.
            digests=rules.audit_log_file is not None and settings.isolation != "process",
        )
        self._known: dict[str, KeyVersion] = {}
        self._audit: AuditLog | None = None
        self._rules = rules
        self._slot_id = -1 if settings.slot_id is None else settings.slot_id
        self._isolated = settings.isolation == "process"
        self._hidden_variables = spec.hidden_variables
        self.supervisor: Supervisor | None = None
        self._stopping: asyncio.Task[None] | None = None
        self._released = False
        self._token: TokenRecord | None = None
        self._holds_few = False
        self._logins = RefusedLogins(TokenAccess.of(settings, self.name, str(rules.refused_logins)), self._find_token)
        secret = settings.pin_secret
        self.login_seconds = LOGIN_AWS_SECONDS if secret is not None and secret.asks_aws else LOGIN_SECONDS
        self.refused_pin: LoginError | None = None
        """The error of the last login, if it was refused."""
        self._remembered = False
        self._presented: bytes | None = None
        """The mark of the PIN that the engine has; see `_mark`."""
        self._inside_since: float | None = None
        """When the member's thread entered the module for what is limited by `startTimeoutMs`."""
        # An isolated module is not loaded into this process for the control plane either.
        self.control = self.token = ControlPlane.for_settings(
            settings,
            member=self.name,
            isolated=self._isolated,
            hidden=spec.hidden_variables,
            refused=rules.refused_logins,
        )

    def require_ready(self) -> None:
        """Raise ModuleMissing, with the installation hint, if the module's file does not exist, ModuleInvalid if others
        may write it."""
        path = self._settings.module_path
        if not Path(path).is_file():
            raise ModuleMissing(
                f"member {self.name!r}: the PKCS#11 module {path} does not exist",
                member=self.name,
                hint=self._provider.install_hint,
            )
        require_safe(path, self.name)

    async def start(self) -> KeyVersion:
        """Load the module, log in once, start the workers, find and prove the configured key. After a failure or a
        cancellation, call `stop`. Raises HsmError."""
        await self._in_time(self._start_engine)
        key = await self.load_configured_key()
        sessions = self.engine.stats()["workers"]  # the module's quirks may have lowered it
        self.supervisor = Supervisor(self, sessions, self._patience)
        self.supervisor.begin()
        hardening = self.engine.hardening
        if hardening is not None and hardening[0]:
            get_logger().warning("host process less isolated than it could be", member=self.name, lacking=hardening[0])
        token = await self.run(self.engine.token)
        self._token = TokenRecord(
            token["slot_id"], token["label"], token["serial"], token["manufacturer"], token["model"], ""
        )
        self._holds_few = quirks_for(token["quirks"]).holds_few
        get_logger().info(
            "member started",
            member=self.name,
            level=self.level,
            token=token["label"],
            library=token["library"],
            quirks=token["quirks"],
            sessions=sessions,
            key=key.id,
            algorithm=key.algorithm,
        )
        return key

    def _start_engine(self) -> None:
        settings = self._settings
        label, serial = settings.token_label, settings.token_serial
        if settings.token_manufacturer is not None or settings.token_model is not None:
            # The engine does not select by these; another token with the label must not get the PIN.
            found = self._token = find_token(settings, self.name, self._hidden_variables)
            label, serial = found.label or None, found.serial or None
        environment: list[bytes] | None = None
        if self._isolated:
            environment = lines(child_environment(self._hidden_variables, settings.module_variables))
        pin = settings.resolve_pin()
        try:
            with self._logins.attempt(pin), self._inside():
                self._presented = _mark(pin)
                self.engine.start(
                    module_path=settings.module_path,
                    module_args=settings.initialize_args,
                    quirks=settings.quirks,
                    token_label=label,
                    token_serial=serial,
                    slot_id=self._slot_id,
                    pin=pin,
                    workers=settings.sessions,
                    spin_seconds=self._rules.spin_micros / 1e6,
                    patience_seconds=(settings.hang_after_ms or 0) / 1e3,
                    verify_every=VERIFY_EVERY[settings.verify_signatures],
                    host_program=str(HOST_PROGRAM) if self._isolated else None,
                    environment=environment,
                    memory_limit=settings.host_memory_limit_bytes or 0,
                    host_timeout=settings.start_timeout_ms / 1e3,
                )
        except HsmError as error:
            self._advise(error)
            raise
        finally:
            if pin is not None:
                wipe(pin)

    def restart_host(self) -> str | None:
        """As Engine.restart_host, with the PIN that the configuration gives by now: a PIN that was changed on the token
        and at its place since the start does not count as a repetition. AWS is asked only after a refusal: it may be
        slow or away, and the host signs again without it. Blocks."""
        require_safe(self._settings.module_path, self.name)
        secret = self._settings.pin_secret
        pin = None if secret is None or (secret.asks_aws and self.refused_pin is None) else self._pin_by_now()
        try:
            with self._logins.attempt(pin):
                if pin is not None:
                    self._presented = _mark(pin)
                missing = self.engine.restart_host(pin)
        except HsmError as error:
            if isinstance(error, LoginError):
                self._advise(error)
                self.refused_pin = error
                self._remembered = self._remember_last() if pin is None else self._logins.holds()
            raise
        finally:
            if pin is not None:
                wipe(pin)
        self.refused_pin = None
        return missing

    def may_log_in(self) -> bool:
        """After a refused login: whether another one may be tried, because the PIN's place has another one by now, or
        an operator has had the refusal forgotten. Blocks."""
        with suppress(HsmError):
            pin = self._settings.resolve_pin()
            if pin is not None:
                other = _mark(pin) != self._presented
                wipe(pin)
                return other or (self._remembered and not self._logins.holds())
        return False

    def _remember_last(self) -> bool:
        """Remember the refusal of the PIN that the host process had, if its place has it still: nothing else of this
        process knows it. Returns whether it is remembered."""
        if not isinstance(self.refused_pin, PinIncorrect) or (pin := self._pin_by_now()) is None:
            return False
        try:
            if _mark(pin) == self._presented:
                self._logins.remember(pin)
        finally:
            wipe(pin)
        return self._logins.holds()

    def _pin_by_now(self) -> bytearray | None:
        """None: it cannot be had. The host process has the last one."""
        try:
            return self._settings.resolve_pin()
        except HsmError as error:
            tell("warning", "the PIN cannot be read again", member=self.name, error=str(error))
            return None

    def _find_token(self) -> TokenRecord:
        return self._token or find_token(self._settings, self.name, self._hidden_variables)

    def _advise(self, error: HsmError) -> None:
        settings = self._settings
        if isinstance(error, ModuleMissing):
            error.hint = self._provider.install_hint
        elif isinstance(error, PinIncorrect) and settings.pin_secret is not None:
            if error.ckr is None:
                return  # nothing was sent, and it says why
            error.hint = quirks_for(settings.quirks).wrong_pin_hint(settings.pin_secret.describe())
        else:
            advise(error, settings.module_path, settings.initialize_args)

    async def load_configured_key(self) -> KeyVersion:
        """Find the key that the configuration names."""
        settings = self._settings
        handle = settings.key_handle_number()
        try:
            return await self._add_key(
                label=settings.key_label,
                id=settings.key_id_bytes,
                handle=-1 if handle is None else handle,
                algorithm=settings.algorithm,
                public_key=settings.public_key_bytes,
            )
        except KeyNotFound as error:
            error.hint = await self._near_keys() or error.hint
            raise

    async def _near_keys(self) -> str:
        """Return a hint that names similar keys; "" if listing keys needs another login."""
        if self._isolated:
            return ""
        try:
            present = [(record.label, record.id) for record in await self.control.list_keys()]
        except HsmError:
            return ""  # the original error is the better message
        return near_keys(self._settings.key_label, self._settings.key_id, present)

    async def load_key(self, key_id: bytes) -> KeyVersion:
        """Find another key of the token by its CKA_ID. A key that is loaded keeps its index."""
        known = self._known.get(key_id.hex())
        if known is not None and self.engine.signs_with(known.index):
            return known
        if self._holds_few:
            await self.control.rest()
        return await self._add_key(id=key_id)

    async def _add_key(self, **selector: Any) -> KeyVersion:
        version = KeyVersion.of_engine(await self._in_time(lambda: self._find_key(**selector)))
        self._known = {id_: known for id_, known in self._known.items() if self.engine.signs_with(known.index)}
        self._known[version.id] = version
        self._name_in_records(version)
        return version

    def _find_key(self, **selector: Any) -> dict[str, Any]:
        with self._inside():
            return self.engine.add_key(**selector)

    def record_in(self, audit: AuditLog) -> None:
        """As Member.record_in: the native engine writes the records."""
        journal = audit.journal
        if journal is not None:
            self._audit = audit
            self.engine.record_in(journal)
            for version in self._known.values():
                self._name_in_records(version)

    def _name_in_records(self, version: KeyVersion) -> None:
        if self._audit is not None:
            self.engine.set_tail(version.index, self._audit.tail(version, self.name, self.level))

    async def stop(self) -> None:
        """Answer every caller, stop the workers, release the token and the module. Idempotent: all calls wait for one
        stop, which their cancellation does not end; called again after an error, it releases the rest."""
        task = self._stopping
        if task is None or (task.done() and (task.cancelled() or task.exception() is not None)):
            task = self._stopping = asyncio.get_running_loop().create_task(self._stop())
        await shielded(task)

    async def _stop(self) -> None:
        self.engine.refuse()
        async with AsyncExitStack() as rest:  # from the last line to the first, whatever one of them raises
            # At once: a module that hangs may do so in both.
            control = asyncio.ensure_future(self.control.close())
            rest.push_async_callback(lambda: control)
            rest.push_async_callback(self._release)
            if self.supervisor is not None:
                rest.push_async_callback(self.supervisor.end)

    async def _release(self) -> None:
        if self._released:
            return
        left = await self._stop_engine()
        self._released = True
        self.engine.detach()
        self.engine.release()
        self._thread.end()
        if left:
            get_logger().error(
                "workers are still inside the module and were left behind", member=self.name, workers=left
            )

    async def _stop_engine(self) -> int:
        """Stop the workers within CLOSE_SECONDS, even if a call hangs in the member's thread. Returns how many threads
        are left inside the module; they free what they use."""
        now, since = time.monotonic(), self._inside_since
        hangs = since is not None and now - since >= self._settings.start_timeout_ms / 1e3
        patience = HUNG_SECONDS if hangs else CLOSE_SECONDS
        until = now + patience
        idle = asyncio.ensure_future(self.run(lambda: None))
        await asyncio.wait([idle], timeout=patience / 2)
        while self._isolated and not idle.done():  # again and again: a start may not have come to its process yet
            self.engine.kill_host()  # which ends the call
            await asyncio.wait([idle], timeout=KILL_AGAIN_SECONDS)
        if not idle.done():
            idle.cancel()
            self._thread.leave()
        return await self.run(lambda: self.engine.stop(max(until - time.monotonic(), 0.0)))

    async def run(self, work: Callable[[], T]) -> T:
        """Make a blocking call in the member's thread."""
        return await self._thread.run(work)

    async def _in_time(self, work: Callable[[], T]) -> T:
        """As `run`, for `startTimeoutMs` within the module. A call that takes longer is left in it; `stop` leaves the
        thread, too. In a host process the native core sees to that."""
        call = asyncio.ensure_future(self.run(work))
        limit = self._settings.start_timeout_ms / 1e3
        try:
            while not call.done():
                since = self._inside_since
                if self._isolated:
                    await asyncio.wait({call})
                elif since is None:
                    await asyncio.wait({call}, timeout=limit)
                elif (left := since + limit - time.monotonic()) > 0:
                    await asyncio.wait({call}, timeout=left)
                else:
                    detail = f"the module did not return within startTimeoutMs, {self._settings.start_timeout_ms}"
                    raise error_of("TOKEN_LOST", detail=detail, member=self.name)
            return call.result()
        finally:
            call.cancel()

    @contextmanager
    def _inside(self) -> Iterator[None]:
        self._inside_since = time.monotonic()
        try:
            yield
        finally:
            self._inside_since = None


def _mark(pin: bytearray | None) -> bytes | None:
    """Return a keyed hash that distinguishes PINs in this process, and nowhere else."""
    return None if pin is None else hashlib.blake2b(pin, key=_MARK_KEY).digest()
