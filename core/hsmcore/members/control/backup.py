"""Backups: a private key, wrapped inside the HSM by a key that never leaves it, in an envelope that names both.

A backup can be unwrapped only where the wrapping key is: on the same token, or on one that got the wrapping key by the
vendor's own means (cloning, a key ceremony). The private key is never in the clear outside of a token.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from dataclasses import dataclass
from typing import Any, Final, NoReturn

import orjson
from pkcs11 import Attribute, KeyType, Mechanism, MechanismFlag, ObjectClass
from pkcs11.attributes import ALL_CAPABILITIES
from pkcs11.constants import DEFAULT
from pkcs11.exceptions import PKCS11Error
from pkcs11.types import Key, Object, Session, UnwrapMixin, WrapMixin

from hsmcore.errors import KeyAmbiguous, KeyNotFound
from hsmcore.members.control.admin import TokenAdmin
from hsmcore.members.control.curves import ALGORITHMS
from hsmcore.members.control.faults import ControlError, KeyNotExportable, ckr_of
from hsmcore.members.control.keys import describe_key, find_key, key_forms, parse_key_id, require_free, search
from hsmcore.members.control.quirks import WHOLE_MECHANISMS, Quirks
from hsmcore.members.control.records import KeyRecord
from hsmcore.members.control.verb import Verb

WRAPPING_KEY_LABEL: Final = "hsmcore-backup"
_FORMAT: Final = "hsmcore-backup-1"
_AES_BITS: Final = 256

_KEY_NOT_WRAPPABLE: Final = 0x069
_KEY_UNEXTRACTABLE: Final = 0x06A
_MECHANISM_INVALID: Final = 0x070
_FUNCTION_NOT_SUPPORTED: Final = 0x054
_REFUSALS: Final = {
    _KEY_NOT_WRAPPABLE: "the token cannot wrap keys of this type",
    _KEY_UNEXTRACTABLE: "the key is not extractable",
    _MECHANISM_INVALID: "the token does not wrap with this mechanism",
    _FUNCTION_NOT_SUPPORTED: "the token cannot wrap keys",
}


@dataclass(frozen=True, slots=True, repr=False)
class ExportWrapped(Verb[bytes]):
    """A backup of a key, wrapped inside the HSM. The wrapping key is made on the token if none has that label. Raises
    KeyNotExportable when the key or the token does not allow it."""

    key_id: str
    wrapping_label: str = WRAPPING_KEY_LABEL

    def run(self, admin: TokenAdmin) -> bytes:
        with admin.session(f"exporting key {self.key_id}") as session:
            private, public = find_key(session, self.key_id)
            record = describe_key(private, public)
            if not record.extractable:
                raise KeyNotExportable(
                    f"key {self.key_id} is not extractable, and that cannot be changed",
                    hint="Choose that when a key is made (keys generate --extractable). "
                    f"{KeyNotExportable.default_hint}",
                )
            mechanism = _mechanism(session, admin.quirks)
            if mechanism is None:
                text = f"hsmcore knows no mechanism that this token ({admin.quirks.name}) wraps keys with"
                raise KeyNotExportable(text)
            wrapping = _wrapping_key(session, admin.quirks, self.wrapping_label, create=True)
            if not isinstance(wrapping, WrapMixin) or not isinstance(private, Key):
                raise ControlError(f"the object {self.wrapping_label!r} may not wrap keys")
            try:
                blob = wrapping.wrap_key(private, mechanism=mechanism)
            except PKCS11Error as error:
                _refuse(error, record)
        return orjson.dumps(
            {
                "format": _FORMAT,
                "id": record.id,
                "label": record.label,
                "algorithm": record.algorithm,
                "canSign": record.can_sign,
                "publicKey": record.public_key.hex() if record.public_key else None,
                "wrappingKey": self.wrapping_label,
                "mechanism": int(mechanism),
                "wrapped": b64encode(blob).decode(),
            }
        )


def is_whole(backup: bytes) -> bool:
    """Whether a backup contains the key's id and label, so that it can be put back only under those."""
    return bool(_parse(backup)["mechanism"] in WHOLE_MECHANISMS)


@dataclass(frozen=True, slots=True, repr=False)
class WhyNoBackup(Verb[str | None]):
    """Why the token cannot wrap keys of an algorithm; None if it can, as far as is known."""

    algorithm: str

    def run(self, admin: TokenAdmin) -> str | None:
        with admin.session("asking how keys are wrapped") as session:
            quirks = admin.quirks
            known = quirks.why_not_wrapped(admin.library_version, self.algorithm)
            if known is not None or _mechanism(session, quirks) is not None:
                return known
            return f"the token has no mechanism that hsmcore wraps keys with (quirks {quirks.name})"


