"""AWS KMS goes wrong under load: nothing is refused while a member can sign, what was refused is bound to no key."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.support.kms import KmsServer
from tests.support.kms.campaign import ARRANGEMENTS, CALLERS, FAULTS, arranged, under
from tests.support.loops import one_loop
from tests.support.size import crossed

pytestmark = [pytest.mark.integration, one_loop]

LEAST = 12
"""Messages of each caller: more than the throttled tries in a row that open a breaker."""


@pytest.fixture
def elsewhere() -> Iterator[KmsServer]:
    """The same key in another region."""
    with KmsServer() as server:
        yield server


async def row(fault, how, kms, elsewhere, folder, world, seconds):
    token = {"type": "softhsm", "config": world.config()["sequencer"]["keyManager"]["config"]}
    given, key = arranged(how, kms, elsewhere, folder, token)
    helpless = FAULTS[fault].hides and how == "alone"
    patience = 0.2 if helpless else 30.0
    found = await under(FAULTS[fault], how, given, kms, key, least=LEAST, seconds=seconds, patience=patience)
    print(f"{fault}, {how}: {found}")  # noqa: T201  # the table, with pytest -rP
    if helpless:
        assert not found.signed
    else:
        assert not found.refused
        assert found.signed >= LEAST * CALLERS
    return found


@pytest.mark.parametrize(("how", "fault"), crossed(ARRANGEMENTS, FAULTS))
async def test_nothing_is_refused_while_a_member_can_sign(kms, elsewhere, world, tmp_path, fault, how):
    await row(fault, how, kms, elsewhere, tmp_path, world, 0)


@pytest.mark.deep
@pytest.mark.slow("a fault of four seconds")
@pytest.mark.parametrize("how", ARRANGEMENTS)
@pytest.mark.parametrize("fault", FAULTS)
async def test_nothing_is_refused_for_four_seconds(kms, elsewhere, world, tmp_path, fault, how):
    await row(fault, how, kms, elsewhere, tmp_path, world, 4)
