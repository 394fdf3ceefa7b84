"""Relative paths in a configuration file: they start at the file's folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, TypeVar

from hsmcore.config.base import Model, child_path, is_placeholder
from hsmcore.config.secret import Secret

M = TypeVar("M", bound=Model)


def placed(part: M, folder: Path, left: dict[str, str]) -> M:
    """Return a part of a configuration with its paths made absolute. `left`: gets the problem of each file that stands
    in the working directory and not in the folder, by the JSON path that names it."""
    changes: dict[str, Any] = {}
    for name, _, value in part.parts():
        if name in part.model_fields_set:  # a default is no path of the document; nor is what a PKCS#11 URI says
            new = _placed(value, part.where_of(name), name in part.PATHS, folder, left)
            if new is not value:
                changes[name] = new
    return part.with_parts(changes) if changes else part


def _placed(value: Any, where: str, is_path: bool, folder: Path, left: dict[str, str]) -> Any:
    """Return `value` itself if nothing in it changes."""
    if isinstance(value, Model):
        return placed(value, folder, left)
    if isinstance(value, Secret):
        if value.path is None:
            return value
        path = _absolute(value.path, child_path(value.where, "file"), folder, left)
        return value if path == value.path else value.moved(path)
    if isinstance(value, str) and is_path:
        return _absolute(value, where, folder, left)
    if isinstance(value, tuple):
        made = tuple(_placed(one, child_path(where, i), is_path, folder, left) for i, one in enumerate(value))
        return value if all(one is other for one, other in zip(made, value, strict=True)) else made
    if isinstance(value, dict):
        parts = {key: _placed(one, child_path(where, str(key)), is_path, folder, left) for key, one in value.items()}
        return value if all(parts[key] is value[key] for key in parts) else parts
    return value


def _absolute(path: str, where: str, folder: Path, left: dict[str, str]) -> str:
    """Return the path; `path` itself if it is absolute, an address (s3://) or an example's blank."""
    if Path(path).is_absolute() or "://" in path or is_placeholder(path):
        return path
    there = folder / path
    if os.path.exists(path) and not os.path.exists(there):  # noqa: PTH110  # never raises
        left[where] = (
            f"starts at the configuration's folder: {there}; move {Path(path).absolute()} there, or name it so"
        )
    return str(there)
