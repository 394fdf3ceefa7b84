"""Copies of the sources with something taken away, which a proof must notice."""

import shutil
from collections.abc import Iterable
from pathlib import Path

SOURCES = Path(__file__).resolve().parents[2] / "native/src"


def replaced(text: str, changes: Iterable[tuple[str, ...]], source: str) -> str:
    """Replace texts of a source, of which each must be there exactly once."""
    for old, new in changes:
        assert text.count(old) == 1, f"{source} has changed; adapt the mutant: {old!r}"
        text = text.replace(old, new)
    return text


def mutated(folder: Path, source: str, changes: Iterable[tuple[str, ...]]) -> Path:
    """Copy the sources and replace texts of one."""
    copies = Path(shutil.copytree(SOURCES, folder / "src"))
    text = (copies / source).read_text()
    (copies / source).write_text(replaced(text, changes, source))
    return copies
