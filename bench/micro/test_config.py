"""Checking a configuration: what a command pays before it does anything."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from bench.micro.kit import PerCall

from hsmcore.config import load

CALLS = 10


@pytest.mark.benchmark(group="config")
@pytest.mark.parametrize("secondaries", [0, 8])
def test_load(per_call: PerCall, tmp_path: Path, secondaries: int) -> None:
    def provider(number: int) -> dict[str, object]:
        settings = {"tokenLabel": f"token-{number}", "keyLabel": "key", "pin": {"env": "HSM_PIN"}}
        return {"type": "softhsm", "config": settings}

    manager = {**provider(0), "maxCacheSize": 10_000, "auditLogFile": "audit.log"}
    if secondaries:
        manager["failover"] = {"secondary": [provider(number) for number in range(1, secondaries + 1)]}
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"sequencer": {"keyManager": manager}}))

    def loads() -> None:
        for _ in range(CALLS):
            load(path)

    per_call(loads, CALLS)