@dataclass(frozen=True, slots=True, repr=False)
class ImportWrapped(Verb[KeyRecord]):
    """Put a key back from a backup, on the token that made it or one that holds the same wrapping key; refused while a
    private key with its id is on the token. `key_id` and `label` replace its own; ControlError where the token does not
    allow that (YubiHSM)."""

    backup: bytes
    key_id: str | None = None
    label: str | None = None

    def run(self, admin: TokenAdmin) -> KeyRecord:
        with admin.session("importing a key") as session:
            return self._import(session, admin.quirks)

    def _import(self, session: Session, quirks: Quirks) -> KeyRecord:
        envelope = _parse(self.backup)
        if self.key_id is not None or self.label is not None:
            if quirks.backup_is_whole:
                raise ControlError("a backup of this kind of token brings its id and label along")
            envelope |= {"id": self.key_id or envelope["id"], "label": self.label or envelope["label"]}
        identity = parse_key_id(envelope["id"])
        require_free(session, identity)
        wrapping = _wrapping_key(session, quirks, envelope["wrappingKey"], create=False)
        if not isinstance(wrapping, UnwrapMixin):
            raise ControlError(f"the object {envelope['wrappingKey']!r} may not unwrap keys")
        if quirks.backup_is_whole:
            return _unwrap_whole(session, wrapping, envelope)
        key_type = KeyType.EC_EDWARDS if envelope["algorithm"] == "ed25519" else KeyType.EC
        template: dict[Attribute, Any] = dict.fromkeys(ALL_CAPABILITIES, DEFAULT)
        template |= {
            Attribute.SIGN: envelope["canSign"],
            Attribute.SENSITIVE: True,
            Attribute.EXTRACTABLE: True,
            Attribute.PRIVATE: True,
        }
        private = wrapping.unwrap_key(
            ObjectClass.PRIVATE_KEY,
            key_type,
            b64decode(envelope["wrapped"]),
            id=identity,
            label=envelope["label"],
            mechanism=int.__new__(Mechanism, envelope["mechanism"]),
            store=True,
            capabilities=MechanismFlag.SIGN,
            template=template,
        )
        return describe_key(private, _public_half(session, quirks, identity, key_type, envelope))


def _unwrap_whole(session: Session, wrapping: UnwrapMixin, envelope: dict[str, Any]) -> KeyRecord:
    private = wrapping.unwrap_key(
        ObjectClass.PRIVATE_KEY,
        KeyType.EC,
        b64decode(envelope["wrapped"]),
        mechanism=int.__new__(Mechanism, envelope["mechanism"]),
        store=True,
        capabilities=MechanismFlag.SIGN,
        template=dict.fromkeys((*ALL_CAPABILITIES, Attribute.CLASS, Attribute.KEY_TYPE, Attribute.TOKEN), DEFAULT),
    )
    record = describe_key(private, search(session, ObjectClass.PUBLIC_KEY, private[Attribute.ID]))
    public_key = record.public_key.hex() if record.public_key else None
    if (record.id, public_key) != (parse_key_id(envelope["id"]).hex(), envelope["publicKey"]):
        private.destroy()
        raise ControlError("the backup holds another key than it says; nothing was restored")
    return record


def _public_half(
    session: Session, quirks: Quirks, key_id: bytes, key_type: KeyType, envelope: dict[str, Any]
) -> list[Object]:
    found = search(session, ObjectClass.PUBLIC_KEY, key_id)
    point = bytes.fromhex(envelope["publicKey"] or "")
    if found or not point:
        return found
    template: dict[Attribute, Any] = {
        Attribute.CLASS: ObjectClass.PUBLIC_KEY,
        Attribute.KEY_TYPE: key_type,
        Attribute.TOKEN: True,
        Attribute.VERIFY: True,
        Attribute.ID: key_id,
        Attribute.LABEL: envelope["label"],
        Attribute.EC_PARAMS: key_forms(quirks, envelope["algorithm"])[0].params,
        Attribute.EC_POINT: b"\x04" + bytes([len(point)]) + point,  # DER OCTET STRING
    }
    if quirks.names_private:
        template[Attribute.PRIVATE] = False
    return [session.create_object(template)]


def _mechanism(session: Session, quirks: Quirks) -> Mechanism | None:
    offered = session.token.slot.get_mechanisms()
    return next((mechanism for mechanism in quirks.wrap_mechanisms if mechanism in offered), None)


def _wrapping_key(session: Session, quirks: Quirks, label: str, *, create: bool) -> Object:
    found = list(session.get_objects({Attribute.CLASS: ObjectClass.SECRET_KEY, Attribute.LABEL: label}))
    if len(found) > 1:
        raise KeyAmbiguous(f"{len(found)} secret keys have the label {label!r}")
    if not found and not create:
        raise KeyNotFound(f"the token does not hold the wrapping key {label!r}")
    if not found:
        form = quirks.wrapping_key
        return session.generate_key(
            form.key_type,
            _AES_BITS,
            label=label,
            store=True,
            capabilities=MechanismFlag.WRAP | MechanismFlag.UNWRAP,
            mechanism=form.mechanism,
            template=dict(form.template),
        )
    # A wrapping key that can be read makes every backup readable.
    if found[0][Attribute.EXTRACTABLE] or not found[0][Attribute.SENSITIVE]:
        raise ControlError(
            f"the wrapping key {label!r} can leave the token: nothing is wrapped with it",
            hint="Remove it, or name another label; hsmcore makes a wrapping key of its own.",
        )
    return found[0]


def _refuse(error: PKCS11Error, record: KeyRecord) -> NoReturn:
    number = ckr_of(error)
    why = _REFUSALS.get(number)
    if why is None:
        raise error
    raise KeyNotExportable(f"key {record.id} ({record.algorithm}) cannot be exported: {why}", ckr=number) from error


def _parse(backup: bytes) -> dict[str, Any]:
    try:
        envelope = orjson.loads(backup)
    except orjson.JSONDecodeError:
        envelope = None
    if (
        isinstance(envelope, dict)
        and envelope.get("format") == _FORMAT
        and envelope.get("algorithm") in ALGORITHMS
        and all(isinstance(envelope.get(name), str) for name in ("id", "label", "wrappingKey", "wrapped"))
        and isinstance(envelope.get("mechanism"), int)
        and isinstance(envelope.get("canSign"), bool)
    ):
        return envelope
    raise ControlError("this is no backup that hsmcore wrote", hint="Give a file that `hsmcore keys export` wrote.")
