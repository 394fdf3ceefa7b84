"""Log and store are deleted, replaced, copied over, cut, appended to, renamed under a key manager that signs: each way
in which that happens, and what came of it. `make check-deep`; test_log_and_store.py has a share."""

from __future__ import annotations

import asyncio

import pytest
from tests.support.log_and_store import CHANGES, Trial


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_told_and_nothing_is_signed_after_it(world, tmp_path, capsys, name):
    trial = Trial(world, tmp_path / "place")
    seen = asyncio.run(trial.run(CHANGES[name]))
    with capsys.disabled():
        print(f"\n{name}\n    {seen}")  # noqa: T201
