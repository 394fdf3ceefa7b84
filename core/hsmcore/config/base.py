"""The base of all configuration models: strict, frozen, camelCase, aware of its own JSON path."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Self
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    GetJsonSchemaHandler,
    PrivateAttr,
    ValidationInfo,
    model_validator,
)
from pydantic.alias_generators import to_camel
from pydantic_core import PydanticCustomError, core_schema

# hsmcore's error types. HIDDEN: the value that was given may hold a secret, so not even a part of it is shown.
FAULT = "hsmcore_fault"
HIDDEN = "hsmcore_hidden"
# CLASH: several keys contradict each other; the text names them, so the given value is not repeated.
CLASH = "hsmcore_clash"

_PLAIN_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_PLACEHOLDER = re.compile(r"<[^<>]*>\Z")


def fault(problem: str) -> PydanticCustomError:
    """Return a validation error with `problem` as its text. Rendering adds the given value."""
    return PydanticCustomError(FAULT, "{problem}", {"problem": problem})


def hidden_fault(problem: str) -> PydanticCustomError:
    """Return a fault whose value must not be shown."""
    return PydanticCustomError(HIDDEN, "{problem}", {"problem": problem})


def clash(problem: str) -> PydanticCustomError:
    """Return a fault of several keys together."""
    return PydanticCustomError(CLASH, "{problem}", {"problem": problem})


def child_path(path: str, step: str | int) -> str:
    """Return `$.a.b` for `$.a` and "b". An index or an unusual key stands in brackets."""
    if isinstance(step, int):
        return f"{path}[{step}]"
    return f"{path}.{step}" if _PLAIN_KEY.match(step) else f"{path}[{step!r}]"


def is_placeholder(value: object) -> bool:
    """Return whether a value is a blank of an example, such as `<cluster-ip>`."""
    return isinstance(value, str) and _PLACEHOLDER.match(value) is not None


class Model(BaseModel):
    """The base of all configuration models. Field names are snake_case here and camelCase in the document."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, alias_generator=to_camel, hide_input_in_errors=True, defer_build=True
    )
    _where: str = PrivateAttr(default="$")
    PATHS: ClassVar[frozenset[str]] = frozenset()
    """The fields that name files or folders: in a document's file, relative ones start at that file's folder."""

    @property
    def where(self) -> str:
        """The JSON path that this part of the configuration was loaded from."""
        return self._where

    def locate(self, path: str) -> None:
        """Set `where`. Only the loader calls it."""
        self._where = path

    def with_parts(self, changes: Mapping[str, Any]) -> Self:
        """Return a copy with other values in some fields, which are not validated again."""
        return self.model_copy(update=changes)

    @classmethod
    def referred(cls) -> core_schema.CoreSchema:
        """Return the core schema by which a JSON Schema refers to the model instead of containing it: the handler of
        a JSON Schema takes the outermost schema for the one that it was asked about."""
        return core_schema.chain_schema([cls.__pydantic_core_schema__])

    def parts(self) -> Iterator[tuple[str, str, object]]:
        """Yield each field's name, its key in the document, and its value."""
        for name, field in type(self).model_fields.items():
            yield name, field.alias or name, getattr(self, name)

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """Return the JSON Schema of the model, with what its source says about each key."""
        from hsmcore.config.described import descriptions

        made = handler(schema)
        properties = handler.resolve_ref_schema(made).get("properties", {})
        for each in properties.values():
            each.pop("title", None)  # pydantic's, which is the key again
        for name, said in descriptions(cls).items():
            key = cls.model_fields[name].alias if name in cls.model_fields else None
            if key in properties:
                properties[key]["description"] = said
        return made

    @model_validator(mode="before")
    @classmethod
    def _note_known_keys(cls, value: Any, info: ValidationInfo) -> Any:
        cls.note_known_keys(value, info)
        return value

    @classmethod
    def note_known_keys(cls, value: object, info: ValidationInfo) -> None:
        """Collect the allowed keys for the loader's "did you mean", by the identity of their object."""
        if isinstance(value, dict) and isinstance(info.context, dict):
            info.context[id(value)] = tuple(field.alias or name for name, field in cls.model_fields.items())


