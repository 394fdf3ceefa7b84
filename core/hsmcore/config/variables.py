"""Paths and addresses that differ from process to process: `{pid}` and `{env:NAME}` in a few values.

They are put in when the configuration is loaded, so each process loads its own.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import Final

from pydantic import BeforeValidator

from hsmcore.config.base import fault, hidden_fault

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
