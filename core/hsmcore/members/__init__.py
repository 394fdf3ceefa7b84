"""Members: the places that can sign, each behind one interface (base.Member)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from hsmcore.config import AwsCloudHsmSettings, AwsKmsSettings, EphemeralSettings, KeyManagerConfig, Provider
from hsmcore.errors import ModuleMissing
from hsmcore.members.base import Member, SigningEngine
from hsmcore.members.cloudhsm.member import CloudHsmMember
from hsmcore.members.ephemeral import EphemeralMember
from hsmcore.members.pkcs11 import Pkcs11Member

__all__ = [
    "CloudHsmMember",
    "EphemeralMember",
    "Member",
    "Pkcs11Member",
    "SigningEngine",
    "cache_summary",
    "make_member",
]


def make_member(provider: Provider, rules: KeyManagerConfig, level: str, hidden_variables: frozenset[str]) -> Member:
    """The member for a provider of the configuration. Nothing is loaded or connected yet."""
    settings = provider.config
    if isinstance(settings, EphemeralSettings):
        return EphemeralMember(provider, settings, rules, level)
    if isinstance(settings, AwsKmsSettings):
        try:
            from hsmcore.members.kms.member import KmsMember
        except ModuleNotFoundError as error:
            text = f"member {provider.name!r}: signing with AWS KMS needs the package {error.name}"
            raise ModuleMissing(text, member=provider.name, hint=provider.install_hint) from None
        return KmsMember(provider, settings, rules, level)
    if isinstance(settings, AwsCloudHsmSettings):
        return CloudHsmMember(provider, settings, rules, level, hidden_variables)
    return Pkcs11Member(provider, settings, rules, level, hidden_variables)


def cache_summary(engines: Iterable[SigningEngine], most: int) -> dict[str, Any]:
    """The counters of the engines' caches, added up; `most` signatures fit into each."""
    stats: Counter[str] = Counter()
    for engine in engines:
        stats.update(engine.cache_stats())  # adds
    asked = stats["hits"] + stats["misses"] + stats["joined"]
    return {
        "size": stats["entries"],
        "max_size": most,
        "hits": stats["hits"],
        "misses": stats["misses"],
        "joined": stats["joined"],
        "evictions": stats["evictions"],
        "bytes": stats["bytes"],
        "hit_rate": (stats["hits"] + stats["joined"]) / asked if asked else 0.0,
    }
