"""One token of a module in this process: sessions for the verbs (verb.py), and the login. Blocking; one thread."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from time import sleep
from typing import Final, Self

from pkcs11 import TokenFlag
from pkcs11.exceptions import PKCS11Error
from pkcs11.types import Session, Token

from hsmcore._native import Module, Turn
from hsmcore.errors import EngineClosed, HsmError, LoginError, TokenNotFound, error_of
from hsmcore.members.control.adopt import AdoptedLibrary, Attributes, adopt, hold_module
from hsmcore.members.control.calls import Calls, handle_of
from hsmcore.members.control.faults import refused_before, translated
from hsmcore.members.control.locked import TransportKey
from hsmcore.members.control.quirks import quirks_for
from hsmcore.members.control.records import TokenAccess, TokenRecord
from hsmcore.members.control.refused import RefusedLogins, remembers
from hsmcore.members.control.tokens import choose_one, present

PinSource = Callable[[], bytearray | None]
"""Fetches a PIN, which is wiped after its use; None: do not log in."""

PASSING: Final = frozenset({0x005, 0x006})
"""CKR_GENERAL_ERROR and CKR_FUNCTION_FAILED: SoftHSM gives them now and then while another session, or another process,
changes a token's files."""
PAUSES: Final = (0.01, 0.1)
"""Seconds before what met a passing error is tried again: a token's files are written in a few milliseconds."""
_LOG_IN_HINT: Final = "Start the signing engine first, or give the control plane a PIN."


class TokenAdmin:
    """Opens one token and its sessions. Not thread-safe; every method may block as long as the module does.

    With a `pin`, it logs the process in unless it is logged in, through a session that stays open until close().
    Without one, the signing engine has to be logged in. No session of python-pkcs11's gets the PIN: closing such a
    session logs the whole process out and takes the engine's keys away. A PIN that was refused is not tried again.

    The engine may initialize the module again while no call is inside. The sessions of this class are then gone, and
    are forgotten rather than closed; it logs in again if that is needed and it has a PIN.
    """

    def __init__(self, access: TokenAccess, *, pin: PinSource | None = None) -> None:
        self._access = access
        self.member = access.member
        self.quirks = quirks_for(access.quirks, mechanisms=access.mechanisms)
        self._pin = pin
        self._holder: Module | None = None
        self._library: AdoptedLibrary | None = None
        self._login: Session | None = None
        self._refused: LoginError | None = None
        self.transport: TransportKey | None = None
        self.logins = 0
        """The number of PINs that were presented."""
        self._inside = 0  # series of calls that are nested in one another
        self._initialization = -1  # the module's, when it was last entered

    def open(self) -> Self:
        """Hold the module, find the token, log in if that is needed. Idempotent. As the engine, it looks again for a
        token that is not there, and after a passing error: the module is initialized again if this is its only
        holder."""
        for pause in PAUSES:
            if self._holder is not None:
                return self
            try:
                self._open()
            except HsmError as error:
                passing = isinstance(error, TokenNotFound) or error.ckr in PASSING
                if self.logins or not passing:  # a PIN is presented at most once
                    raise
                sleep(pause)
        if self._holder is None:
            self._open()
        return self

    def _open(self) -> None:
        with Turn(self._access.module_path, self._access.quirks):
            self._holder = hold_module(self._access.module_path, self._access.module_args)
            try:
                with self._series("opening the token"):
                    library = self._library = adopt(self._access.module_path)
                    described = f"{library.manufacturer_id} {library.library_description}"
                    self.quirks = quirks_for(self._access.quirks, described, self._access.mechanisms)
                    self._log_in(*self._found())
            except BaseException:
                self.close()
                raise

    def close(self) -> None:
        """Close the session that logged in, then let the module go. Idempotent."""
        holder = self._holder
        self.wipe_transport()
        if holder is None:
            return
        try:
            with self._series("closing the session"):
                self._library = None
                login, self._login = self._login, None
                if login is not None:
                    login.close()
        finally:
            self._holder = None
            holder.close()

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def token(self) -> Token:
        """The one token that the selector names."""
        return self._found()[1]

    def _found(self) -> tuple[TokenRecord, Token]:
        library = self._library
        if library is None:
            raise EngineClosed("the token is closed", member=self.member)
        with Turn(self._access.module_path, self.quirks.name):
            tokens = dict(present(library, self._access.token.slot_id))
        record = choose_one(self._access, list(tokens))
        return record, tokens[record]

    @contextmanager
    def session(self, what: str) -> Iterator[Session]:
        """A read-write session for one operation; the login is the process's. `what` goes into errors."""
        self.open()
        with self._series(what):
            record, token = self._found()
            with token.open(rw=True, attribute_mapper=Attributes()) as session:
                if token.flags & TokenFlag.LOGIN_REQUIRED and not self._logged_in(session):
                    self._log_in(record, token)
                    # Without a login a token shows no private key: that would look like an empty token.
                    if not self._logged_in(session):
                        hint = _LOG_IN_HINT if self._pin is None else None
                        raise error_of("NOT_LOGGED_IN", detail=what, member=self.member, hint=hint)
                yield session

    @contextmanager
    def _series(self, what: str) -> Iterator[None]:
        """A series of calls during which the module is not initialized again; `what` goes into errors."""
        holder = self._holder
        if holder is None:
            raise EngineClosed("the token is closed", member=self.member)
        if self._inside == 0:
            initialization = holder.enter()
            if initialization != self._initialization:
                self._login = None  # not closed: its handle is invalid now, or that of another session
                self._initialization = initialization
        self._inside += 1
        try:
            with translated(what, self.member):
                yield
        finally:
            self._inside -= 1
            if self._inside == 0:
                holder.exit()

    @property
    def library_version(self) -> tuple[int, int]:
        """CK_INFO.libraryVersion; (0, 0) while the token is closed."""
        major, minor = (0, 0) if self._library is None else self._library.library_version
        return major, minor

    @property
    def calls(self) -> Calls:
        return Calls(self._access.module_path, self.quirks.name)

    def make_transport_key(self) -> TransportKey:
        """A new transport key in the place of the last one."""
        self.wipe_transport()
        self.transport = TransportKey(self.member or "token")
        return self.transport

    def wipe_transport(self) -> None:
        transport, self.transport = self.transport, None
        if transport is not None:
            transport.wipe()

    def _log_in(self, record: TokenRecord, token: Token) -> None:
        if self._pin is None:
            return
        if self._refused is not None:
            raise refused_before(self._refused)
        session = token.open(rw=True)
        try:
            logged_in_here = self._present_pin(record, token, session, self._pin)
        except BaseException:
            with suppress(PKCS11Error):
                session.close()
            raise
        if logged_in_here:
            self._login = session  # closing the last session would log out
        else:
            session.close()

    def _present_pin(self, record: TokenRecord, token: Token, session: Session, source: PinSource) -> bool:
        if self._logged_in(session):
            return False
        if token.flags & (TokenFlag.USER_PIN_LOCKED | TokenFlag.USER_PIN_FINAL_TRY):
            raise error_of("PIN_LOCKED", member=self.member, detail="it was not tried")
        pin = source()
        if pin is None:
            return False
        try:
            with RefusedLogins(self._access, lambda: record).attempt(pin):
                self.logins += 1
                with translated("logging in", self.member):
                    return self.calls.login(handle_of(session), pin)
        except LoginError as error:
            if not remembers(self._access, error):
                self._refused = error
            raise
        finally:
            pin[:] = bytes(len(pin))

    def _logged_in(self, session: Session) -> bool:
        return self.calls.logged_in(handle_of(session))
