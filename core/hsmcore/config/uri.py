"""RFC 7512: the part of a `pkcs11:` URI that names one token, one key and the place of the PIN."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote_to_bytes

from hsmcore.config.base import hidden_fault
from hsmcore.config.secret import Secret

_PATH: Final = frozenset({"token", "serial", "manufacturer", "model", "slot-id", "object", "id", "type"})
_QUERY: Final = frozenset({"module-path", "module-name", "pin-source", "pin-value"})
# RFC 7512, section 2.3: the form of a vendor's attribute.
_NAME: Final = re.compile(r"[A-Za-z0-9_-]+\Z")
_ENCODED: Final = re.compile(r"(?:[!-\"$&-~]|%[0-9A-Fa-f]{2})*\Z")  # printable ASCII but for # and a lone %
_MODULE_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,127}\Z")
_SLOT_ID: Final = re.compile(r"[0-9]{1,19}\Z")


@dataclass(frozen=True, slots=True)
class UriParts:
    """The parts of a URI, by the names of the configuration's own keys; None: absent. `text` is the URI without a
    pin-value; `ignored` counts unknown attributes of its query."""

    text: str
    module_path: str | None = None
    module_name: str | None = None
    token_label: str | None = None
    token_serial: str | None = None
    token_manufacturer: str | None = None
    token_model: str | None = None
    slot_id: int | None = None
    key_label: str | None = None
    key_id: str | None = None
    pin: Secret | None = None
    ignored: int = 0


def parse_uri(uri: str) -> UriParts:
    """Parse a URI. Raises a hidden configuration fault, because a URI may hold a PIN.

    By the RFC, no attribute may be given twice, and nothing matches an unknown attribute of the path: it is refused,
    because without it the URI might select another token. Unknown attributes of the query select nothing and are
    ignored.
    """
    scheme, colon, rest = uri.partition(":")
    if scheme.lower() != "pkcs11" or not colon:
        raise hidden_fault('must be a PKCS#11 URI (RFC 7512) such as "pkcs11:token=sequencer;object=key"')
    path, _, query = rest.partition("?")
    found = _attributes(path, ";")
    if found.keys() - _PATH:
        raise hidden_fault(f"has an attribute that is not supported here; allowed: {', '.join(sorted(_PATH))}")
    asked = _attributes(query, "&")
    if "pin-value" in asked and asked.keys() - _QUERY:
        # It may be the rest of the PIN, which must not be ignored, kept or shown.
        raise hidden_fault("has an unknown attribute beside pin-value; in a PIN, & is written %26")
    if found.get("type", b"private") != b"private":
        raise hidden_fault("type must be private: a key that signs is one")
    if "pin-source" in asked and "pin-value" in asked:
        raise hidden_fault("only one of pin-source and pin-value can be given")
    module_name = _text(asked, "module-name")
    if module_name is not None and not _MODULE_NAME.match(module_name):
        raise hidden_fault("module-name must be a file's name without folder, such as softhsm2")
    kept = "&".join(part for part in query.split("&") if part and not part.startswith("pin-value="))
    return UriParts(
        text=f"pkcs11:{path}" + (f"?{kept}" if kept else ""),
        module_path=_text(asked, "module-path"),
        module_name=module_name,
        token_label=_text(found, "token"),
        token_serial=_text(found, "serial"),
        token_manufacturer=_text(found, "manufacturer"),
        token_model=_text(found, "model"),
        slot_id=_slot_id(found),
        key_label=_text(found, "object"),
        key_id=_key_id(found),
        pin=_pin(asked),
        ignored=len(asked.keys() - _QUERY),
    )


def _attributes(text: str, separator: str) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for part in filter(None, text.split(separator)):
        name, equals, value = part.partition("=")
        if not equals or not _NAME.match(name):
            # Not even the name is shown: "1234" may be a PIN.
            raise hidden_fault("has a part that is no attribute: attributes are name=value")
        if name in found:
            raise hidden_fault(f"gives {_shown(name)} twice")
        if not _ENCODED.match(value):
            raise hidden_fault(f"{_shown(name)}: blanks, #, % and what is not ASCII must be percent-encoded")
        found[name] = unquote_to_bytes(value)
    return found


def _shown(name: str) -> str:
    """Return a name that may be shown: an unknown one may be the rest of a PIN with a separator that is not encoded."""
    return name if name in _PATH or name in _QUERY else "an attribute"


def _slot_id(found: Mapping[str, bytes]) -> int | None:
    value = found.get("slot-id")
    if value is None:
        return None
    text = value.decode("ascii", "replace")
    if not _SLOT_ID.match(text) or int(text) >= 1 << 63:
        raise hidden_fault("slot-id must be a decimal number")
    return int(text)


def _key_id(found: Mapping[str, bytes]) -> str | None:
    value = found.get("id")
    if value is not None and not 1 <= len(value) <= 64:
        raise hidden_fault("id must have 1 to 64 bytes")
    return None if value is None else value.hex()


def _text(attributes: Mapping[str, bytes], name: str) -> str | None:
    value = attributes.get(name)
    if value is None:
        return None
    text = _decoded(value)
    if not text or len(value) > 4096 or not text.isprintable():
        raise hidden_fault(f"{name} must be UTF-8 text that is not empty")
    return text


def _decoded(value: bytes) -> str:
    # "" instead of an exception: a UnicodeDecodeError holds the bytes, which may be a PIN.
    return "" if value.decode(errors="ignore").encode() != value else value.decode()


def _pin(query: Mapping[str, bytes]) -> Secret | None:
    if "pin-value" in query:
        value = _decoded(query["pin-value"])
        if not value:
            raise hidden_fault("pin-value must be UTF-8 text that is not empty")
        return Secret.plain(value)
    source = _text(query, "pin-source")
    if source is None:
        return None
    if source.startswith("|"):
        raise hidden_fault("pin-source cannot be a command: give a file")
    path = source.removeprefix("file://localhost").removeprefix("file://").removeprefix("file:")
    if not path.startswith("/"):
        raise hidden_fault("pin-source must be the absolute path of a file, or a file: URI")
    return Secret.file(path)
