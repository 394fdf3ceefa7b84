"""The JSON Schema of a configuration file: `hsmcore config schema`."""

from __future__ import annotations

from typing import Any, Final

from pydantic.json_schema import models_json_schema

from hsmcore.config.root import Config
from hsmcore.config.several import KeyManagersConfig

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
_STEP: Final = "#/$defs/"


def document_schema() -> dict[str, Any]:
    """Return the JSON Schema of a configuration file. Types of providers that other distributions add are included."""
    _, made = models_json_schema([(Config, "validation"), (KeyManagersConfig, "validation")])
    parts = made["$defs"]
    one, several = parts.pop(Config.__name__), parts.pop(KeyManagersConfig.__name__)
    body = {
        "type": "object",
        "properties": several["properties"] | one["properties"],
        "additionalProperties": False,
        "oneOf": [{"required": ["keyManager"]}, {"required": ["keyManagers"]}],
    }
    reference = {"type": "string", "description": "The place of this schema, for editors. hsmcore does not read it."}
    inner = {"description": "All of the configuration may stand in this object.", "$ref": f"{_STEP}Document"}
    return {
        "$schema": DIALECT,
        "title": "hsmcore configuration",
        "type": "object",
        "properties": {"$schema": reference, "sequencer": inner} | body["properties"],
        "additionalProperties": False,
        "oneOf": [{"required": ["sequencer"]}, *body["oneOf"]],
        "$defs": dict(sorted((parts | {"Document": body}).items())),
    }
