"""Notes, checkpoints and proofs of the audit log: only their own errors, and none that was changed is believed."""

from __future__ import annotations

from nacl.signing import SigningKey
from tests.fuzz.engine import main

from hsmcore._native import MerkleTree
from hsmcore.audit.check.prove import check_inclusion
from hsmcore.tlog.checkpoint import Checkpoint
from hsmcore.tlog.note import ED25519, Note, NoteError, VerifierKey, signed
from hsmcore.tlog.proof import ProofError

_SECRET = SigningKey(bytes(range(32)))
KEY = VerifierKey("example.com/log", ED25519, bytes(_SECRET.verify_key))
LINE = b'{"seq":0,"operation":"sign"}'


def seeds() -> list[bytes]:
    """The proof of a log with one record, and its checkpoint."""
    from base64 import b64encode

    root = MerkleTree().leaf(LINE)
    text = b"example.com/log\n1\n" + b64encode(root) + b"\n"
    note = signed(text, KEY, _SECRET.sign(text).signature)
    head = b"c2sp.org/tlog-proof@v1\nextra " + b64encode(LINE) + b"\nindex 0\n\n"
    return [head + note, note, str(KEY).encode()]


def one(data: bytes) -> str:
    """Read it as each of the three."""
    said = []
    for read in (Note.parse, Checkpoint.parse):
        try:
            read(data)
            said.append("read")
        except NoteError as error:
            said.append(str(error)[:16])
    try:
        VerifierKey.parse(data.decode("latin-1"))
    except NoteError as error:
        said.append(str(error)[:16])
    try:
        assert check_inclusion(data, [KEY]).line == LINE
        said.append("proven")
    except ProofError as error:
        said.append(str(error)[:24])
    return ",".join(said)


if __name__ == "__main__":
    main(seeds, one)
