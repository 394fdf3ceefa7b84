"""A token's statement of the origin of a key: evidence, as far as the token is believed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from pkcs11 import Attribute
from pkcs11.exceptions import AttributeSensitive, AttributeTypeInvalid
from pkcs11.types import Object

from hsmcore.members.control.admin import TokenAdmin
from hsmcore.members.control.keys import describe_key, find_key
from hsmcore.members.control.verb import Verb

_SAID: Final = (
    Attribute.LOCAL,
    Attribute.SENSITIVE,
    Attribute.ALWAYS_SENSITIVE,
    Attribute.EXTRACTABLE,
    Attribute.NEVER_EXTRACTABLE,
)


@dataclass(frozen=True, slots=True)
class KeyStatement:
    """One private key, in the token's words."""

    key_id: str
    public_key: bytes | None
    token: Mapping[str, str]
    """Manufacturer, model and serial number."""
    says: Mapping[str, str]
    """By PKCS#11's name: "true", "false"; a mechanism as "0x1055". An attribute that the token does not show is
    missing."""


@dataclass(frozen=True, slots=True, repr=False)
class Attest(Verb[KeyStatement]):
    """Ask where a key comes from, and whether it ever could leave the token. Raises KeyNotFound."""

    repeatable: ClassVar[bool] = True
    key_id: str

    def run(self, admin: TokenAdmin) -> KeyStatement:
        with admin.session("asking where a key comes from") as session:
            private, public = find_key(session, self.key_id)
            token = session.token
            shown = {"manufacturer": _text(token.manufacturer_id), "model": _text(token.model)}
            shown["serial"] = _text(token.serial)
            says = {f"CKA_{kind.name}": value for kind in _SAID if (value := _flag(private, kind)) is not None}
            made = _value(private, Attribute.KEY_GEN_MECHANISM)
            if made is not None:
                says["CKA_KEY_GEN_MECHANISM"] = f"0x{int(made):x}"
            return KeyStatement(self.key_id, describe_key(private, public).public_key, shown, says)


def _flag(key: Object, kind: Attribute) -> str | None:
    value = _value(key, kind)
    return None if value is None else "true" if value else "false"


def _value(key: Object, kind: Attribute) -> Any:
    """One attribute; None if the token does not show it, or says that it is unknown. Each is asked for on its own: a
    module may refuse a whole list for one of them."""
    try:
        found = key.get_attributes([kind]).get(kind)
    except (AttributeTypeInvalid, AttributeSensitive):
        return None
    except ValueError:  # no mechanism that python-pkcs11 knows, as CK_UNAVAILABLE_INFORMATION of an imported key
        return None
    return found if isinstance(found, int) else None


def _text(value: bytes | str) -> str:
    return (value.decode(errors="replace") if isinstance(value, bytes) else value).strip(" \0")