def located(value: object, path: str) -> Iterator[tuple[str, object]]:
    """Yield a part of a configuration, which stands at `path`, and each part of it, with its JSON path."""
    yield path, value
    if isinstance(value, Model):
        for name, key, part in value.parts():
            # A PIN that is set but not given comes from the PKCS#11 URI of the same block.
            from_uri = name == "pin" and name not in value.model_fields_set
            yield from located(part, child_path(path, "uri" if from_uri else key))
    elif isinstance(value, (tuple, list, frozenset)):
        for index, item in enumerate(value):
            yield from located(item, child_path(path, index))
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from located(item, child_path(path, key))


class Whole:
    """Annotation for int: a whole number from `low` to `high`, no bool, float or string of digits."""

    def __init__(self, low: int, high: int) -> None:
        self.low, self.high = low, high

    def __get_pydantic_core_schema__(self, _source: Any, _handler: Any) -> core_schema.CoreSchema:
        return core_schema.no_info_before_validator_function(self._check, core_schema.int_schema(strict=True))

    def __get_pydantic_json_schema__(self, _schema: Any, _handler: Any) -> dict[str, Any]:
        return {"type": "integer", "minimum": self.low, "maximum": self.high}

    def _check(self, value: object) -> object:
        if type(value) is not int or not self.low <= value <= self.high:
            raise fault(f"must be a whole number from {self.low} to {self.high}")
        return value


class Text:
    """Annotation for str: not empty, no control characters, at most `most` UTF-8 bytes, of the given form."""

    def __init__(self, most: int, *, form: str = "", says: str = "", hidden: bool = False) -> None:
        self.most, self.form, self.hidden = most, re.compile(form or r"(?s).*"), hidden
        self._pattern = {"pattern": f"^(?:{form})$"} if form else {}
        self.problem = "must be " + (says or f"a string of 1 to {most} bytes without control characters")

    def __get_pydantic_core_schema__(self, _source: Any, _handler: Any) -> core_schema.CoreSchema:
        return core_schema.no_info_before_validator_function(self._check, core_schema.str_schema(strict=True))

    def __get_pydantic_json_schema__(self, _schema: Any, _handler: Any) -> dict[str, Any]:
        # A character has one byte at least.
        return {"type": "string", "minLength": 1, "maxLength": self.most, **self._pattern}

    def _check(self, value: object) -> object:
        if (
            not isinstance(value, str)
            or not value
            or any(ord(c) < 0x20 or 0x7F <= ord(c) < 0xA0 or 0xD800 <= ord(c) < 0xE000 for c in value)
            or len(value.encode()) > self.most
            or self.form.fullmatch(value) is None
        ):
            raise (hidden_fault if self.hidden else fault)(self.problem)
        return value


_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})


def _no_clear_text(value: str) -> str:
    if not value.startswith("https:") and urlsplit(value).hostname not in _LOOPBACK:
        raise fault("must begin with https://, except on this machine's own loopback")
    return value


EndpointUrl = Annotated[
    str, Text(2048, form=r"https?://[^\s@?#]+", says="an http(s) URL"), AfterValidator(_no_clear_text)
]
"""The address of an AWS service."""


def each_once(what: str, *, least: int = 1) -> AfterValidator:
    """Return an annotation for a tuple: `least` ones at least, each once."""
    problem = f"must list at least one {what}, each once" if least else f"must list each {what} once"

    def check(value: tuple[object, ...]) -> tuple[object, ...]:
        if len(value) < least or len(set(value)) != len(value):
            raise clash(problem)
        return value

    return AfterValidator(check)


def as_tuple(value: object) -> object:
    """Return a list as a tuple, for BeforeValidator: JSON has lists, frozen models have tuples."""
    return tuple(value) if isinstance(value, list) else value
