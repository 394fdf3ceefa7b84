"""Vault's face as an OpenAPI document, made of its routes, the first lines of their handlers and text.FIELDS."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable
from typing import Any, Final

from hsmcore.base.version import __version__
from hsmcore.gateway.vault.text import FIELDS

_IN_PATH: Final = re.compile(r"\{(\w+)\}")
_ONLY: Final = {"sign": ("signature",), "verify": ("key_version", "kind", "position")}
"""By handler: fields that its requests do not have."""
_NO_TOKEN: Final = "Needs no token"


def described(routes: Iterable[tuple[str, Collection[str], Callable[..., Any]]]) -> dict[str, Any]:
    """Return the document. `routes`: path, methods and handler of each."""
    paths: dict[str, Any] = {}
    for path, methods, handler in routes:
        if path.endswith("/"):
            continue  # another spelling
        standard = sorted({method.lower() for method in methods} - {"head", "list"})  # LIST is none of OpenAPI's
        paths.setdefault(path, {}).update({method: _operation(path, method, handler) for method in standard})
    token = {"token": {"type": "apiKey", "in": "header", "name": "X-Vault-Token"}}
    about = {"title": "hsmcore gateway, Vault's face", "version": __version__}
    return {"openapi": "3.1.0", "info": about, "paths": paths, "components": {"securitySchemes": token}}


def _operation(path: str, method: str, handler: Callable[..., Any]) -> dict[str, Any]:
    name, said = handler.__name__, (handler.__doc__ or "").strip()
    places = [
        {"name": one, "in": "path", "required": True, "schema": {"type": "string"}} for one in _IN_PATH.findall(path)
    ]
    made: dict[str, Any] = {
        "operationId": "-".join([method, name, *_IN_PATH.findall(path)]),
        "summary": said,
        "parameters": places,
        "responses": {"200": {"description": "the answer"}, "default": {"description": '{"errors": ["…"]}'}},
        "security": [] if _NO_TOKEN in said or path.startswith("/keys") else [{"token": []}],
    }
    if name in _ONLY:
        fields = {
            field: {"type": kind, "description": meaning}
            for field, (kind, meaning) in FIELDS.items()
            if field not in _ONLY[name]
        }
        schema = {"type": "object", "properties": fields}
        made["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    return made
