"""Members: tokens, cloud keys and keys in memory that sign, each behind one interface (base.Member)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from hsmcore.base.lazy import names

if TYPE_CHECKING:
    from hsmcore.config import KeyManagerConfig, Provider
    from hsmcore.members.base import Member, MemberSpec, SigningEngine
    from hsmcore.members.pkcs11 import Pkcs11Member

__all__ = [
    "Member",
    "MemberSpec",
    "Pkcs11Member",
    "SigningEngine",
    "cache_summary",
    "make_member",
]

if not TYPE_CHECKING:  # a command's help, and a child that serves one module, need modules of `control` alone
    __getattr__ = names(__name__, {"base": ["Member", "MemberSpec", "SigningEngine"], "pkcs11": ["Pkcs11Member"]})


def make_member(provider: Provider, rules: KeyManagerConfig, level: str, hidden_variables: frozenset[str]) -> Member:
    """Return the member for a provider. Loads and connects nothing."""
    from hsmcore.members.base import MemberSpec

    made: Member = provider.resolve(provider.descriptor.member)(
        MemberSpec(provider, provider.config, rules, level, hidden_variables)
    )
    return made


def cache_summary(engines: Iterable[SigningEngine], most: int) -> dict[str, Any]:
    """Return the sum of the engines' cache counters. `most`: signatures that fit into each cache."""
    stats: Counter[str] = Counter()
    for engine in engines:
        stats.update(engine.cache_stats())  # adds
    asked = stats["hits"] + stats["misses"] + stats["joined"]
    return {
        "size": stats["entries"],
        "max_size": most,
        **{name: stats[name] for name in ("hits", "misses", "joined", "evictions", "bytes")},
        "hit_rate": (stats["hits"] + stats["joined"]) / asked if asked else 0.0,
    }
