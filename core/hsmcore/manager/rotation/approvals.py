"""Approvals of a rotation: by a one-time code, or by a signature of a text that names the rotation.

The store keeps the proof of each approval: the signature, or a MAC under the secret of the one-time codes, over the
text that names the rotation. The store holds neither the approver's private key nor that secret, so write access to it
is not enough to approve, nor to move an approval to another rotation.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

from nacl.exceptions import BadSignatureError
from nacl.exceptions import ValueError as NaclValueError
from nacl.signing import VerifyKey

from hsmcore.config import Approver
from hsmcore.errors import HsmError
from hsmcore.manager.rotation.store import Rotation
from hsmcore.state import Approval, NotApproved, StoredKey

STEP_SECONDS: Final = 30
"""Seconds of a step: RFC 6238's default; codes have six digits and use SHA-1."""
_WINDOW: Final = 1
"""Steps that a clock may be off, in either direction."""


def statement(rotation: Rotation, old: StoredKey) -> bytes:
    """Return the text that is signed: it names the rotation and the key that it replaces."""
    lines = (
        "hsmcore: I approve this rotation",
        f"rotation: {rotation.id}",
        f"begun: {rotation.begun_ns}",
        f"replaces: {old.key_id}",
        f"public key: {old.public_key.hex()}",
    )
    return "\n".join(lines).encode() + b"\n"


def by_code(approver: Approver, text: bytes, code: str, clock: Callable[[], float] = time.time) -> Approval:
    """Return the approval that a one-time code gives to a statement. Raises NotApproved."""
    import pyotp

    if approver.totp is None:
        raise NotApproved(f"{approver.name} has no one-time codes", hint="Approve with --signature.")
    secret = approver.totp.resolve()
    try:
        codes = pyotp.TOTP(secret.decode("ascii", "replace").replace(" ", ""), interval=STEP_SECONDS)
        now = int(clock())
        for step in range(now // STEP_SECONDS - _WINDOW, now // STEP_SECONDS + _WINDOW + 1):
            if hmac.compare_digest(codes.at(step * STEP_SECONDS).encode(), code.encode("utf-8", "replace")):
                return Approval(approver.name, "totp", step, _mac(secret, text, step))
    except ValueError:
        raise NotApproved(f"the totp secret of {approver.name} is not base32") from None
    finally:
        secret[:] = bytes(len(secret))
    raise NotApproved(f"this is no code of {approver.name} for now")


def by_signature(approver: Approver, text: bytes, signature: bytes) -> Approval:
    """Return the approval that an Ed25519 signature (64 bytes) of a statement is. Raises NotApproved."""
    if approver.public_key is None:
        raise NotApproved(f"{approver.name} has no publicKey", hint="Approve with --code.")
    if not _signed(approver.public_key, text, signature):
        raise NotApproved(f"this is no signature of {approver.name} on the statement")
    return Approval(approver.name, "signature", None, signature.hex())


def genuine(approvers: Sequence[Approver], text: bytes, given: Sequence[Approval]) -> tuple[list[str], list[str]]:
    """Sort the approvals of a statement: names of approvers whose approval counts, and names of the others. An approval
    does not count if no approver of that name is configured, if its proof fails, or if the same key or secret counts
    already under another name."""
    known = {approver.name: approver for approver in approvers}
    names: tuple[list[str], list[str]] = [], []
    counted: set[bytes] = set()
    for approval in given:
        approver = known.get(approval.approver)
        good = approver is not None and approval.approver not in names[0] and _is_genuine(approver, text, approval)
        if good and approver is not None:
            credentials = _credentials(approver)
            good = counted.isdisjoint(credentials)
            counted |= credentials if good else set()
        if good or approval.approver not in names[1]:
            names[0 if good else 1].append(approval.approver)
    return names


def _credentials(approver: Approver) -> set[bytes]:
    """Return digests of an approver's secrets: a secret that two approvers share may be held by one person."""
    found = set() if approver.public_key is None else {bytes.fromhex(approver.public_key)}
    if approver.totp is None:
        return found
    try:
        secret = approver.totp.resolve()
    except HsmError:
        return found  # no code of this approver counts either
    try:
        # In normal form: base32 in either case, with or without blanks and padding.
        read = bytes(secret).upper().translate(None, b" \t\r\n=")
        with suppress(ValueError):
            read = base64.b32decode(read + b"=" * (-len(read) % 8))
        return found | {hashlib.sha256(b"totp" + read).digest()}
    finally:
        secret[:] = bytes(len(secret))


def _is_genuine(approver: Approver, text: bytes, given: Approval) -> bool:
    if given.method == "signature":
        try:
            signature = bytes.fromhex(given.proof)
        except ValueError:
            return False
        return approver.public_key is not None and _signed(approver.public_key, text, signature)
    if approver.totp is None or given.totp_step is None:
        return False
    try:
        secret = approver.totp.resolve()
    except HsmError:
        return False
    try:
        return hmac.compare_digest(_mac(secret, text, given.totp_step).encode(), given.proof.encode())
    finally:
        secret[:] = bytes(len(secret))


def _signed(public_key: str, text: bytes, signature: bytes) -> bool:
    try:
        VerifyKey(bytes.fromhex(public_key)).verify(text, signature)
    except (BadSignatureError, NaclValueError):
        return False
    return True


def _mac(secret: bytearray, text: bytes, step: int) -> str:
    """Return the HMAC-SHA256 of the statement and the time step of the code, in hexadecimal."""
    return hmac.digest(secret, b"%scode of step: %d\n" % (text, step), "sha256").hex()
