"""Relative paths in a configuration file: they start at the file's folder."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

from pydantic import BeforeValidator

from hsmcore.config.base import Model, fault, hidden_fault, is_placeholder
from hsmcore.config.secret import Secret

M = TypeVar("M", bound=Model)


def placed(part: M, folder: Path) -> M:
    """Return a part of a configuration with its paths made absolute."""
    changes: dict[str, Any] = {}
    for name, _, value in part.parts():
        if name in part.model_fields_set:  # a default is not a path of the document; nor is a PKCS#11 URI's
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


_BRACES: Final = re.compile(r"\{([^{}]*)\}|[{}]")
_NAME: Final = re.compile(r"env:([A-Za-z_][A-Za-z0-9_]*)")
_VALUE: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,62}[A-Za-z0-9])?")
_SAYS: Final = "{pid} and {env:NAME} are what may stand in braces"


def filled(text: str) -> str:
    """Return a text with its variables put in. Raises a fault of the configuration."""
    return _BRACES.sub(_found, text)


def _found(braces: re.Match[str]) -> str:
    if braces[1] == "pid":
        return str(os.getpid())
    name = _NAME.fullmatch(braces[1] or "")
    if name is None:
        raise fault(_SAYS)
    value = os.environ.get(name[1], "")
    if _VALUE.fullmatch(value) is None:
        # The value is not shown: it may be a secret whose name was put here by mistake.
        problem = "must hold 1 to 64 letters, digits, dots, hyphens and underscores" if value else "is not set"
        raise hidden_fault(f"environment variable {name[1]} {problem}")
    return value


def _where_text(fill: Callable[[str], str]) -> BeforeValidator:
    return BeforeValidator(lambda value: fill(value) if isinstance(value, str) else value)


def _in_the_name(path: str) -> str:
    if "{pid}" in path.rpartition("/")[0]:
        raise fault("{pid} may stand in the file's name only: by default the state store lies in its folder")
    return filled(path)


def _without_pid(path: str) -> str:
    if "{pid}" in path:
        raise fault("must be without {pid}: the next process would begin with an empty store; processes share one")
    return filled(path)


Variables: Final = _where_text(filled)
"""Annotation for addresses."""
LogVariables: Final = _where_text(_in_the_name)
"""Annotation for the audit log's path."""
StateVariables: Final = _where_text(_without_pid)
"""Annotation for the state store's path."""
