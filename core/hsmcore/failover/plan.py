"""Levels and endpoints of a configuration. Opens nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from functools import partial

from hsmcore.config import Config, Failover, Provider, all_members
from hsmcore.config.policy import KeyLevel
from hsmcore.failover.endpoint import Endpoint
from hsmcore.failover.levels import EMERGENCY, Level, Levels
from hsmcore.members import make_member

MS = 1_000_000


def endpoints_and_levels(config: Config) -> Levels[Endpoint]:
    """The state machine for a configuration with `failover`, or with several members of one provider."""
    rules = config.key_manager
    configured = rules.failover
    failover = configured if configured is not None and configured.enabled else Failover()
    plan: list[tuple[Level, tuple[Provider, ...]]] = [(_level("primary", failover), rules.primary)]
    if failover.secondary:
        plan.append((_level("secondary", failover), all_members(failover.secondary)))
    if failover.emergency_mode_enabled:
        plan.append(
            (Level(EMERGENCY, 1, failover.primary_retry_interval_ms * MS, other_keys=True), failover.emergency_level)
        )
    _name(provider for _, providers in plan for provider in providers)
    hidden = config.secret_variables
    endpoints = [
        Endpoint(
            provider.name,
            index,
            level.interval,
            level.name,
            partial(make_member, provider, rules, level.name, hidden),
            provider.where,
            config.require_complete,
            provider.patience_ms * MS,
        )
        for index, (level, providers) in enumerate(plan)
        for provider in providers
    ]
    return Levels(
        [level for level, _ in plan],
        endpoints,
        mode=failover.mode,
        ramp=failover.failback_ramp_ms * MS,
        emergency_delay=failover.emergency_delay_ms * MS,
        emergency_permitted=failover.emergency_mode_enabled,
    )


def _level(name: KeyLevel, failover: Failover) -> Level:
    retries, interval = getattr(failover, f"max_{name}_retries"), getattr(failover, f"{name}_retry_interval_ms")
    return Level(name, retries, interval * MS, other_keys=name in failover.accept_other_keys)


def _name(providers: Iterable[Provider]) -> None:
    seen: Counter[str] = Counter()
    for provider in providers:
        provider.distinguish(1)
        seen[provider.name] += 1
        provider.distinguish(seen[provider.name])
