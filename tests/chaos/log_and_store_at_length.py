"""Log and store are deleted, replaced, copied over, cut, appended to, renamed under a key manager that signs: each way
in which that happens, and what came of it. `make check-deep`; test_log_and_store.py has a share."""

from __future__ import annotations

import pytest
from tests.support.log_and_store import CHANGES, judged


@pytest.mark.parametrize("name", CHANGES)
def test_each_change(world, tmp_path, capsys, name):
    seen = judged(world, tmp_path / "place", name)
    with capsys.disabled():
        print(f"\n{name}: {seen.after} after; {seen.told[:40]}; {seen.found[:60]}; {seen.start[:40]}")  # noqa: T201
