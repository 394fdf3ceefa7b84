"""Envelopes of backups: what is read is what was enclosed, anything else is refused."""

from __future__ import annotations

from nacl.signing import SigningKey
from tests.fuzz.engine import main

from hsmcore.manager.rotation.backup.envelope import BackupInvalid, Statement, open_envelope

KEY = SigningKey(bytes(range(32)))


def _enclosed(method: str, **more: str) -> bytes:
    made = Statement(
        "0a0b", "key", "ed25519", bytes(KEY.verify_key), method, "ab" * 32, "softhsm:t", 17, bytes(80), **more
    )
    return made.enclose(KEY.sign(made.to_sign()).signature)


def seeds() -> list[bytes]:
    """A sealed one, and parts."""
    return [_enclosed("sealed"), b'{"format":"hsmcore-backup/1","statement":{},"signature":""}']


SEEDS = frozenset(seeds())


def one(data: bytes) -> str:
    """Open it."""
    try:
        found = open_envelope(data, bytes(KEY.verify_key))
    except BackupInvalid as error:
        return str(error)[:24]
    # The key signed the two above and nothing else.
    assert data in SEEDS, found
    return "opened"


if __name__ == "__main__":
    main(seeds, one)
