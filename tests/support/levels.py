"""Key managers with several members: SoftHSM tokens that hold the same key, each behind a copy of the chaos module."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.support.chaos import CHAOS, Chaos, copy_of, wrap
from tests.support.softhsm import RFC8032_PUBLIC, RFC8032_SEED, Token

SAME = {"name": "ed25519", "kind": "ed25519", "seed": RFC8032_SEED, "public_key": RFC8032_PUBLIC}
OTHER = {"name": "ed25519", "kind": "ed25519"}
# As the customer has it, but for patience.
QUICK = {
    "primaryRetryIntervalMs": 50,
    "maxPrimaryRetries": 3,
    "secondaryRetryIntervalMs": 50,
    "maxSecondaryRetries": 3,
    "failbackRampMs": 200,
}


_NEEDED = ("C_SignInit", "C_OpenSession")


class Site:
    """Members by number; each with a token and a module of its own that can be told to fail."""

    def __init__(self, folder: Path, fresh_token: Callable[..., Token], *keys: Mapping[str, Any]) -> None:
        self.folder = folder
        self.tokens: list[Token] = []
        self.members: list[Chaos] = []
        for number, key in enumerate(keys):
            place = folder / f"member-{number}"
            place.mkdir()
            self.tokens.append(fresh_token(dict(key)))
            # SoftHSM, too: one instance can be initialized by one of them only.
            wrapped = wrap(self.tokens[-1])
            wrapped = replace(wrapped, module=str(copy_of(Path(wrapped.module), place)))
            self.members.append(Chaos(place, wrapped, module=copy_of(CHAOS, place)))

    def provider(self, number: int, **settings: Any) -> dict[str, Any]:
        """The provider of a member."""
        manager = self.members[number].config(settings={"verifySignatures": "always", **settings})["sequencer"][
            "keyManager"
        ]
        return {"type": manager["type"], "config": manager["config"]}

    def name(self, number: int) -> str:
        """The member's name in receipts and events."""
        return f"pkcs11:{self.tokens[number].label}"

    def config(self, *, primary: int = 1, failover: Mapping[str, Any] | None = None, **rules: Any) -> dict[str, Any]:
        """The first `primary` members are the primary level, the others the secondary one."""
        block: dict[str, Any] = {**QUICK, **(failover or {})}
        providers = [self.provider(number) for number in range(len(self.members))]
        if primary > 1:
            block["primary"] = providers[1:primary]
        if providers[primary:]:
            block["secondary"] = providers[primary:]
        manager = {
            **providers[0],
            "maxCacheSize": 0,
            "stateFile": str(self.folder / "state.db"),
            "failover": block,
            **rules,
        }
        return {"sequencer": {"keyManager": manager}}

    def kill(self, number: int, ckr: str = "CKR_DEVICE_REMOVED") -> None:
        """The device is gone until `revive`, also for a module that is initialized again."""
        faults = [{"function": name, "every": 1, "action": "return", "ckr": ckr} for name in _NEEDED]
        self.members[number].write(faults=faults)
        for fault in faults:
            self.members[number].ask("fault", **fault)

    def revive(self, number: int) -> None:
        """It is back."""
        self.members[number].write()
        self.members[number].clear()
        self.members[number].release()
