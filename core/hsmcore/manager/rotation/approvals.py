"""Approvals of a rotation: signatures of a text that names the rotation.

The store keeps each signature. It does not hold the approver's private key, so write access to it is not enough to
approve, nor to move an approval to another rotation.
"""

from __future__ import annotations

from collections.abc import Sequence

from nacl.exceptions import BadSignatureError
from nacl.exceptions import ValueError as NaclValueError
from nacl.signing import VerifyKey

from hsmcore.config import Approver
from hsmcore.manager.rotation.store import Rotation
from hsmcore.state import Approval, NotApproved, StoredKey


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


def by_signature(approver: Approver, text: bytes, signature: bytes) -> Approval:
    """Return the approval that an Ed25519 signature (64 bytes) of a statement is. Raises NotApproved."""
    given = Approval(approver.name, signature.hex())
    if not _signed(approver, text, given):
        raise NotApproved(f"this is no signature of {approver.name} on the statement")
    return given


def genuine(approvers: Sequence[Approver], text: bytes, given: Sequence[Approval]) -> tuple[list[str], list[str]]:
    """Sort the approvals of a statement: names of approvers whose approval counts, and names of the others. An approval
    does not count if no approver of that name is configured, if it is not the first one of the name, or if its proof
    fails."""
    left = {approver.name: approver for approver in approvers}
    names: tuple[list[str], list[str]] = [], []
    for approval in given:
        approver = left.pop(approval.approver, None)
        found = names[0 if approver is not None and _signed(approver, text, approval) else 1]
        if approval.approver not in found:
            found.append(approval.approver)
    return names


def _signed(approver: Approver, text: bytes, given: Approval) -> bool:
    try:
        VerifyKey(bytes.fromhex(approver.public_key)).verify(text, bytes.fromhex(given.proof))
    except (BadSignatureError, NaclValueError, ValueError):
        return False
    return True
