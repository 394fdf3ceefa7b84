"""Relative paths in a configuration file: they start at the file's folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from hsmcore.config.base import Model, is_placeholder
from hsmcore.config.secret import Secret

M = TypeVar("M", bound=Model)


def placed(part: M, folder: Path) -> M:
    """Return a part of a configuration with its paths made absolute."""
    changes: dict[str, Any] = {}
    for name, _, value in part.parts():
        if name in part.model_fields_set:  # a default is no path of the document; nor is what a PKCS#11 URI says
            new = _placed(value, name in part.PATHS, folder)
            if new is not value:
                changes[name] = new
    return part.with_parts(changes) if changes else part


def _placed(value: Any, is_path: bool, folder: Path) -> Any:
    """Return `value` itself if nothing in it changes."""
    if isinstance(value, Model):
        return placed(value, folder)
    if isinstance(value, Secret):
        if value.path is None:
            return value
        path = _absolute(value.path, folder)
        return value if path == value.path else value.moved(path)
    if isinstance(value, str) and is_path:
        return _absolute(value, folder)
    if isinstance(value, tuple):
        made = tuple(_placed(one, is_path, folder) for one in value)
        return value if all(one is other for one, other in zip(made, value, strict=True)) else made
    if isinstance(value, dict):
        parts = {key: _placed(one, is_path, folder) for key, one in value.items()}
        return value if all(parts[key] is value[key] for key in parts) else parts
    return value


def _absolute(path: str, folder: Path) -> str:
    """Return the path; `path` itself if it is absolute, an address (s3://) or an example's blank."""
    given = Path(path).is_absolute() or "://" in path or is_placeholder(path)
    return path if given else str(folder / path)
