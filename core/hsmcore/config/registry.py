"""The registry of providers: those of hsmcore, and those that other distributions add by entry points."""

from __future__ import annotations

from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Final

from hsmcore.config.base import clash
from hsmcore.config.descriptor import ProviderDescriptor

GROUP: Final = "hsmcore.providers"
BUILT_IN: Final = {
    "softhsm": "hsmcore.providers.softhsm.settings:PROVIDER",
    "aws-cloudhsm": "hsmcore.providers.cloudhsm.settings:PROVIDER",
    "yubihsm": "hsmcore.providers.yubihsm.settings:PROVIDER",
    "pkcs11": "hsmcore.config.pkcs11:PROVIDER",
    "aws-kms": "hsmcore.providers.kms.settings:PROVIDER",
    "ephemeral": "hsmcore.providers.ephemeral.settings:PROVIDER",
}
"""The entry points of this distribution, as in pyproject.toml. Those of an installation may be older than this file."""
_OWN: Final = "hsmcore"


def known_types() -> tuple[str, ...]:
    """Return all types; those of hsmcore first."""
    return tuple(_offers())


@cache
def descriptor_of(type_: str) -> ProviderDescriptor:
    """Import the descriptor of a known type. Raises a configuration fault if two distributions offer the type, or if
    its descriptor cannot be used; other types are not affected."""
    offers = _offers()[type_]
    if len(offers) > 1:
        raise clash(f"more than one distribution offers {type_!r}: {', '.join(map(_source, offers))}; uninstall one")
    problem = f"the provider {type_!r} of {_source(offers[0])} cannot be used: "
    try:
        found = offers[0].load()
    except Exception as error:  # noqa: BLE001  # code of a third party may raise anything
        raise clash(f"{problem}{type(error).__name__}: {error}") from None
    if not isinstance(found, ProviderDescriptor) or found.type != type_:
        raise clash(f"{problem}it is no ProviderDescriptor of that type")
    return found


@cache
def _offers() -> dict[str, list[EntryPoint]]:
    offers = {name: [EntryPoint(name, value, GROUP)] for name, value in BUILT_IN.items()}
    for point in sorted(entry_points(group=GROUP)):
        # To ask for a distribution's name is to parse all that it says of itself: only of offers that are not our own.
        if point.value != BUILT_IN.get(point.name) and (point.dist is None or point.dist.name != _OWN):
            offers.setdefault(point.name, []).append(point)
    return offers


def _source(point: EntryPoint) -> str:
    return f"{_OWN if point.dist is None else point.dist.name} ({point.value})"
