"""Who takes part. Rows of data: a new contender is a new row, and a kind if none of the present ones fits."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from hsmcore.bench import failover, resilience
from hsmcore.bench.failover import FAILOVER
from hsmcore.bench.model import Contender
from hsmcore.bench.resilience import RECOVERY

HSM = "Ed25519 on the token"
ECDSA = "ECDSA on the token"
NOOP = "no-op module: everything that is not the HSM"
CACHE = "signature cache"

MEMORY = "memory"  # a scenario of its own beside the contenders: resident memory while signing on the no-op module
SCENARIOS = (MEMORY, RECOVERY, FAILOVER)
GROUPS = {"resilience": resilience.PATTERNS}  # a word for several patterns


def contenders(cores: int) -> list[Contender]:
    """All of them, for a machine with so many processors."""
    return [
        Contender("raw", "raw C loop", "raw", HSM, None, in_flight=cores, sessions=cores),
        Contender("raw-1", "raw C loop, one thread", "raw", HSM, "raw"),
        Contender("sign-1", "hsmcore sign, 1 in flight", "sign", HSM, "raw", sessions=cores),
        Contender("sign-8", "hsmcore sign, 8 in flight", "sign", HSM, "raw", in_flight=8, sessions=cores),
        Contender("sign-64", "hsmcore sign, 64 in flight", "sign", HSM, "raw", in_flight=64, sessions=cores),
        # By itself, because a coroutine that wakes each millisecond to look costs some of what is measured above.
        Contender("sign-64-lag", "the same, loop lag watched", "sign", HSM, "raw", in_flight=64, sessions=cores),
        Contender("sign-256", "hsmcore sign, 256 in flight", "sign", HSM, "raw", in_flight=256, sessions=cores),
        Contender(
            "many-256",
            "hsmcore sign_many of 256",
            "sign-many",
            HSM,
            "raw",
            sessions=cores,
            batch=256,
            latency_of="batch of 256",
        ),
        Contender(
            "pkcs11-shared",
            "python-pkcs11 as shipped, one session",
            "pkcs11-shared",
            HSM,
            "raw",
            in_flight=cores,
        ),
        Contender("pkcs11-shared-1", "python-pkcs11 as shipped, one thread", "pkcs11-shared", HSM, "raw"),
        Contender(
            "pkcs11-threads",
            "python-pkcs11 + locking, threads",
            "pkcs11-threads",
            HSM,
            "raw",
            in_flight=cores,
            sessions=cores,
        ),
        Contender(
            "pkcs11-executor",
            "python-pkcs11 + locking, asyncio executor, 64 in flight",
            "pkcs11-executor",
            HSM,
            "raw",
            in_flight=64,
            sessions=8,  # the best of 1, 2, 4, 8, 16 on two processors
        ),
        Contender("pykcs11", "PyKCS11, one thread", "pykcs11", HSM, "raw"),
        Contender(
            "raw-p256", "raw C loop, P-256", "raw", ECDSA, None, algorithm="ecdsa-p256", in_flight=cores, sessions=cores
        ),
        Contender(
            "sign-p256",
            "hsmcore sign, P-256, 64 in flight",
            "sign",
            ECDSA,
            "raw-p256",
            algorithm="ecdsa-p256",
            in_flight=64,
            sessions=cores,
        ),
        Contender(
            "raw-secp256k1",
            "raw C loop, secp256k1",
            "raw",
            ECDSA,
            None,
            algorithm="ecdsa-secp256k1",
            in_flight=cores,
            sessions=cores,
        ),
        Contender(
            "sign-secp256k1",
            "hsmcore sign, secp256k1, 64 in flight",
            "sign",
            ECDSA,
            "raw-secp256k1",
            algorithm="ecdsa-secp256k1",
            in_flight=64,
            sessions=cores,
        ),
        Contender("noop-1", "hsmcore sign, 1 in flight", "sign", NOOP, None, token="noop"),
        Contender(
            "noop-256", "hsmcore sign, 256 in flight", "sign", NOOP, None, token="noop", in_flight=256, timed_every=8
        ),
        Contender(
            "noop-many-1024",
            "hsmcore sign_many of 1,024",
            "sign-many",
            NOOP,
            None,
            token="noop",
            batch=1024,
            latency_of="batch of 1,024",
        ),
        Contender(
            "noop-executor",
            "python-pkcs11 + locking, asyncio executor, 256 in flight",
            "pkcs11-executor",
            NOOP,
            None,
            token="noop",
            in_flight=256,
            sessions=4,
            timed_every=8,
        ),
        Contender(
            "cache-hit",
            "hsmcore sign, cache hit",
            "cache-hit",
            CACHE,
            None,
            token="noop",
            latency_of="mean of 512 hits",
        ),
        Contender(
            "cache-lookup",
            "cache lookup alone, in C",
            "cache-lookup",
            CACHE,
            None,
            token="none",
            latency_of="mean of 512 lookups",
        ),
        *resilience.contenders(cores),
        *failover.contenders(cores),
    ]


def select(everyone: Sequence[Contender], only: str | None) -> list[Contender]:
    """Those whose name fits one of the comma-separated patterns in `only`, and the references they are divided by.

    A pattern is a name, or the start of names up to a dash ("noop" is noop-1, noop-256, ...), or a shell pattern, or
    one of GROUPS.
    """
    if only is None:
        return list(everyone)
    references = {c.name: c.reference for c in everyone}
    names: set[str] = set()
    for pattern in _patterns(only):
        names |= {pattern} & references.keys() or {name for name in references if _fits(name, pattern)}
    for name in tuple(names):
        following = references[name]
        while following is not None:
            names.add(following)
            following = references[following]
    return [c for c in everyone if c.name in names]


def scenarios(only: str | None) -> set[str]:
    """Those of SCENARIOS that are asked for."""
    if only is None:
        return set(SCENARIOS)
    return {name for name in SCENARIOS if any(_fits(name, pattern) for pattern in _patterns(only))}


def _patterns(only: str) -> list[str]:
    words = [word.strip() for word in only.split(",") if word.strip()]
    return [pattern for word in words for pattern in GROUPS.get(word, (word,))]


def _fits(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern) or name.startswith(f"{pattern}-")
