"""Copies of the sources with something taken away, which a proof must notice."""

import shutil
from collections.abc import Iterable
from pathlib import Path

SOURCES = Path(__file__).resolve().parents[2] / "native/src"


def mutated(folder: Path, source: str, changes: Iterable[tuple[str, ...]]) -> Path:
    """Copy the sources and replace texts of one, of which each must be there exactly once."""
    copies = Path(shutil.copytree(SOURCES, folder / "src"))
    text = (copies / source).read_text()
    for old, new in changes:
        assert text.count(old) == 1, f"{source} has changed; adapt the mutant: {old!r}"
        text = text.replace(old, new)
    (copies / source).write_text(text)
    return copies
