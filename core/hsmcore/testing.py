"""A real token for the tests of an application: a fresh SoftHSM, in a folder that goes away.

With pytest, in conftest.py: `pytest_plugins = ["hsmcore.testing"]`. A test that asks for `hsmcore_config` gets the
configuration of a token with an Ed25519 key, which all tests of the run share. Such a test stands in
docs/operations/softhsm.md.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from hsmcore.members.control.curves import Algorithm
from hsmcore.members.control.softhsm import StateFolder

__all__ = ["fresh_token", "hsmcore_config", "hsmcore_token"]

_VARIABLE = "SOFTHSM2_CONF"


@contextmanager
def fresh_token(algorithm: Algorithm = "ed25519") -> Iterator[dict[str, Any]]:
    """Make a SoftHSM token with one key, and yield its configuration. Until the end SOFTHSM2_CONF names the token, so
    one of them is in use at a time. Raises ModuleMissing without SoftHSM."""
    before = os.environ.get(_VARIABLE)
    with tempfile.TemporaryDirectory(prefix="hsmcore-") as folder:
        state = StateFolder(Path(folder) / "state")
        state.create(algorithm=algorithm, sessions=1)
        os.environ[_VARIABLE] = str(state.softhsm_conf)
        try:
            made: dict[str, Any] = json.loads(state.config.read_bytes())
            # As a dictionary it has no folder at which the paths in it could start.
            made["sequencer"]["keyManager"]["config"]["pin"] = {"file": str(state.path / "pin")}
            made["sequencer"]["stateSecret"] = {"file": str(state.path / "state-secret")}
            yield made
        finally:
            if before is None:
                del os.environ[_VARIABLE]
            else:
                os.environ[_VARIABLE] = before


@pytest.fixture(scope="session")
def hsmcore_token() -> Iterator[str]:
    """The token of the whole run: its configuration, as JSON."""
    with fresh_token() as config:
        yield json.dumps(config)


@pytest.fixture
def hsmcore_config(hsmcore_token: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The configuration of the run's token, with a state store of the test's own, in a state folder of its own: what
    the key promises in one test binds no other. The test may change it."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state-home"))
    config: dict[str, Any] = json.loads(hsmcore_token)
    config["sequencer"]["keyManager"]["stateFile"] = str(tmp_path / "hsmcore-state.db")
    return config
