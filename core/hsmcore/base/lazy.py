"""Names of a package that are loaded when they are used, so that a program pays only for what it needs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from hsmcore.base.extras import install


def names(package: str, homes: Mapping[str, list[str]], extra: str | None = None) -> Callable[[str], Any]:
    """Return the `__getattr__` of a package. `homes`: by module of the package, the names that it defines. `extra`:
    what brings the packages that may be missing."""
    found = {name: module for module, defined in homes.items() for name in defined}

    def load(name: str) -> Any:
        if name not in found:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        try:
            module = import_module(f"{package}.{found[name]}")
        except ModuleNotFoundError as error:
            if extra is None:
                raise
            text = f"{error.name} is not installed: {install(extra)}"
            raise ModuleNotFoundError(text, name=error.name) from error
        value = getattr(module, name)
        setattr(sys.modules[package], name, value)
        return value

    return load
