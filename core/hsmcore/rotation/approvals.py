"""How somebody approves a rotation: with a one-time code, or by signing a text that names it."""

from __future__ import annotations

import hmac
import time
from collections.abc import Callable
from typing import Final

from nacl.exceptions import BadSignatureError
from nacl.exceptions import ValueError as NaclValueError
from nacl.signing import VerifyKey

from hsmcore.config import Approver
from hsmcore.state import NotApproved, Rotation, StoredKey

STEP_SECONDS: Final = 30
"""RFC 6238's default; six digits, SHA-1."""
_WINDOW: Final = 1
"""Steps that a clock may be off in either direction."""


def statement(rotation: Rotation, old: StoredKey) -> bytes:
    """The text that is signed: it names the rotation and the key that is to be replaced."""
    lines = (
        "hsmcore: I approve this rotation",
        f"rotation: {rotation.id}",
        f"begun: {rotation.begun_ns}",
        f"replaces: {old.key_id}",
        f"public key: {old.public_key.hex()}",
    )
    return "\n".join(lines).encode() + b"\n"


def totp_step(approver: Approver, code: str, clock: Callable[[], float] = time.time) -> int:
    """The time step that a one-time code belongs to. Raises NotApproved."""
    import pyotp

    if approver.totp is None:
        raise NotApproved(f"{approver.name} has no one-time codes", hint="Approve with --signature.")
    secret = approver.totp.resolve()
    try:
        codes = pyotp.TOTP(secret.decode("ascii", "replace").replace(" ", ""), interval=STEP_SECONDS)
        now = int(clock())
        steps = range(now // STEP_SECONDS - _WINDOW, now // STEP_SECONDS + _WINDOW + 1)
        for step in steps:
            if hmac.compare_digest(codes.at(step * STEP_SECONDS).encode(), code.encode("utf-8", "replace")):
                return step
    except ValueError:
        raise NotApproved(f"the totp secret of {approver.name} is not base32") from None
    finally:
        secret[:] = bytes(len(secret))
    raise NotApproved(f"this is no code of {approver.name} for now")


def check_signature(approver: Approver, text: bytes, signature: bytes) -> None:
    """Raises NotApproved unless it is the approver's Ed25519 signature (64 bytes) of the statement."""
    if approver.public_key is None:
        raise NotApproved(f"{approver.name} has no publicKey", hint="Approve with --code.")
    try:
        VerifyKey(bytes.fromhex(approver.public_key)).verify(text, signature)
    except (BadSignatureError, NaclValueError):
        raise NotApproved(f"this is no signature of {approver.name} on the statement") from None
