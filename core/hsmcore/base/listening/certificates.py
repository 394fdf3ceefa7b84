"""Files of certificates and keys: which one cannot be read, since the errors of `ssl` name none."""

from __future__ import annotations

from pathlib import Path


def require_readable(*paths: str | Path | None) -> None:
    """Open each file that is given. Raises OSError, which names the file."""
    for path in paths:
        if path is not None:
            with Path(path).open("rb"):
                pass
