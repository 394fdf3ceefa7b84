"""What the configuration says the key may sign, and when another key signs instead."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from hsmcore.config import Config
from hsmcore.doctor.report import Step, ok, warn

NAME: Final = "policy"


def check_policy(config: Config) -> Iterator[Step]:
    """Say what may be signed."""
    policy = config.key_manager.policy
    if policy is None:
        yield ok(NAME, "there is none: the key signs any bytes that a caller gives it", kinds=None)
        return
    kinds = list(policy.kinds)
    if "raw" in kinds:
        yield warn(
            NAME,
            f"the key signs {', '.join(kinds)}: raw bytes may mean anything to another program",
            'Leave "raw" out of policy.kinds; give the layer 2\'s own payloads a format (docs/POLICY.md).',
            kinds=kinds,
        )
    else:
        yield ok(NAME, f"the key signs {', '.join(kinds)}, and nothing else", kinds=kinds)


def check_emergency(config: Config) -> Iterator[Step]:
    """Warn of an emergency key that signs as soon as the only member is late."""
    failover = config.key_manager.active_failover
    if failover is None or not failover.emergency_mode_enabled or failover.emergency_delay_ms != 0:
        return
    if sum(level != "emergency" for level, _ in config.key_manager.members()) == 1:
        yield warn(
            "emergency",
            "emergencyDelayMs is 0: the emergency key signs as soon as the only member is late, as on a busy machine",
            "Leave emergencyDelayMs out: then it takes 2 s, a failed probe or an error of the device.",
        )
