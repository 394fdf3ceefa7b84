"""Keys on one token: search, generate, deactivate, destroy. Blocking; the session belongs to the calling thread.

Searches name the class and the id or label only: some modules find nothing, or fail, when asked by type or by use.
Every search is read to its end, because an unfinished one keeps the session busy.
"""

from __future__ import annotations

import hashlib
import secrets
from typing import Any, Final

from pkcs11 import Attribute, KeyType, Mechanism, MechanismFlag, ObjectClass
from pkcs11.attributes import AttributeMapper
from pkcs11.constants import DEFAULT
from pkcs11.exceptions import ObjectHandleInvalid, PKCS11Error
from pkcs11.types import Object, Session, SignMixin

from hsmcore.control.curves import P256_OID, SECP256K1_OID, Algorithm, algorithm_of_params, decode_point
from hsmcore.control.faults import ControlError, ckr_of, no_such_key, several_keys
from hsmcore.control.quirks import KeyForm, Quirks
from hsmcore.control.records import Deactivation, KeyRecord

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
# The orders of the groups (SEC 2, sections 2.4.1 and 2.4.2).
_ORDERS: Final = {
    "ecdsa-p256": 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551,
    "ecdsa-secp256k1": 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141,
}
# What modules answer to a mechanism or to EC parameters that they do not know. The standard has codes for that; some
# answer with the general ones.
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


class Attributes(AttributeMapper):
    """Attribute values as python-pkcs11 reads them, except that a label or type outside its tables is no error."""

    def __init__(self) -> None:
        super().__init__()
        as_number = self.attribute_types[Attribute.MODULUS_BITS]
        self.register_handler(Attribute.LABEL, str.encode, lambda raw: raw.decode("utf-8", "replace"))
        self.register_handler(Attribute.KEY_TYPE, *as_number)


def list_keys(session: Session) -> list[KeyRecord]:
    """Every private key that the session sees, by label, then id."""
    halves: dict[bytes, Object] = {}
    for public in list(session.get_objects({Attribute.CLASS: ObjectClass.PUBLIC_KEY})):
        halves.setdefault(_shown(public).get(Attribute.ID, b""), public)
    records = []
    for private in list(session.get_objects({Attribute.CLASS: ObjectClass.PRIVATE_KEY})):
        shown = _shown(private)
        if shown:  # else somebody destroyed it meanwhile
            records.append(_record(shown, _shown(halves.get(shown.get(Attribute.ID, b"")))))
    return sorted(records, key=lambda record: (record.label, record.id))


def find_key(session: Session, key_id: str) -> tuple[Object, list[Object]]:
    """The private key with that CKA_ID and its public halves; an error unless there is exactly one private key."""
    wanted = parse_key_id(key_id)
    private = list(session.get_objects({Attribute.CLASS: ObjectClass.PRIVATE_KEY, Attribute.ID: wanted}))
    if not private:
        raise no_such_key(key_id)
    if len(private) > 1:
        raise several_keys(key_id, len(private))
    public = list(session.get_objects({Attribute.CLASS: ObjectClass.PUBLIC_KEY, Attribute.ID: wanted}))
    return private[0], public


def describe_key(private: Object, public: list[Object]) -> KeyRecord:
    return _record(_shown(private), _shown(public[0] if public else None))


def generate_key(
    session: Session,
    quirks: Quirks,
    algorithm: Algorithm,
    label: str,
    key_id: bytes | None,
    extractable: bool,
    form: KeyForm | None = None,
) -> tuple[KeyRecord, KeyForm]:
    """Make a key pair on the token that can sign and nothing else, and that never leaves it in the clear.

    The forms that the quirks know are tried in turn, or only `form`. Returns what worked too."""
    if len(label.encode()) > quirks.label_bytes:
        raise ControlError(f"this token's labels have at most {quirks.label_bytes} bytes: {label!r} is longer")
    forms = (form,) if form is not None else _offered(session, key_forms(quirks, algorithm))
    identity = new_id(session, quirks) if key_id is None else key_id
    first: PKCS11Error | None = None
    for candidate in forms:
        try:
            return _generate(session, quirks, algorithm, label, identity, extractable, candidate), candidate
        except PKCS11Error as error:
            if ckr_of(error) not in _OTHER_FORM:
                raise
            first = first or error
    assert first is not None  # noqa: S101  # for the type checker: there is always a form
    raise first


