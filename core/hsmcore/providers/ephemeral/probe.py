"""The probe of an ephemeral provider: a key in this process's memory, made at each start."""

from __future__ import annotations

import resource
from collections.abc import Generator
from typing import Final

from nacl.exceptions import CryptoError
from nacl.signing import SigningKey

from hsmcore._native import verify
from hsmcore.doctor.common import check_configuration
from hsmcore.doctor.report import Identity, Step, fail, ok, warn
from hsmcore.doctor.subject import CheckBegun, Subject

_LOCKED_BYTES: Final = 64 << 10
"""Below this limit of locked memory, in bytes, the key may be written to swap."""


def probe_ephemeral(subject: Subject) -> Generator[Step | CheckBegun, None, Identity | None]:
    """Check whether such a key can be made and locked here. It has no identity before it is made."""
    yield CheckBegun("configuration")
    yield from check_configuration(subject, None)
    soft, _hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if soft != resource.RLIM_INFINITY and soft < _LOCKED_BYTES:
        hint = "Raise RLIMIT_MEMLOCK (LimitMEMLOCK of the service)."
        yield warn("locked-memory", f"only {soft} bytes may be locked: the key could be written to swap", hint)
    else:
        yield ok("locked-memory", "unlimited" if soft == resource.RLIM_INFINITY else f"{soft} bytes may be locked")
    yield _signature()
    if subject.level != "emergency":
        hint = "Its signatures end with the process: nothing verifies them by a key known before."
        yield warn("identity", "the key is made anew at each start, and this is no emergency level", hint)
    else:
        yield ok("identity", "made when the emergency level takes over; no identity before, and another one each time")
    hint = "It is for emergencies: use a device for the other levels."
    yield warn("evidence", "the key is made in this process's memory: no device vouches for it", hint)
    return Identity(fixed=False, algorithm=subject.settings.algorithm)


def _signature() -> Step:
    """Sign with a throwaway key and verify with the native core, which shares no code with PyNaCl's signing."""
    message = b"hsmcore doctor"
    try:
        key = SigningKey.generate()
        signature = key.sign(message).signature
    except CryptoError as error:
        return fail("signature", f"no key can be made: {type(error).__name__}", "Install PyNaCl again.")
    if not verify("ed25519", bytes(key.verify_key), message, signature):
        return fail("signature", "a throwaway key's signature does not verify", "Install PyNaCl again.")
    return ok("signature", "a throwaway key signed, and its signature verified")
