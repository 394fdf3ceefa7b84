"""Evidence of where a key comes from: what its token says, and the certificates of a device that makes such.

A document is made once for a key and kept as it is: a device's certificate differs each time.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

import orjson

from hsmcore.base.log import get_logger
from hsmcore.config import Provider
from hsmcore.errors import HsmError
from hsmcore.members.control import ControlPlane
from hsmcore.members.control.attest import Attest

FORMAT: Final = "hsmcore/key-evidence/v1"
_MOST_BYTES: Final = 1 << 20


async def collect(plane: ControlPlane, provider: Provider, key_id: str) -> bytes:
    """Return the document about a key: JSON. Without a certificate if the device gives none, which is logged. Raises
    HsmError."""
    said = await plane.do(Attest(key_id))
    document: dict[str, Any] = {
        "format": FORMAT,
        "keyId": said.key_id,
        "publicKey": None if said.public_key is None else said.public_key.hex(),
        "token": dict(said.token),
        "says": dict(said.says),
        "certificates": [],
    }
    if provider.descriptor.certificates is not None:
        try:
            certificates = provider.resolve(provider.descriptor.certificates)
            found = await asyncio.to_thread(certificates, provider.config, key_id)
            document["certificates"] = [one.hex() for one in found]
            document["exportableUnderWrap"] = _exportable(provider, found)
        except HsmError as error:
            get_logger().warning("the device gave no certificate of a key", key=key_id, error=str(error))
    return orjson.dumps(document, option=orjson.OPT_SORT_KEYS)


def judged(document: bytes, provider: Provider, key_id: str, public_key: bytes | None) -> dict[str, Any]:
    """Return what a document says, and in `proven` whether certificates show that the device made this key; `problem`:
    why not; `exportableUnderWrap`: whether they say that it can leave the device under a wrapping key, None where they
    do not. `public_key`: of the key that is asked about; None: the document comes from the token itself. Raises
    ValueError for a document of another form or key, OSError."""
    found = orjson.loads(document[:_MOST_BYTES])
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise ValueError("no evidence about a key")
    if found["keyId"] != key_id or public_key not in (None, bytes.fromhex(found["publicKey"] or "")):
        raise ValueError("the evidence is about another key")
    problem = "the device gives no certificate: this is its own word"
    chain = [bytes.fromhex(one) for one in found["certificates"]]
    if chain and provider.descriptor.judge is not None:
        judge = provider.resolve(provider.descriptor.judge)
        serial = found["token"]["serial"]
        problem = judge(chain, provider.config, bytes.fromhex(found["publicKey"] or ""), key_id, serial)
    said = {"exportableUnderWrap": _exportable(provider, chain), "proven": not problem, "problem": problem or None}
    return {**found, **said}


def _exportable(provider: Provider, chain: list[bytes]) -> bool | None:
    asked = provider.descriptor.exportable
    return provider.resolve(asked)(chain) if asked is not None else None
