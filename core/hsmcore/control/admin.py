"""The control plane's blocking half: one token, administered from one thread."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Final, Self

from pkcs11 import TokenFlag
from pkcs11.exceptions import PKCS11Error
from pkcs11.types import Session, Token

from hsmcore.control import backup, keys, sealed
from hsmcore.control.adopt import AdoptedLibrary, ModuleHolder, adopt, hold_module
from hsmcore.control.cryptoki import Cryptoki
from hsmcore.control.curves import Algorithm
from hsmcore.control.faults import refused_before, translated
from hsmcore.control.locked import TransportKey
from hsmcore.control.quirks import KeyForm, quirks_for
from hsmcore.control.records import Deactivation, KeyRecord, TokenRecord, TokenSelector
from hsmcore.control.tokens import list_tokens, none_or_several, present
from hsmcore.errors import EngineClosed, HsmError, LoginError, MemberDown, ModuleBusy, error_of

PinSource = Callable[[], bytearray | None]
"""Fetches a PIN, which is wiped after its use; None: do not log in."""

_GENERATE_ATTEMPTS: Final = 4
_GENERATE_PAUSE: Final = 0.02  # seconds, more with each attempt
_LOG_IN_HINT: Final = "Start the signing engine first, or give the control plane a PIN."


class TokenAdmin:
    """Sessions and keys of one token. Not thread-safe; every method may block as long as the module does.

    With a `pin`, the process is logged in when it is not yet, through a session that stays open until close(). Without
    one, somebody else (the signing engine) has to be logged in. No session of python-pkcs11's ever gets the PIN:
    closing such a session logs the whole process out and takes the engine's keys away. A PIN that was refused is not
    tried again.

    The engine may initialize the module anew while no call is inside. Whatever this class had open is gone then, and
    forgotten rather than closed; it logs in again if it has to and can.
    """

    def __init__(
        self,
        module_path: str,
        token: TokenSelector,
        *,
        quirks: str | None = None,
        pin: PinSource | None = None,
        module_args: str | None = None,
        member: str | None = None,
        mechanisms: Mapping[str, int] | None = None,
    ) -> None:
        self.member = member
        self._mechanisms = mechanisms
        self.forms: dict[str, KeyForm] = {}
        """How the token makes keys, by algorithm, as far as that was tried."""
        self._path, self._args = module_path, module_args
        self._selector = token
        self._quirks_name = quirks
        self._quirks = quirks_for(quirks, mechanisms=mechanisms)
        self._pin = pin
        self._holder: ModuleHolder | None = None
        self._library: AdoptedLibrary | None = None
        self._login: Session | None = None
        self._refused: LoginError | None = None
        self._transport: TransportKey | None = None
        self._inside = 0  # series of calls that are nested in one another
        self._initialization = -1  # the module's, when it was last entered

    def open(self) -> Self:
        """Hold the module, find the token, log in if that is needed. Doing it twice is no error."""
        if self._holder is None:
            self._holder = hold_module(self._path, self._args)
            try:
                with self._series("opening the token"):
                    library = self._library = adopt(self._path)
                    described = f"{library.manufacturer_id} {library.library_description}"
                    self._quirks = quirks_for(self._quirks_name, described, self._mechanisms)
                    self._log_in(self.token())
            except BaseException:
                self.close()
                raise
        return self

    def close(self) -> None:
        """Close the session that logged in, then let the module go. Doing it twice is no error."""
        holder = self._holder
        self._wipe_transport()
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
        library = self._library
        if library is None:
            raise EngineClosed("the token is closed", member=self.member)
        tokens = dict(present(library, self._selector.slot_id))
        found = self._selector.choose(list(tokens))
        if len(found) != 1:
            raise none_or_several(found, list(tokens), self._selector, self.member)
        return tokens[found[0]]

    @contextmanager
    def session(self, what: str) -> Iterator[Session]:
        """A session for one operation, logged in because the process is; `what` goes into errors."""
        self.open()
        with self._series(what):
            token = self.token()
            with token.open(rw=True, attribute_mapper=keys.Attributes()) as session:
                if token.flags & TokenFlag.LOGIN_REQUIRED and not self._logged_in(session):
                    self._log_in(token)
                    # Without a login a token shows no private key: that would look like an empty token.
                    if not self._logged_in(session):
                        hint = _LOG_IN_HINT if self._pin is None else None
                        raise error_of("NOT_LOGGED_IN", detail=what, member=self.member, hint=hint)
                yield session

    @contextmanager
    def _series(self, what: str) -> Iterator[None]:
        """A series of calls during which the module is not initialized anew; `what` goes into errors."""
        holder = self._holder
        if holder is None:
            raise EngineClosed("the token is closed", member=self.member)
        if self._inside == 0:
            initialization = holder.enter()
            if initialization != self._initialization:
                self._login = None  # not closed: its handle means nothing now, or another's session
                self._initialization = initialization
        self._inside += 1
        try:
            with translated(what, self.member):
                yield
        finally:
            self._inside -= 1
            if self._inside == 0:
                holder.exit()

    def list_tokens(self) -> list[TokenRecord]:
        return list_tokens(self._path, self._args)

    def list_keys(self) -> list[KeyRecord]:
        with self.session("listing keys") as session:
            return keys.list_keys(session)

    def generate_key(
        self, algorithm: Algorithm, label: str, key_id: bytes | None = None, *, extractable: bool = False
    ) -> KeyRecord:
        attempt = 1
        while True:
            try:
                with self.session(f"generating an {algorithm} key") as session:
                    if key_id is None:  # chosen here, so that what a failure leaves can be found
                        key_id = keys.new_id(session, self._quirks)
                    form = self.forms.get(algorithm)
                    record, self.forms[algorithm] = keys.generate_key(
                        session, self._quirks, algorithm, label, key_id, extractable, form
                    )
                    return record
            except (MemberDown, ModuleBusy):
                # SoftHSM fails now and then when its token is searched while an object is being made; others are
                # throttled.
                if attempt == _GENERATE_ATTEMPTS:
                    raise
            self._discard(key_id)
            time.sleep(_GENERATE_PAUSE * attempt)
            attempt += 1

    def _discard(self, key_id: bytes | None) -> None:
        """Erase what a failed generation may have left of a key with this id."""
        if key_id is not None:
            with suppress(HsmError), self.session("erasing half a key") as session:
                keys.destroy_key(session, key_id.hex())

    def deactivate(self, key_id: str) -> Deactivation:
        with self.session(f"deactivating key {key_id}") as session:
            return keys.deactivate_key(session, key_id)

    def destroy(self, key_id: str) -> None:
        with self.session(f"destroying key {key_id}") as session:
            keys.destroy_key(session, key_id)

    def export_wrapped(self, key_id: str, wrapping_label: str = backup.WRAPPING_KEY_LABEL) -> bytes:
        with self.session(f"exporting key {key_id}") as session:
            return backup.export_wrapped(session, self._quirks, key_id, wrapping_label)

    def import_wrapped(self, blob: bytes, key_id: str | None = None, label: str | None = None) -> KeyRecord:
        with self.session("importing a key") as session:
            return backup.import_wrapped(session, self._quirks, blob, key_id, label)

    def sweep(self, key_id: str, *, nameless: bool) -> int:
        with self.session(f"clearing up after key {key_id}") as session:
            return keys.sweep(session, key_id, nameless=nameless)

    def new_key_id(self) -> bytes:
        with self.session("choosing a key id") as session:
            return keys.new_id(session, self._quirks)

    def prove(self, key_id: str, message: bytes) -> bytes:
        with self.session(f"trying key {key_id}") as session:
            return keys.prove(session, key_id, message)

    def why_no_backup(self, algorithm: str) -> str | None:
        with self.session("asking how keys are wrapped") as session:
            version = self._library.library_version if self._library is not None else (0, 0)
            return backup.why_not(session, self._quirks, (version[0], version[1]), algorithm)

    def generate_sealed(self, label: str, key_id: bytes, seal_to: Sequence[bytes]) -> tuple[KeyRecord, list[bytes]]:
        with self.session("making a sealed key") as session:
            made = sealed.generate(session, Cryptoki(self._path), self._quirks, label, key_id, seal_to)
            return keys.describe_key(*keys.find_key(session, key_id.hex())), made

    def import_sealed(self, label: str, key_id: bytes, blob: bytes, recovery: bytearray | TransportKey) -> KeyRecord:
        with self.session("importing a sealed key") as session:
            sealed.restore(session, Cryptoki(self._path), self._quirks, label, key_id, blob, recovery)
            return keys.describe_key(*keys.find_key(session, key_id.hex()))

    def transport_key(self) -> bytes:
        self._wipe_transport()
        self._transport = TransportKey(self.member or "token")
        return self._transport.public_key

    def import_transported(self, label: str, key_id: bytes, blob: bytes) -> KeyRecord:
        if self._transport is None:
            raise EngineClosed("the transport key is gone", member=self.member)
        try:
            return self.import_sealed(label, key_id, blob, self._transport)
        finally:
            self._wipe_transport()

    def _wipe_transport(self) -> None:
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.wipe()

    def _log_in(self, token: Token) -> None:
        if self._pin is None:
            return
        if self._refused is not None:
            raise refused_before(self._refused)
        session = token.open(rw=True)
        try:
            logged_in_here = self._present_pin(token, session, self._pin)
        except BaseException:
            with suppress(PKCS11Error):
                session.close()
            raise
        if logged_in_here:
            self._login = session  # closing the last session would log out
        else:
            session.close()

    def _present_pin(self, token: Token, session: Session, source: PinSource) -> bool:
        if self._logged_in(session):
            return False
        if token.flags & (TokenFlag.USER_PIN_LOCKED | TokenFlag.USER_PIN_FINAL_TRY):
            raise error_of("PIN_LOCKED", member=self.member, detail="it was not tried")
        pin = source()
        if pin is None:
            return False
        try:
            with translated("logging in", self.member):
                Cryptoki(self._path).login(_handle(session), pin)
        except LoginError as error:
            self._refused = error
            raise
        finally:
            pin[:] = bytes(len(pin))
        return True

    def _logged_in(self, session: Session) -> bool:
        return Cryptoki(self._path).logged_in(_handle(session))


def _handle(session: Session) -> int:
    handle: int = session.handle  # type: ignore[attr-defined]  # the implementation has it, its types don't
    return handle
