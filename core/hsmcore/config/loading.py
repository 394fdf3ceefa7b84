"""Read a configuration from a file or a dict, check all of it, and report all faults at once."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final, NoReturn, TypeVar

from pydantic import ValidationError

from hsmcore.base.log import get_logger
from hsmcore.base.ownership import foreign
from hsmcore.config.base import Model, child_path, located
from hsmcore.config.faults import faults_of, unknown_key
from hsmcore.config.placed import placed
from hsmcore.config.root import SINGLE, Config
from hsmcore.config.secret import Secret
from hsmcore.config.several import KeyManagersConfig, checked_names, choose, clashes
from hsmcore.errors import ConfigFault, ConfigurationError

Source = Mapping[str, Any] | str | os.PathLike[str] | Config
"""The forms of a configuration: a dict, a path of a JSON file, or a Config."""

M = TypeVar("M", bound=Model)

SCHEMA: Final = "$schema"
"""The key of a document that names its JSON Schema: see `schema`."""
_MAX_FILE_BYTES = 4 << 20
_PLAIN: Final = 'secret in plain text in the configuration: use {"env": …}, {"file": …} or {"awsSecretsManager": …}'
_BLANK: Final = "placeholder in the configuration: put in the real value"
_NAME_ONE: Final = "Name one: load(config, name). All of them together: create_key_managers(config)."


def load(source: Source, key_manager: str | None = None) -> Config:
    """Check a configuration and return it.

    `source` is a dict, the path of a JSON file, or a Config (returned as it is). The key manager stands at
    `sequencer.keyManager` or at `keyManager`; of several, at `keyManagers`, `key_manager` names one. Raises
    ConfigurationError, whose `faults` lists each fault with its JSON path. Secrets are not resolved here, so a missing
    variable is found at `initialize()`. In a file, relative paths start at the file's
    folder, so a file means the same in every working directory. In a dict they start at the working directory.
    """
    return source if isinstance(source, Config) else choose(load_each(source), key_manager, _NAME_ONE)


def load_each(source: Source, *, warns: bool = True) -> dict[str, Config]:
    """Check a configuration as `load` does. Return those of its key managers by name, in the document's order; one at
    `keyManager` is named "default". `warns`: False leaves `warn_of` to the caller."""
    configs = _each(source)
    if warns and not isinstance(source, Config):
        warn_of(configs.values())
    return configs


def warn_of(configs: Iterable[Config], reported: tuple[str, ...] = ()) -> None:
    """Log secrets in plain text and placeholders, apart from those below the JSON paths that are reported otherwise."""
    plain = [(_PLAIN, path) for config in configs for path in config.plain_secrets]
    blank = [(_BLANK, path) for config in configs for path in config.placeholders]
    for warning, path in dict.fromkeys(plain + blank):
        if not path.startswith(reported):
            get_logger().warning(warning, path=path)


def _each(source: Source) -> dict[str, Config]:
    if isinstance(source, Config):
        return {source.key_manager.manager or SINGLE: source}
    if isinstance(source, Mapping):
        return _apart(_checked(dict(source), "configuration"), "configuration")
    if isinstance(source, (str, os.PathLike)):
        path = os.fspath(source)
        if isinstance(path, str):
            source = _named(path)
            folder = Path(os.path.abspath(path)).parent  # noqa: PTH100  # no links are resolved: one may be exchanged
            configs = {key: placed(config, folder) for key, config in _checked(_read(path), source).items()}
            return _apart(configs, source)
    raise ConfigurationError.of(
        [ConfigFault("$", f"must be a dict, a path or a Config, not a {type(source).__name__}")]
    )


def _checked(document: object, source: str) -> dict[str, Config]:
    if not isinstance(document, dict):
        _refuse("$", "must be an object", source)
    if isinstance(document.get(SCHEMA), str):  # for editors
        document = {key: value for key, value in document.items() if key != SCHEMA}
    body: object = document
    path = "$"
    if "sequencer" in document:
        if len(document) > 1:
            others = [child_path("$", str(key)) for key in document if key != "sequencer"]
            problem = "unknown key beside sequencer, in which everything stands"
            raise ConfigurationError.of((ConfigFault(where, problem) for where in others), source=source)
        body, path = document["sequencer"], "$.sequencer"
    if not isinstance(body, dict):
        _refuse(path, "must be an object", source)
    if "keyManagers" in body:
        if "keyManager" in body:
            _refuse(child_path(path, "keyManagers"), "stands beside keyManager: give one of them", source)
        body, faults = checked_names(body, path)
        return _valid(KeyManagersConfig, body, path, source, faults).each()
    if "keyManager" not in body:
        # Without it nothing below can be checked; the keys that are there are most likely a misspelling of it.
        faults = [ConfigFault(child_path(path, "keyManager"), "is required")]
        allowed = ("keyManager", "keyManagers", *(("sequencer",) if path == "$" else ()))
        faults += [ConfigFault(child_path(path, str(key)), unknown_key(str(key), allowed)) for key in body]
        raise ConfigurationError.of(faults, source=source)
    return {SINGLE: _valid(Config, body, path, source, [])}


def _valid(model: type[M], body: object, path: str, source: str, faults: list[ConfigFault]) -> M:
    """Return the model of a document's body, which stands at `path`. `faults`: those that were found already."""
    known: dict[int, tuple[str, ...]] = {}
    made: M | None = None
    try:
        made = model.model_validate(body, context=known)
    except ValidationError as error:
        faults = faults + faults_of(error, body, path, known)
    # Raised outside the handler: pydantic's error holds the document and its secrets, and must not be the context.
    if made is None or faults:
        raise ConfigurationError.of(faults, source=source)
    for where, part in located(made, path):
        if isinstance(part, (Model, Secret)):
            part.locate(where)
    return made


