"""The probe of an ephemeral provider: a key in this process's memory, made when it is needed."""

from __future__ import annotations

import resource
from collections.abc import Generator
from typing import Final

from nacl.exceptions import CryptoError
from nacl.signing import SigningKey

from hsmcore.doctor.common import check_configuration
from hsmcore.doctor.report import Identity, Step, fail, ok, warn
from hsmcore.doctor.subject import Begun, Subject

_LOCKED_BYTES: Final = 64 << 10
"""Less memory than this to lock, and the key may be written to swap."""


def probe_ephemeral(subject: Subject) -> Generator[Step | Begun, None, Identity | None]:
    """Whether such a key can be made and kept here; its identity is another one each time."""
    yield Begun("configuration")
    yield from check_configuration(subject, None)
    algorithm: str = subject.settings.algorithm
    soft, _hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if soft != resource.RLIM_INFINITY and soft < _LOCKED_BYTES:
        hint = "Raise RLIMIT_MEMLOCK (LimitMEMLOCK of the service)."
        yield warn("locked-memory", f"only {soft} bytes may be locked: the key could be written to swap", hint)
    else:
        yield ok("locked-memory", "unlimited" if soft == resource.RLIM_INFINITY else f"{soft} bytes may be locked")
    yield _signature(algorithm)
    if subject.level != "emergency":
        hint = "Its signatures end with the process: nothing verifies them by a key known before."
        yield warn("identity", "the key is made anew at each start, and this is no emergency level", hint)
    else:
        yield ok("identity", "made when the emergency level takes over; no identity before, and another one each time")
    return Identity(fixed=False, algorithm=algorithm)


def _signature(algorithm: str) -> Step:
    """One signature by a throwaway key, verified by the native core, which shares no code with its maker."""
    from hsmcore._native import verify

    message = b"hsmcore doctor"
    try:
        if algorithm == "ed25519":
            key = SigningKey.generate()
            public, signature = bytes(key.verify_key), key.sign(message).signature
        else:
            return ok("signature", f"not tried: {algorithm} keys are made when they are needed")
    except CryptoError as error:
        return fail("signature", f"no key can be made: {type(error).__name__}", "Install PyNaCl again.")
    if not verify(algorithm, public, message, signature):
        return fail("signature", "a throwaway key's signature does not verify", "Install PyNaCl again.")
    return ok("signature", "a throwaway key signed, and its signature verified")
