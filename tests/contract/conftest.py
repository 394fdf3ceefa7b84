"""One rig of each kind for the whole run."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.contract.rig import Rig


@pytest.fixture(scope="session")
def rig(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """The device under test."""
    kind: type[Rig] = request.param
    made = kind(tmp_path_factory.mktemp(kind.name))
    try:
        made.setup()
        yield made
    finally:
        made.teardown()


@pytest.fixture(autouse=True)
def device_at_work(rig: Rig) -> Iterator[None]:
    """Restore the device after each test."""
    yield
    rig.release()
    rig.mend_device()
