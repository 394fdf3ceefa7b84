"""A plugin of pytest: random examples are the same each time, and one that fails is not made smaller."""

from __future__ import annotations

from hypothesis import Phase, settings


def pytest_sessionstart() -> None:
    """After conftest.py, and before the tests are loaded."""
    phases = (Phase.explicit, Phase.generate)
    parent = settings.get_profile("hsmcore")
    settings.register_profile("mutants", parent, derandomize=True, database=None, phases=phases)
    settings.load_profile("mutants")