def changed(part: M, where: str, **changes: object) -> M:
    """Return a part of a configuration, which stands at `where`, with other values for some of the document's keys.
    Raises ConfigurationError if they contradict the rest of it."""
    given = {field.alias or name: getattr(part, name) for name, field in type(part).model_fields.items()} | changes
    return _valid(type(part), given, where, "configuration", [])


def _apart(configs: dict[str, Config], source: str) -> dict[str, Config]:
    """Return the configurations. Raises ConfigurationError if two of them share what only one may have."""
    if faults := list(clashes(configs)):
        raise ConfigurationError.of(faults, source=source)
    return configs


def _refuse(path: str, problem: str, source: str) -> NoReturn:
    raise ConfigurationError.of([ConfigFault(path, problem)], source=source)


class _Object(dict[str, Any]):
    """A JSON object with the keys that were given twice: a JSON parser takes the last one in silence."""

    repeated: tuple[str, ...] = ()


def _object(pairs: list[tuple[str, Any]]) -> _Object:
    made = _Object(pairs)
    if len(made) != len(pairs):
        names = [key for key, _ in pairs]
        made.repeated = tuple(key for key in made if names.count(key) > 1)
    return made


def _not_a_number(_name: str) -> NoReturn:
    raise ValueError


def _named(path: str) -> str:
    return f"configuration {path}" if path.isprintable() else "configuration"


def _read(path: str) -> object:
    if path.lstrip().startswith("{"):
        raise ConfigurationError.of([ConfigFault("$", "is JSON text; give a dict, or the path of a file")])
    source, raw = _named(path), b""
    problem = ""
    try:
        with Path(path).open("rb") as file:
            problem = foreign(Path(path), file.fileno(), root_takes_all=True)
            raw = file.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        problem = f"the file cannot be read: {os.strerror(error.errno or 0)}"
    except ValueError:
        problem = "the path holds a NUL character"
    if len(raw) > _MAX_FILE_BYTES:
        problem = f"the file is longer than {_MAX_FILE_BYTES} bytes"
    document: object = None
    if not problem:
        document, problem = _parse(raw)
    # Raised outside the handler: the parser's error holds the whole text with its secrets.
    if problem:
        _refuse("$", problem, source)
    faults: list[ConfigFault] = []
    _find_repeated(document, "$", faults)
    if faults:
        raise ConfigurationError.of(faults, source=source)
    return document


def _parse(raw: bytes) -> tuple[object, str]:
    try:
        text = raw.decode("utf-8-sig")
        return json.loads(text, object_pairs_hook=_object, parse_constant=_not_a_number), ""
    except UnicodeDecodeError as error:
        return None, f"the file is not UTF-8 (byte {error.start})"
    except json.JSONDecodeError as error:
        return None, f"not JSON at line {error.lineno}, column {error.colno}: {_meant(error)}"
    except RecursionError:
        return None, "the document is nested too deeply"
    except ValueError:
        return None, "NaN, Infinity and numbers of thousands of digits are not allowed"


def _meant(error: json.JSONDecodeError) -> str:
    """Return what is wrong in a text that is nearly JSON: each version of Python words it in its own way."""
    before, rest = error.doc[: error.pos].rstrip(), error.doc[error.pos :]
    if rest.startswith(("//", "/*", "#")):
        return "JSON has no comments"
    if re.match(r"[\s,]*[}\]]", rest) and "," in (before[-1:], rest[:1]):
        return "JSON has no comma behind the last member"
    return error.msg


def _find_repeated(value: object, path: str, faults: list[ConfigFault]) -> None:
    if isinstance(value, _Object):
        faults.extend(ConfigFault(child_path(path, key), "is given more than once") for key in value.repeated)
        for key, item in value.items():
            _find_repeated(item, child_path(path, key), faults)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _find_repeated(item, child_path(path, index), faults)
