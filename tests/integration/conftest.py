"""Fixtures for the tests against whole tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from tests.support.yubihsm.rig import Rig

from hsmcore.providers.yubihsm.settings import default_yubihsm_module


@pytest.fixture
def yubihsm(tmp_path: Path) -> Iterator[Callable[..., Rig]]:
    """Makes simulated YubiHSMs for the vendor's module; arguments as Rig."""
    module = default_yubihsm_module()
    if not Path(module).is_file():
        pytest.skip("yubihsm_pkcs11.so is not installed")
    with ExitStack() as stack:
        yield lambda **fields: stack.enter_context(Rig(tmp_path, module, **fields))


@pytest.fixture
def rig(yubihsm: Callable[..., Any]) -> Rig:
    """One simulated YubiHSM with an Ed25519 key."""
    made: Rig = yubihsm()
    return made
