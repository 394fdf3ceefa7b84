"""The reference of the Python interface, from its docstrings."""

from __future__ import annotations

import importlib
import inspect
from typing import Any, Final

MODULES: Final = {
    "hsmcore": "Key managers, and what they return",
    "hsmcore.errors": "Exceptions",
    "hsmcore.gateway": "The gateway's client",
    "hsmcore.handover": "Handovers of rotations",
    "hsmcore.handover.rpc": "A client of Solana's RPC",
    "hsmcore.handover.solana": "Handovers on Solana",
    "hsmcore.metrics": "Metrics",
    "hsmcore.serve": "Metrics, health and the console, inside an application",
    "hsmcore.solana": "Transactions",
    "hsmcore.testing": "Tokens for the tests of an application",
    "hsmcore.tracing": "Spans",
}
"""The modules that other programs import, with titles of their pages: as in tests/unit/test_public_names.py."""
_INDEX: Final = """\
# Python reference

Every public name, with its docstring. What is not here is internal and changes without notice.
"""


def pages() -> dict[str, str]:
    """Return the pages, by their paths."""
    made = {f"reference/python/{name}.md": _page(name, title) for name, title in MODULES.items()}
    rows = [f"| [{name}]({name}.md) | {title} |" for name, title in MODULES.items()]
    listed = "\n".join(["| module | what it has |", "|---|---|", *rows])
    toctree = "\n".join(["```{toctree}", ":hidden:", "", *MODULES, "```"])
    return made | {"reference/python/index.md": f"{_INDEX}\n{listed}\n\n{toctree}\n"}


def public(name: str) -> list[str]:
    """Return `__all__`, or the classes and functions that a module without one defines."""
    module = importlib.import_module(name)
    if hasattr(module, "__all__"):
        return sorted(module.__all__)
    found = inspect.getmembers(module, lambda value: inspect.isclass(value) or inspect.isroutine(value))
    return sorted(key for key, value in found if not key.startswith("_") and value.__module__ == name)


def _page(name: str, title: str) -> str:
    module = importlib.import_module(name)
    groups: dict[str, list[str]] = {"Functions": [], "Classes": [], "Exceptions": [], "Values": []}
    for each in public(name):
        groups[_group(getattr(module, each))].append(each)
    lines = [f"# {name}", "", f"{title}.", ""]
    for group, names in groups.items():
        if names:
            lines += [f"## {group}", ""]
        for each in names:
            lines += ["```{eval-rst}", *_directive(name, each, getattr(module, each)), "```", ""]
    return "\n".join(lines)


def _group(value: Any) -> str:
    if inspect.isclass(value):
        return "Exceptions" if issubclass(value, BaseException) else "Classes"
    return "Functions" if callable(value) else "Values"


def _directive(module: str, name: str, value: Any) -> list[str]:
    full = f"{module}.{name}"
    if inspect.isclass(value):
        if issubclass(value, BaseException):
            # Those of the package are described once, in the module of errors.
            again = ["   :no-index:"] if module == "hsmcore.errors" else []
            return [f".. autoexception:: {full}", "   :members:", "   :show-inheritance:", *again]
        return [f".. autoclass:: {full}", "   :members:", "   :show-inheritance:"]
    return (
        [f".. autofunction:: {full}"]
        if callable(value)
        else [f".. py:data:: {full}", f"   :type: {type(value).__name__}"]
    )
