"""What DONE says to MANAGE 6: the payload that was bound last in a domain, as JSON. Its position is a string of digits:
a number in JSON may lose the last ones."""

from __future__ import annotations

import hashlib
import json
from base64 import b64decode, b64encode
from typing import Final

from hsmcore.base.receipt import Unfinished
from hsmcore.gateway.wire.frames import WireError
from hsmcore.gateway.wire.messages import KINDS

OPERATION: Final = "unfinished"
"""Of MANAGE; its key id is the domain."""


def written(found: Unfinished | None) -> str:
    """Return the text. None: nothing is unfinished."""
    if found is None:
        return "null"
    message = None if found.message is None else b64encode(found.message).decode()
    said = {"kind": found.kind, "position": str(found.position), "digest": found.digest.hex(), "message": message}
    return json.dumps(said, separators=(",", ":"))


def read(text: str) -> Unfinished | None:
    """Read the text. Raises WireError, also for a message that has not the digest."""
    try:
        said = json.loads(text)
        if said is None:
            return None
        kind, position, digest = said["kind"], int(said["position"]), bytes.fromhex(said["digest"])
        message = None if said["message"] is None else b64decode(said["message"], validate=True)
    except (KeyError, TypeError, ValueError, RecursionError):
        raise WireError("what is unfinished cannot be read") from None
    if kind not in KINDS[1:] or not 0 <= position < 1 << 64 or len(digest) != hashlib.sha256().digest_size:
        raise WireError("what is unfinished is no payload")
    if message is not None and hashlib.sha256(message).digest() != digest:
        raise WireError("the message that is unfinished has another digest")
    return Unfinished(kind, position, digest, message)
