"""`audit verify`, `query`, `prove` and `mend` beside signers that rotate their files: 500 runs. `make check-deep`;
test_audit_beside.py has a few."""

from __future__ import annotations

import pytest
from tests.support.audit_beside import look, signing

VERBS = ("verify", "query", "prove", "mend")
RUNS, SIGNERS = 10, 50
"""Of each signer, whose log grows by some thousand records a second; and how many signers there are."""


@pytest.mark.usefixtures("terminal")
def test_five_hundred_runs_find_nothing_wrong(tmp_path):
    wrong = []
    for number in range(SIGNERS):
        folder = tmp_path / str(number)
        folder.mkdir()
        with signing(folder) as layout:
            runs = range(number * RUNS, (number + 1) * RUNS)
            wrong += [found for run in runs if (found := look(layout, VERBS[run % 4], run))]
    assert wrong == []
