"""Keys on one token: list, generate, deactivate, try, destroy.

A search names the class and the id or label only: some modules find nothing, or fail, for a type or a use.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from pkcs11 import Attribute, KeyType, Mechanism, MechanismFlag, ObjectClass
from pkcs11.constants import DEFAULT
from pkcs11.exceptions import ObjectHandleInvalid, PKCS11Error
from pkcs11.types import Object, Session, SignMixin

from hsmcore.errors import HsmError, KeyAmbiguous, MemberDown, ModuleBusy
from hsmcore.members.control.admin import TokenAdmin
from hsmcore.members.control.curves import P256_OID, SECP256K1_OID, Algorithm, algorithm_of_params, decode_point, low_s
from hsmcore.members.control.faults import ControlError, ckr_of, no_such_key
from hsmcore.members.control.quirks import KeyForm, Quirks
from hsmcore.members.control.records import Deactivation, KeyRecord
from hsmcore.members.control.verb import Verb

_SHOWN: Final = [
    Attribute.ID,
    Attribute.LABEL,
    Attribute.KEY_TYPE,
    Attribute.EC_PARAMS,
    Attribute.EC_POINT,
    Attribute.SIGN,
    Attribute.SENSITIVE,
    Attribute.EXTRACTABLE,
]
_UNUSED_PUBLIC: Final = (Attribute.ENCRYPT, Attribute.WRAP)
_UNUSED_PRIVATE: Final = (Attribute.DECRYPT, Attribute.UNWRAP, Attribute.DERIVE)
_GENERATE_ATTEMPTS: Final = 4
_GENERATE_PAUSE: Final = 0.02  # seconds, more with each attempt
# Return values for a mechanism or EC parameters that a module does not know. Some modules use the general codes.
_OTHER_FORM: Final = frozenset(
    {
        0x005,  # GENERAL_ERROR
        0x006,  # FUNCTION_FAILED
        0x007,  # ARGUMENTS_BAD
        0x013,  # ATTRIBUTE_VALUE_INVALID
        0x063,  # KEY_TYPE_INCONSISTENT
        0x070,  # MECHANISM_INVALID
        0x071,  # MECHANISM_PARAM_INVALID
        0x0D1,  # TEMPLATE_INCONSISTENT
        0x130,  # DOMAIN_PARAMS_INVALID
        0x140,  # CURVE_NOT_SUPPORTED
    }
)


@dataclass(frozen=True, slots=True, repr=False)
class ListKeys(Verb[list[KeyRecord]]):
    """Every private key on the token, by label, then id."""

    repeatable: ClassVar[bool] = True

    def run(self, admin: TokenAdmin) -> list[KeyRecord]:
        halves: dict[bytes, Object] = {}
        records = []
        with admin.session("listing keys") as session:
            for public in search(session, ObjectClass.PUBLIC_KEY):
                halves.setdefault(_shown(public).get(Attribute.ID, b""), public)
            for private in search(session, ObjectClass.PRIVATE_KEY):
                shown = _shown(private)
                if shown:  # else it was destroyed since the search
                    records.append(_record(shown, _shown(halves.get(shown.get(Attribute.ID, b"")))))
        return sorted(records, key=lambda record: (record.label, record.id))


def search(session: Session, kind: ObjectClass, key_id: bytes | None = None) -> list[Object]:
    """The objects of a class, those with a CKA_ID if it is given. An unfinished search would keep the session busy."""
    template: dict[Attribute, Any] = {Attribute.CLASS: kind}
    return list(session.get_objects(template if key_id is None else template | {Attribute.ID: key_id}))


def find_key(session: Session, key_id: str) -> tuple[Object, list[Object]]:
    """The private key with a CKA_ID and its public halves. Raises KeyNotFound and KeyAmbiguous."""
    wanted = parse_key_id(key_id)
    private = search(session, ObjectClass.PRIVATE_KEY, wanted)
    if not private:
        raise no_such_key(key_id)
    if len(private) > 1:
        raise KeyAmbiguous(f"{len(private)} private keys have the id {key_id!r}")
    return private[0], search(session, ObjectClass.PUBLIC_KEY, wanted)


def require_free(session: Session, key_id: bytes) -> None:
    """Raise ControlError if a private key has this CKA_ID."""
    if search(session, ObjectClass.PRIVATE_KEY, key_id):
        raise ControlError(f"a private key with the id {key_id.hex()} is on the token already")


def describe_key(private: Object, public: list[Object]) -> KeyRecord:
    return _record(_shown(private), _shown(public[0] if public else None))


@dataclass(frozen=True, slots=True, repr=False)
class GenerateKey(Verb[tuple[KeyRecord, KeyForm]]):
    """Make a key pair that can only sign. Its CKA_ID is random unless given. `extractable` lets the HSM wrap the key
    for a backup; it cannot be changed afterwards. The result is the key and the form that the token accepted. With
    `form`, no other one is tried."""

    algorithm: Algorithm
    label: str
    key_id: bytes | None = None
    extractable: bool = False
    form: KeyForm | None = None

    def run(self, admin: TokenAdmin) -> tuple[KeyRecord, KeyForm]:
        key_id = self.key_id
        attempt = 1
        while True:
            try:
                with admin.session(f"generating an {self.algorithm} key") as session:
                    if key_id is None:  # chosen here, so that what a failure leaves can be found
                        key_id = new_id(session, admin.quirks)
                    return self._generate(session, admin.quirks, key_id)
            except HsmError as error:
                # SoftHSM fails now and then if its token is searched while it makes an object; others are throttled.
                passes = isinstance(error, (MemberDown, ModuleBusy)) or error.ckr in admin.quirks.generating_may_pass
                if not passes or attempt == _GENERATE_ATTEMPTS:
                    raise
            if key_id is not None:
                with suppress(HsmError), admin.session("erasing half a key") as session:
                    _destroy(*find_key(session, key_id.hex()))
            time.sleep(_GENERATE_PAUSE * attempt)
            attempt += 1

    def _generate(self, session: Session, quirks: Quirks, key_id: bytes) -> tuple[KeyRecord, KeyForm]:
        """Try the forms that the quirks know in turn, or only `form`."""
        if len(self.label.encode()) > quirks.label_bytes:
            raise ControlError(f"this token's labels have at most {quirks.label_bytes} bytes: {self.label!r} is longer")
        forms = (self.form,) if self.form is not None else _offered(session, key_forms(quirks, self.algorithm))
        first: PKCS11Error | None = None
        for form in forms:
            try:
                return self._in_form(session, quirks, key_id, form), form
            except PKCS11Error as error:
                if ckr_of(error) not in _OTHER_FORM:
                    raise
                first = first or error
        assert first is not None  # noqa: S101  # for the type checker: there is always a form
        raise first

    def _in_form(self, session: Session, quirks: Quirks, key_id: bytes, form: KeyForm) -> KeyRecord:
        key_type = _key_type(self.algorithm)
        parameters = session.create_domain_parameters(key_type, {Attribute.EC_PARAMS: form.params}, local=True)
        public_template: dict[Attribute, Any] = {Attribute.PRIVATE: False if quirks.names_private else DEFAULT}
        private_template: dict[Attribute, Any] = {
            Attribute.PRIVATE: True,
            Attribute.SENSITIVE: True,
            Attribute.EXTRACTABLE: self.extractable,
        }
        if not quirks.usage_in_template:
            public_template |= dict.fromkeys((*_UNUSED_PUBLIC, Attribute.CLASS), DEFAULT)
            private_template |= dict.fromkeys((*_UNUSED_PRIVATE, Attribute.CLASS), DEFAULT)
        public, private = parameters.generate_keypair(
            id=key_id,
            label=self.label,
            store=True,
            capabilities=MechanismFlag.SIGN | MechanismFlag.VERIFY,
            mechanism=form.mechanism,
            public_template=public_template,
            private_template=private_template,
        )
        record = describe_key(private, [public])
        if record.public_key is None or record.algorithm != self.algorithm:
            _destroy(private, [public])
            text = f"the token made a key whose public half is no {self.algorithm} point; it was destroyed again"
            raise ControlError(text)
        return record


def _offered(session: Session, forms: tuple[KeyForm, ...]) -> tuple[KeyForm, ...]:
    """The forms whose mechanism the token lists; all of them if it lists none."""
    if len(forms) == 1:
        return forms
    listed = {int(mechanism) for mechanism in session.token.slot.get_mechanisms()}
    return tuple(form for form in forms if int(form.mechanism) in listed) or forms


def new_id(session: Session, quirks: Quirks) -> bytes:
    """A random CKA_ID that no private key has. All zeros or all ones may have a meaning: they are left out."""
    while True:
        chosen = secrets.token_bytes(quirks.id_bytes)
        if set(chosen) - {0x00, 0xFF} and not search(session, ObjectClass.PRIVATE_KEY, chosen):
            return chosen


@dataclass(frozen=True, slots=True, repr=False)
class NewKeyId(Verb[bytes]):
    """A CKA_ID that no private key has."""

    def run(self, admin: TokenAdmin) -> bytes:
        with admin.session("choosing a key id") as session:
            return new_id(session, admin.quirks)


@dataclass(frozen=True, slots=True, repr=False)
class Deactivate(Verb[Deactivation]):
    """Take CKA_SIGN away from a key; the result says whether the token enforces that from now on. Idempotent."""

    repeatable: ClassVar[bool] = True
    key_id: str

    def run(self, admin: TokenAdmin) -> Deactivation:
        with admin.session(f"deactivating key {self.key_id}") as session:
            private, _ = find_key(session, self.key_id)
            try:
                private[Attribute.SIGN] = False
                why = "the token ignores a change of CKA_SIGN" if private[Attribute.SIGN] else None
            except PKCS11Error as error:
                why = f"the token refuses to change CKA_SIGN ({type(error).__name__})"
        return Deactivation(self.key_id, why is None, why)


@dataclass(frozen=True, slots=True, repr=False)
class Prove(Verb[bytes]):
    """Sign once outside of the signing engine, to try a key: 64 bytes, Ed25519 of `message` or ECDSA of its SHA-256."""

    repeatable: ClassVar[bool] = True
    key_id: str
    message: bytes

    def run(self, admin: TokenAdmin) -> bytes:
        with admin.session(f"trying key {self.key_id}") as session:
            private, public = find_key(session, self.key_id)
            algorithm = describe_key(private, public).algorithm
            if algorithm is None or not isinstance(private, SignMixin):
                raise ControlError(f"key {self.key_id} is of a kind that hsmcore does not sign with")
            if algorithm == "ed25519":
                return bytes(private.sign(self.message, mechanism=Mechanism.EDDSA))
            digest = hashlib.sha256(self.message).digest()
            return low_s(algorithm, bytes(private.sign(digest, mechanism=Mechanism.ECDSA)))


@dataclass(frozen=True, slots=True, repr=False)
class Destroy(Verb[None]):
    """Erase a key pair for good, the private half first."""

    key_id: str

    def run(self, admin: TokenAdmin) -> None:
        with admin.session(f"destroying key {self.key_id}") as session:
            private, public = find_key(session, self.key_id)
            _destroy(private, public)


@dataclass(frozen=True, slots=True, repr=False)
class Sweep(Verb[int]):
    """Erase what a killed process left of a key: a public half without its private one. With `nameless` also EC keys
    without id, label and curve: SoftHSM leaves one when it is killed while it makes a key. Such a key is of no use, but
    another process may be making one. The result is the number of objects."""

    repeatable: ClassVar[bool] = True
    key_id: str
    nameless: bool = False

    def run(self, admin: TokenAdmin) -> int:
        identity = parse_key_id(self.key_id) if self.key_id else b""
        with admin.session(f"clearing up after key {self.key_id}") as session:
            left = []
            if identity and not search(session, ObjectClass.PRIVATE_KEY, identity):
                left = search(session, ObjectClass.PUBLIC_KEY, identity)
            for kind in (ObjectClass.PRIVATE_KEY, ObjectClass.PUBLIC_KEY) if self.nameless else ():
                left += [half for half in search(session, kind) if _is_half(_shown(half))]
            for half in left:
                half.destroy()
        return len(left)


def _is_half(shown: dict[Attribute, Any]) -> bool:
    named = any(shown.get(name) for name in (Attribute.ID, Attribute.LABEL, Attribute.EC_PARAMS, Attribute.EC_POINT))
    return shown.get(Attribute.KEY_TYPE) in (KeyType.EC, KeyType.EC_EDWARDS) and not named


def parse_key_id(key_id: str) -> bytes:
    try:
        wanted = bytes.fromhex(key_id)
    except ValueError:
        raise ControlError(f"{key_id!r} is no key id", hint="a key id is written in hexadecimal") from None
    if not wanted:
        raise ControlError("a key id must not be empty")
    return wanted


def key_forms(quirks: Quirks, algorithm: Algorithm) -> tuple[KeyForm, ...]:
    """The ways to ask this module for a key pair."""
    if algorithm == "ed25519":
        return quirks.ed25519_forms
    return (KeyForm(Mechanism.EC_KEY_PAIR_GEN, P256_OID if algorithm == "ecdsa-p256" else SECP256K1_OID),)


def _destroy(private: Object, public: list[Object]) -> None:
    for half in (private, *public):
        half.destroy()


def _shown(key: Object | None) -> dict[Attribute, Any]:
    """The attributes that the token gives; empty for an object that is gone."""
    if key is None:
        return {}
    try:
        return key.get_attributes(_SHOWN)
    except ObjectHandleInvalid:
        return {}


def _key_type(algorithm: Algorithm | None) -> KeyType:
    return KeyType.EC_EDWARDS if algorithm == "ed25519" else KeyType.EC


def _record(private: dict[Attribute, Any], public: dict[Attribute, Any]) -> KeyRecord:
    params = public.get(Attribute.EC_PARAMS) or private.get(Attribute.EC_PARAMS) or b""
    algorithm = algorithm_of_params(params)
    # A key for key agreement may have the OID of the curve's old name (NSS's X25519).
    if private.get(Attribute.KEY_TYPE, expected := _key_type(algorithm)) != expected:
        algorithm = None
    point = public.get(Attribute.EC_POINT) or private.get(Attribute.EC_POINT)
    return KeyRecord(
        id=private.get(Attribute.ID, b"").hex(),
        label=private.get(Attribute.LABEL, ""),
        algorithm=algorithm,
        public_key=decode_point(algorithm, point) if algorithm and point else None,
        can_sign=bool(private.get(Attribute.SIGN, False)),
        sensitive=bool(private.get(Attribute.SENSITIVE, True)),
        extractable=bool(private.get(Attribute.EXTRACTABLE, False)),
    )
