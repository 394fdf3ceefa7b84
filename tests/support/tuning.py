"""Simulated devices for `hsmcore tune`, and the number of sessions that each can use."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.support.chaos import Chaos, Wrapped, wrap_noop
from tests.support.paths import PROFILES

from hsmcore_bench.suite.devices import Device


def written(folder: Path, document: dict[str, Any]) -> Path:
    """A configuration file in a form that no serializer would make."""
    path = folder / "sequencer.json"
    path.write_text(json.dumps(document, indent=3).replace('"sessions": ', '"sessions":   ') + "\n\n")
    return path


def device(
    folder: Path, settings: Mapping[str, Any] | None = None, wrapped: Wrapped | None = None, **fields: Any
) -> Path:
    """The configuration file of `simulated`."""
    return written(folder, simulated(folder, wrapped, **fields).config(settings=settings))


def simulated(folder: Path, wrapped: Wrapped | None = None, **fields: Any) -> Chaos:
    """A simulated device around a module; default: the one that does nothing."""
    if wrapped is None:
        pin = folder / "pin"
        pin.touch(mode=0o600)
        pin.write_text("1234")
        noop = wrap_noop()
        wrapped = Wrapped(noop.module, {**noop.settings, "pin": {"file": str(pin)}})
    return Chaos(folder, wrapped, **fields)


def true_knee(profile: str) -> int:
    """The fewest requests in service at which a device is as fast as it can be: its times do not depend on how many it
    serves, so that is when every server is busy."""
    said = json.loads((PROFILES / f"{profile}.json").read_text())
    assert set(said["latency"]["C_Sign"]) <= {
        *("kind", "microseconds", "meanMicroseconds", "sigma"),
        *("offsetMicroseconds", "capMicroseconds", "perByteMicroseconds", "freeBytes"),
    }, "a latency that depends on the load"
    servers: int = said["capacity"]["servers"]
    return servers


def assert_found(found: Mapping[str, Any], profile: str) -> None:
    """The knee is the device's within a fifth, and its rate is no more than the device's."""
    true, ceiling = true_knee(profile), Device(profile).ceiling(PROFILES)
    assert abs(found["knee"] - true) <= 0.2 * true, (found["knee"], true)
    assert ceiling is not None
    assert found["rate"] <= 1.05 * ceiling
