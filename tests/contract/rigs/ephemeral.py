"""A key in this process's memory: the one provider that has nothing to break."""

from __future__ import annotations

from typing import Any

from tests.contract.rig import Rig


class Ephemeral(Rig):
    name = "ephemeral"
    can = frozenset({"generates", "destroys"})

    def setup(self) -> None:
        pass

    def config(self, settings: dict[str, Any] | None = None, **rules: Any) -> dict[str, Any]:
        own = {"allowEphemeralPrimary": True, **(settings or {})}
        return {"keyManager": {"type": "ephemeral", "config": own, "maxCacheSize": 0, **rules}}

    @property
    def public_key(self) -> None:
        return None
