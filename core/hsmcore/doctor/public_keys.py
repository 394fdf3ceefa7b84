"""What is said about a public key, by each kind of provider."""

from __future__ import annotations

from typing import Final

from hsmcore.base.base58 import base58
from hsmcore.doctor.report import Step, fail, ok
from hsmcore.errors.statuses import STATUSES

UNPROVEN_HINT: Final = "Make a key on the device for what matters."
"""The hint for a key without evidence that it was made on the device."""


def compare_public_key(algorithm: str | None, key: bytes, pinned: str | None) -> Step:
    """Compare a public key with the one in hexadecimal that the configuration pins, if any."""
    shown = key.hex()
    data = {"publicKey": shown} | ({"address": base58(key)} if algorithm == "ed25519" else {})
    if pinned is None:
        return ok("public-key", f"{data.get('address', shown)} (not pinned: publicKey would)", **data)
    if pinned.lower() != shown:
        found = f"{shown}, and publicKey pins {pinned.lower()}"
        return fail("public-key", found, STATUSES["KEY_MISMATCH"].hint, **data)
    return ok("public-key", f"{data.get('address', shown)}, as pinned", **data)