def _generate(
    session: Session,
    quirks: Quirks,
    algorithm: Algorithm,
    label: str,
    key_id: bytes,
    extractable: bool,
    form: KeyForm,
) -> KeyRecord:
    key_type = KeyType.EC_EDWARDS if algorithm == "ed25519" else KeyType.EC
    parameters = session.create_domain_parameters(key_type, {Attribute.EC_PARAMS: form.params}, local=True)
    public_template: dict[Attribute, Any] = {Attribute.PRIVATE: False if quirks.names_private else DEFAULT}
    private_template: dict[Attribute, Any] = {
        Attribute.PRIVATE: True,
        Attribute.SENSITIVE: True,
        Attribute.EXTRACTABLE: extractable,
    }
    if not quirks.usage_in_template:
        public_template |= dict.fromkeys((*_UNUSED_PUBLIC, Attribute.CLASS), DEFAULT)
        private_template |= dict.fromkeys((*_UNUSED_PRIVATE, Attribute.CLASS), DEFAULT)
    public, private = parameters.generate_keypair(
        id=key_id,
        label=label,
        store=True,
        capabilities=MechanismFlag.SIGN | MechanismFlag.VERIFY,
        mechanism=form.mechanism,
        public_template=public_template,
        private_template=private_template,
    )
    record = describe_key(private, [public])
    if record.public_key is None or record.algorithm != algorithm:
        _destroy(private, [public])
        raise ControlError(f"the token made a key whose public half is no {algorithm} point; it was destroyed again")
    return record


def _offered(session: Session, forms: tuple[KeyForm, ...]) -> tuple[KeyForm, ...]:
    """Those whose mechanism the token lists. A list without any is not believed."""
    if len(forms) == 1:
        return forms
    listed = {int(mechanism) for mechanism in session.token.slot.get_mechanisms()}
    return tuple(form for form in forms if int(form.mechanism) in listed) or forms


def new_id(session: Session, quirks: Quirks) -> bytes:
    """A random CKA_ID that no private key has yet. All zeros or all ones may mean something: they are left out."""
    while True:
        chosen = secrets.token_bytes(quirks.id_bytes)
        taken = list(session.get_objects({Attribute.CLASS: ObjectClass.PRIVATE_KEY, Attribute.ID: chosen}))
        if not taken and len(set(chosen) - {0x00, 0xFF}) > 0:
            return chosen


def deactivate_key(session: Session, key_id: str) -> Deactivation:
    """Take the right to sign away from a key, where the token lets us. Doing it twice is no error."""
    private, _ = find_key(session, key_id)
    try:
        private[Attribute.SIGN] = False
        refused = private[Attribute.SIGN]
    except PKCS11Error as error:
        return Deactivation(key_id, False, f"the token refuses to change CKA_SIGN ({type(error).__name__})")
    return Deactivation(key_id, not refused, "the token ignores a change of CKA_SIGN" if refused else None)


def prove(session: Session, key_id: str, message: bytes) -> bytes:
    """One signature outside of the engine: 64 bytes."""
    private, public = find_key(session, key_id)
    algorithm = describe_key(private, public).algorithm
    if algorithm is None or not isinstance(private, SignMixin):
        raise ControlError(f"key {key_id} is of a kind that hsmcore does not sign with")
    data = message if algorithm == "ed25519" else hashlib.sha256(message).digest()
    mechanism = Mechanism.EDDSA if algorithm == "ed25519" else Mechanism.ECDSA
    signature = bytes(private.sign(data, mechanism=mechanism))
    return signature if algorithm == "ed25519" else _low_s(algorithm, signature)


def _low_s(algorithm: str, signature: bytes) -> bytes:
    """The one of the two equivalent ECDSA signatures that the signing engine makes, too."""
    r, s = signature[:32], int.from_bytes(signature[32:], "big")
    return r + min(s, _ORDERS[algorithm] - s).to_bytes(32, "big")


def destroy_key(session: Session, key_id: str) -> None:
    """Erase a key pair for good, the private half first."""
    _destroy(*find_key(session, key_id))


def sweep(session: Session, key_id: str, *, nameless: bool) -> int:
    """Erase what a process that was killed has left of a key with this id: a public half without its private one. With
    `nameless` also EC keys without id, label and curve: so SoftHSM leaves one whose making was cut off. They are of no
    use to anybody, but somebody else's may be in the making. Returns how many objects were erased."""
    erased = 0
    identity = parse_key_id(key_id) if key_id else b""
    if identity and not list(session.get_objects({Attribute.CLASS: ObjectClass.PRIVATE_KEY, Attribute.ID: identity})):
        for public in list(session.get_objects({Attribute.CLASS: ObjectClass.PUBLIC_KEY, Attribute.ID: identity})):
            public.destroy()
            erased += 1
    for kind in (ObjectClass.PRIVATE_KEY, ObjectClass.PUBLIC_KEY) if nameless else ():
        for half in list(session.get_objects({Attribute.CLASS: kind})):
            if _is_half(_shown(half)):
                half.destroy()
                erased += 1
    return erased


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


def _record(private: dict[Attribute, Any], public: dict[Attribute, Any]) -> KeyRecord:
    params = public.get(Attribute.EC_PARAMS) or private.get(Attribute.EC_PARAMS) or b""
    algorithm = algorithm_of_params(params)
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
