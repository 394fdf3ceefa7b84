"""Fresh virtual environments, with no more in them than a test puts there; without an index."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

NEEDED = ("cryptography", "cffi", "_cffi_backend")
"""What verifying imports; the last is of one version of Python."""


class Environment:
    """A virtual environment in a folder."""

    def __init__(self, folder: Path, interpreter: Path = Path(sys.executable)) -> None:
        subprocess.run([interpreter, "-m", "venv", "--without-pip", folder], check=True)
        self.python = folder / "bin" / "python"
        [self.packages] = folder.glob("lib/python3.*/site-packages")

    def install(self, *wheels: Path) -> None:
        """Install files, and nothing for which they ask."""
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", "--python", self.python, "install"]
        subprocess.run([*pip, "--no-index", "--no-deps", *wheels], check=True)

    def lend(self, *names: str) -> None:
        """Let it see packages that are installed beside the tests."""
        for name in names:
            spec = find_spec(name)
            assert spec is not None, name
            assert spec.origin is not None, name
            place = Path(spec.origin)
            place = place.parent if place.stem == "__init__" else place
            (self.packages / place.name).symlink_to(place)

    def run(self, *arguments: str | Path) -> str:
        """What Python prints there, isolated from everything around it."""
        done = subprocess.run([self.python, "-I", *arguments], capture_output=True, text=True, check=False, timeout=100)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout
