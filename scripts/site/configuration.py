"""The reference of the configuration, from its JSON Schema."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, Final

from hsmcore.config.schema import document_schema

_UNITS: Final = {
    "PerSecond": "a second",
    "PerMinute": "a minute",
    "Ms": "ms",
    "Micros": "µs",
    "Seconds": "s",
    "Hours": "h",
    "Days": "d",
    "Bytes": "bytes",
}
"""The units that ends of keys name."""
_TITLES: Final = {"Document": "The document", "Provider": "A member of a level", "SecretReference": "A secret"}
_INTRODUCTION: Final = """\
# Configuration reference

Every key of a configuration file, from the models that check it. `hsmcore config schema` prints the same as a JSON
Schema. [Configuration](../docs/EMBEDDING.md#configuration) says how a file is found, what its relative paths start at,
and how secrets are named.

"Required" keys have no default. A range includes its ends. The page of each subject says what the keys do together.
"""


def page() -> str:
    """Return the page. Raises ValueError for a key without a description."""
    schema = document_schema()
    parts = schema["$defs"]
    sections = [_section(name, path, parts) for name, path in _walk(parts)]
    return "\n".join([_INTRODUCTION, *sections])


def _walk(parts: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield each object once, with a path at which it stands, in the order in which a reader meets them."""
    queue = [("Document", "")]
    seen = {"Document"}
    while queue:
        name, path = queue.pop(0)
        yield name, path
        inner = []
        for key, value in parts[name].get("properties", {}).items():
            where = f"{path}.{key}".lstrip(".")
            inner += [(found, where) for found in _references(value)]
        for case in parts[name].get("allOf", []):
            kind = case["if"]["properties"]["type"]["const"]
            inner += [(found, f'config of "{kind}"') for found in _references(case["then"])]
        first: dict[str, str] = {}
        for found, where in inner:
            if found not in seen:
                first.setdefault(found, where)
        queue += first.items()
        seen |= first.keys()


def _section(name: str, path: str, parts: dict[str, Any]) -> str:
    part = parts[name]
    title = _TITLES.get(name) or (path if " " in path else f"`{path}`")
    lines = [f"({_anchor(name)})=", f"## {title}", "", _markdown(part.get("description", "")), ""]
    lines += ["| key | value | default | meaning |", "|---|---|---|---|"]
    required = part.get("required", [])
    if name == "SecretReference":
        lines[3] += " A string in the place of the object is the secret itself, in plain text: for tests."
    for key, value in part.get("properties", {}).items():
        if not value.get("description"):
            raise ValueError(f"{name}.{key} has no description: write one under the field in core/hsmcore/config")
        default = "required" if key in required else _default(value)
        meaning = re.sub(r"\s+", " ", value["description"])
        kind = _by_type(part) if key == "config" and "allOf" in part else _kind(key, value)
        lines.append(f"| `{key}` | {kind} | {default} | {_markdown(meaning).replace('|', chr(92) + '|')} |")
    return "\n".join([*lines, ""])


def _by_type(part: dict[str, Any]) -> str:
    """Return links to the settings of each type of provider."""
    cases = [(case["if"]["properties"]["type"]["const"], *_references(case["then"])) for case in part["allOf"]]
    return "object of " + ", ".join(f"[{kind}](#{_anchor(name)})" for kind, name in cases)


def _kind(key: str, value: dict[str, Any]) -> str:
    """Return what a value may be: its type, range and unit."""
    forms = [form for form in value.get("anyOf", [value]) if form.get("type") != "null"]
    if any(form.get("$ref", "").endswith("/SecretReference") for form in forms):
        forms = forms[:1]  # the other form is plain text, which its section describes
    return " or ".join(dict.fromkeys(_form(key, form) for form in forms))


def _form(key: str, form: dict[str, Any]) -> str:
    if "$ref" in form:
        name = form["$ref"].rpartition("/")[2]
        return f"[{'secret' if name == 'SecretReference' else 'object'}](#{_anchor(name)})"
    if "allOf" in form:
        return _form(key, form["allOf"][0])
    if "enum" in form:
        return ", ".join(f'`"{choice}"`' for choice in form["enum"])
    if "const" in form:
        return f"`{json.dumps(form['const'])}`"
    kind = form.get("type", "")
    if kind == "array":
        return f"list of {_form(key, form['items'])}" if "items" in form else "list"
    if kind == "object" and isinstance(form.get("additionalProperties"), dict):
        return f"{_form(key, form['additionalProperties'])} by name"
    if kind == "integer":
        unit = next((said for end, said in _UNITS.items() if key.endswith(end)), "")
        return f"{form['minimum']:,} to {form['maximum']:,} {unit}".rstrip()
    return {"boolean": "`true`, `false`"}.get(kind, kind)


def _default(value: dict[str, Any]) -> str:
    default = value.get("default")
    if default is None or isinstance(default, dict):
        return ""
    return f"`{json.dumps(default)}`"


def _references(value: Any) -> Iterator[str]:
    """Yield the objects that a part of the schema refers to."""
    if isinstance(value, dict):
        if "$ref" in value:
            yield value["$ref"].rpartition("/")[2]
        for inner in value.values():
            yield from _references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _references(inner)


def _anchor(name: str) -> str:
    return "config-" + re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", name).lower()


def _markdown(text: str) -> str:
    return text.replace("<", "\\<").replace("*", "\\*")
