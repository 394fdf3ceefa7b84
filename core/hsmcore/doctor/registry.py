"""Which probe belongs to which type of provider; see subject."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator

from hsmcore.doctor.report import Identity, Step, failed
from hsmcore.doctor.subject import Begun, Probe, Subject
from hsmcore.errors import HsmError


def _pkcs11(subject: Subject) -> Generator[Step | Begun, None, Identity | None]:
    from hsmcore.doctor.pkcs11 import probe_module

    return (yield from probe_module(subject))


def _kms(subject: Subject) -> Generator[Step | Begun, None, Identity | None]:
    from hsmcore.doctor.kms import probe_kms

    return (yield from probe_kms(subject))


def _ephemeral(subject: Subject) -> Generator[Step | Begun, None, Identity | None]:
    from hsmcore.doctor.ephemeral import probe_ephemeral

    return (yield from probe_ephemeral(subject))


def _cluster(subject: Subject) -> Iterator[Step]:
    from hsmcore.doctor.cluster import probe_cluster

    return probe_cluster(subject)


PROBES: dict[str, Probe] = {
    "softhsm": _pkcs11,
    "aws-cloudhsm": _pkcs11,
    "yubihsm": _pkcs11,
    "pkcs11": _pkcs11,
    "aws-kms": _kms,
    "ephemeral": _ephemeral,
}

SURROUNDINGS: dict[str, Callable[[Subject], Iterator[Step]]] = {"aws-cloudhsm": _cluster}
"""By type of provider: steps about what stands around it, such as the state of a cluster. They come before the probe's
own, and say more than the module does when the device cannot be reached."""


def probe(subject: Subject) -> Generator[Step | Begun, None, Identity | None]:
    """All steps of one provider, its surroundings first."""
    around = SURROUNDINGS.get(subject.provider.type)
    if around is not None:
        yield Begun("surroundings")
        try:
            yield from around(subject)
        except HsmError as error:
            yield failed("surroundings", error)
    return (yield from PROBES[subject.provider.type](subject))
