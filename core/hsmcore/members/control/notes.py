"""The note of a key on its token: a data object of hsmcore's, found by a label that follows from the public key. What
it says, and who believes it, is in recovery/token_notes.py."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from ctypes import c_ulong
from dataclasses import dataclass
from typing import ClassVar, Final

from pkcs11 import Attribute, ObjectClass
from pkcs11.types import Session

from hsmcore.members.control.admin import TokenAdmin
from hsmcore.members.control.calls import CkrError, handle_of
from hsmcore.members.control.verb import Verb

MOST_BYTES: Final = 1900
"""The longest note: a YubiHSM's opaque object has little more."""
_MOST: Final = 16
"""Notes of one key that are read: there is one, unless a process was killed while it replaced it."""
_TRUE: Final = b"\1"


@dataclass(frozen=True, slots=True, repr=False)
class ReadNotes(Verb[list[bytes]]):
    """The notes of some keys. Empty for a module that keeps none."""

    repeatable: ClassVar[bool] = True
    public_keys: list[bytes]

    def run(self, admin: TokenAdmin) -> list[bytes]:
        with admin.session("reading notes") as session:
            calls, handle = admin.calls, handle_of(session)
            items = [item for key in self.public_keys for item in _notes(admin, session, key)]
            return [calls.attribute(handle, item, Attribute.VALUE, MOST_BYTES) or b"" for item in items]


@dataclass(frozen=True, slots=True, repr=False)
class WriteNote(Verb[None]):
    """Put a note of a key in the place of those that there are. Killed in between, it leaves both."""

    public_key: bytes
    text: bytes

    def run(self, admin: TokenAdmin) -> None:
        template: dict[int, bytes | tuple[int, int]] = {
            Attribute.CLASS: bytes(c_ulong(ObjectClass.DATA)),
            Attribute.TOKEN: _TRUE,
            Attribute.PRIVATE: _TRUE,
            Attribute.LABEL: label_of(self.public_key),
            Attribute.APPLICATION: b"hsmcore",
            Attribute.VALUE: self.text,
        }
        # Of a template that it does not know, yubihsm_pkcs11 hangs: from then on, in every call.
        for name in (Attribute.PRIVATE, Attribute.APPLICATION) if not admin.quirks.usage_in_template else ():
            del template[name]
        if not admin.quirks.names_private:
            template.pop(Attribute.PRIVATE, None)
        with admin.session("writing a note") as session:
            former = _notes(admin, session, self.public_key)
            admin.calls.create_object(handle_of(session), template)
            for item in former:
                admin.calls.destroy(handle_of(session), item)


def forget(admin: TokenAdmin, session: Session, public_key: bytes) -> None:
    """Remove the notes of a key that is gone, as far as the token lets us."""
    with suppress(CkrError):
        for item in _notes(admin, session, public_key):
            admin.calls.destroy(handle_of(session), item)


def label_of(public_key: bytes) -> bytes:
    """Return the CKA_LABEL of a key's note."""
    return f"hsmcore state {hashlib.sha256(public_key).hexdigest()[:16]}".encode()


def _notes(admin: TokenAdmin, session: Session, public_key: bytes) -> list[int]:
    if not admin.quirks.keeps_notes:
        return []
    return admin.calls.find(handle_of(session), ObjectClass.DATA, label_of(public_key))[:_MOST]
