"""Descriptions of the keys, from the source of the models. Read when a JSON Schema is made: importing costs nothing."""

from __future__ import annotations

import ast
import inspect
import sys
from functools import cache


def descriptions(model: type) -> dict[str, str]:
    """Return what the docstrings under the fields of a model say, by the fields' names; those of its bases included.
    Without the source files, return nothing."""
    found: dict[str, str] = {}
    for base in reversed(model.__mro__):
        found |= _of_module(base.__module__).get(base.__name__, {})
    return found


@cache
def _of_module(name: str) -> dict[str, dict[str, str]]:
    """Return the docstrings under the annotated names of each class of a module."""
    try:
        tree = ast.parse(inspect.getsource(sys.modules[name]))
    except (KeyError, OSError, TypeError, SyntaxError):
        return {}
    return {node.name: _of_class(node) for node in tree.body if isinstance(node, ast.ClassDef)}


def _of_class(node: ast.ClassDef) -> dict[str, str]:
    found = {}
    for field, after in zip(node.body, node.body[1:], strict=False):
        if not isinstance(field, ast.AnnAssign) or not isinstance(field.target, ast.Name):
            continue
        if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) and isinstance(after.value.value, str):
            found[field.target.id] = inspect.cleandoc(after.value.value).replace("\n", " ")
    return found
