"""A page for each program of examples/."""

from __future__ import annotations

from pathlib import Path
from typing import Final

_LANGUAGES: Final = {".py": "python", ".mjs": "javascript", ".sh": "bash"}


def pages(root: Path) -> dict[str, str]:
    """Return the pages, by their paths."""
    made = {}
    for path in sorted((root / "examples").iterdir()):
        if path.suffix in _LANGUAGES:
            fence = f"``````{_LANGUAGES[path.suffix]}\n{path.read_text().rstrip()}\n``````"
            made[f"examples/{path.name}.md"] = f"# {path.name}\n\n{fence}\n"
    return made
