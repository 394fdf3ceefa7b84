"""Log and store are changed by another program under a key manager that signs: nothing is signed after it, it is told,
and no later life signs a position twice. log_and_store_at_length.py has all ways in which that happens."""

from __future__ import annotations

import pytest
from tests.support.log_and_store import CHANGES, judged


@pytest.mark.parametrize("name", list(CHANGES)[::10])
def test_some_changes(world, tmp_path, name):
    judged(world, tmp_path / "place", name)
