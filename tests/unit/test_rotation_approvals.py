"""Which approvals of a rotation count."""

from __future__ import annotations

from dataclasses import replace

import pytest
from nacl.signing import SigningKey

from hsmcore.config import Approver
from hsmcore.manager.rotation.approvals import by_signature, genuine, statement
from hsmcore.manager.rotation.machine import Run
from hsmcore.manager.rotation.store import Rotation
from hsmcore.state import Approval, NotApproved, StoredKey

ANNE, BERT = SigningKey(b"a" * 32), SigningKey(b"b" * 32)
APPROVERS = [
    Approver.model_validate({"name": name, "publicKey": key.verify_key.encode().hex()})
    for name, key in {"anne": ANNE, "bert": BERT}.items()
]
ROTATION = Rotation(7, "manual", "", None, 10, None, 1, 2, Run(), "")
KEY = StoredKey(1, "id-1", b"\x01" * 32, "ed25519", "", (), "configured", "active", 1, None, None, None, None, None, "")
TEXT = statement(ROTATION, KEY)


def approval(name, key, text=TEXT):
    return Approval(name, key.sign(text).signature.hex())


@pytest.mark.parametrize(
    ("given", "counts", "others"),
    [
        ([], [], []),
        ([approval("anne", ANNE), approval("bert", BERT)], ["anne", "bert"], []),
        ([approval("anne", BERT)], [], ["anne"]),
        ([approval("carl", ANNE)], [], ["carl"]),
        ([approval("anne", ANNE), approval("anne", ANNE)], ["anne"], ["anne"]),
        ([approval("anne", BERT), approval("anne", ANNE)], [], ["anne"]),
        ([approval("bert", BERT), Approval("anne", "")], ["bert"], ["anne"]),
        ([Approval("anne", "no hexadecimal"), Approval("bert", "00" * 64)], [], ["anne", "bert"]),
    ],
)
def test_an_approval_counts_once_for_each_approver_whose_key_signed(given, counts, others):
    assert genuine(APPROVERS, TEXT, given) == (counts, others)


@pytest.mark.parametrize(
    "other",
    [
        statement(replace(ROTATION, id=8), KEY),
        statement(replace(ROTATION, begun_ns=11), KEY),
        statement(ROTATION, replace(KEY, key_id="id-2")),
        statement(ROTATION, replace(KEY, public_key=b"\x02" * 32)),
    ],
)
def test_an_approval_of_one_rotation_is_none_of_another(other):
    assert genuine(APPROVERS, other, [approval("anne", ANNE)]) == ([], ["anne"])
    with pytest.raises(NotApproved, match="no signature of anne"):
        by_signature(APPROVERS[0], other, ANNE.sign(TEXT).signature)
    assert by_signature(APPROVERS[0], TEXT, ANNE.sign(TEXT).signature) == approval("anne", ANNE)
