"""What the configuration says the key may sign."""

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
