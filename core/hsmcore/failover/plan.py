"""Levels and endpoints of a configuration. Opens nothing."""

from __future__ import annotations

from functools import partial

from hsmcore.base.receipt import LevelName
from hsmcore.config import Config, Failover
from hsmcore.failover.endpoint import Endpoint
from hsmcore.failover.levels import EMERGENCY, Level, Levels
from hsmcore.members import make_member

MS = 1_000_000
SUSPICION_NS = 2000 * MS
"""How long a member that is only suspected keeps the emergency level from being entered."""


def endpoints_and_levels(config: Config) -> Levels[Endpoint]:
    """Return the state machine for a configuration with `failover`, or with several members of one provider."""
    rules = config.key_manager
    failover = rules.active_failover or Failover()
    members = rules.members()
    levels = [_level(name, failover) for name in dict.fromkeys(name for name, _ in members)]
    places = {level.name: index for index, level in enumerate(levels)}
    endpoints = [
        Endpoint(
            provider.name,
            places[name],
            levels[places[name]].interval,
            name,
            partial(make_member, provider, rules, name, config.secret_variables),
            provider.where,
            config.require_complete,
            provider.patience_ms * MS,
        )
        for name, provider in members
    ]
    return Levels(
        levels,
        endpoints,
        mode=failover.mode,
        ramp=failover.failback_ramp_ms * MS,
        emergency_delay=(failover.emergency_delay_ms or 0) * MS,
        suspicion=SUSPICION_NS if failover.emergency_delay_ms is None else 0,
        emergency_permitted=failover.emergency_mode_enabled,
    )


def _level(name: LevelName, failover: Failover) -> Level:
    if name == EMERGENCY:
        return Level(EMERGENCY, 1, failover.primary_retry_interval_ms * MS, other_keys=True)
    retries, interval = getattr(failover, f"max_{name}_retries"), getattr(failover, f"{name}_retry_interval_ms")
    return Level(name, retries, interval * MS, other_keys=name in failover.accept_other_keys)
