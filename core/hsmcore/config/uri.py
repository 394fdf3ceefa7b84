"""RFC 7512: the part of a `pkcs11:` URI that names one token, one key and where the PIN is."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

from pydantic_core import PydanticCustomError

from hsmcore.config.base import hidden_fault
from hsmcore.config.secret import Secret

_PATH = frozenset({"token", "serial", "slot-id", "object", "id", "type"})
_QUERY = frozenset({"module-path", "pin-source", "pin-value"})


@dataclass(frozen=True, slots=True)
class UriParts:
    """What the URI says, by the names of the configuration's own keys; None where it says nothing. `text` is the URI
    without a pin-value."""

    text: str
    module_path: str | None = None
    token_label: str | None = None
    token_serial: str | None = None
    slot_id: int | None = None
    key_label: str | None = None
    key_id: str | None = None
    pin: Secret | None = None


def parse_uri(uri: str) -> UriParts:
    """Parse a URI; raises a hidden configuration fault, for it may hold a PIN.

    An attribute that we could not match on (manufacturer, model, a vendor's own) is refused rather than ignored:
    ignoring it might select another token than the one that was meant.
    """
    scheme, colon, rest = uri.partition(":")
    if scheme.lower() != "pkcs11" or not colon:
        raise hidden_fault('must be a PKCS#11 URI (RFC 7512) such as "pkcs11:token=sequencer;object=key"')
    path, _, query = rest.partition("?")
    found = _attributes(path, ";", _PATH)
    asked = _attributes(query, "&", _QUERY)
    if found.get("type", b"private") != b"private":
        raise hidden_fault("type must be private: a key that signs is one")
    slot = found.get("slot-id")
    if slot is not None and not (slot.isdigit() and len(slot) < 20):
        raise hidden_fault("slot-id must be a decimal number")
    identifier = found.get("id")
    if identifier is not None and not 1 <= len(identifier) <= 64:
        raise hidden_fault("id must have 1 to 64 bytes")
    if "pin-source" in asked and "pin-value" in asked:
        raise hidden_fault("only one of pin-source and pin-value can be given")
    kept = "&".join(part for part in query.split("&") if part and not part.startswith("pin-value="))
    return UriParts(
        text=f"pkcs11:{path}" + (f"?{kept}" if kept else ""),
        module_path=_text(asked, "module-path"),
        token_label=_text(found, "token"),
        token_serial=_text(found, "serial"),
        slot_id=None if slot is None else int(slot),
        key_label=_text(found, "object"),
        key_id=None if identifier is None else identifier.hex(),
        pin=_pin(asked),
    )


def _attributes(text: str, separator: str, known: frozenset[str]) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for part in filter(None, text.split(separator)):
        name, equals, value = part.partition("=")
        if not equals or name not in known:
            raise hidden_fault(f"has an attribute that is not supported here; allowed: {', '.join(sorted(known))}")
        if name in found:
            raise hidden_fault(f"gives {name} twice")
        if any(not 0x20 < ord(char) < 0x7F for char in value):
            raise hidden_fault(f"{name}: spaces and characters outside ASCII must be percent-encoded")
        found[name] = unquote_to_bytes(value)
    return found


def _text(attributes: dict[str, bytes], name: str) -> str | None:
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


def _pin(query: dict[str, bytes]) -> Secret | None:
    if "pin-value" in query:
        value = _decoded(query["pin-value"])
        if not value:
            raise _empty_pin()
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


def _empty_pin() -> PydanticCustomError:
    return hidden_fault("pin-value must be UTF-8 text that is not empty")
