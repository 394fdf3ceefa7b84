"""Fixtures for the tests of the fault-injecting module."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tests.support.cloudhsm import Cluster
from tests.support.scenarios import Bench, make_environment
from tests.support.softhsm import Token


@pytest.fixture(scope="session")
def token_environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of the SoftHSM token that all scenarios share."""
    return make_environment(tmp_path_factory.mktemp("token"))


@pytest.fixture
def bench(token_environment: dict[str, str], tmp_path: Path) -> Bench:
    """A folder to run scenarios in."""
    return Bench(tmp_path, token_environment)


@pytest.fixture
def cluster(fresh_token: Callable[..., Token], tmp_path: Path) -> Cluster:
    """A token of its own behind the profile "cloudhsm"."""
    return Cluster(tmp_path, fresh_token())
