"""`python -m tests.simulation`: run worlds by their seeds, replay one with its story, shrink one that fails."""

from __future__ import annotations

from tests.simulation.install import install

install()

from tests.simulation.run import main  # noqa: E402  # after what replaces time and threads

if __name__ == "__main__":
    raise SystemExit(main())
