"""RFC 7512: `pkcs11:` URIs of what was found. config/uri.py reads them."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import quote


def build_uri(path: Mapping[str, str | bytes | int | None], query: Mapping[str, str | None] | None = None) -> str:
    """Return the URI with these attributes, by their names in the RFC, without those that are None."""
    attributes = ";".join(_attribute(name, value) for name, value in path.items() if value is not None)
    asked = "&".join(_attribute(name, value, "/") for name, value in (query or {}).items() if value is not None)
    return f"pkcs11:{attributes}" + (f"?{asked}" if asked else "")


def _attribute(name: str, value: str | bytes | int, plain: str = "") -> str:
    if isinstance(value, bytes):
        return f"{name}=" + "".join(f"%{byte:02x}" for byte in value)
    return f"{name}={quote(str(value), safe='-._~' + plain)}"
