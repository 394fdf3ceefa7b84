"""Read a configuration from a file or a dict, check all of it, and report all faults at once."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from pydantic import ValidationError
from pydantic.alias_generators import to_camel

from hsmcore.config.base import Model, child_path
from hsmcore.config.faults import faults_of, unknown_key
from hsmcore.config.root import Config
from hsmcore.config.secret import Secret
from hsmcore.errors import ConfigFault, ConfigurationError
from hsmcore.log import get_logger

Source = Mapping[str, Any] | str | os.PathLike[str] | Config
"""The forms of a configuration: a dict, a path of a JSON file, or a Config."""

_MAX_FILE_BYTES = 4 << 20


def load(source: Source) -> Config:
    """Check a configuration and return it.

    `source` is a dict, the path of a JSON file, or a Config (returned as it is). The key manager stands at
    `sequencer.keyManager` or at `keyManager`. Raises ConfigurationError, whose `faults` lists each fault with its JSON
    path. Secrets are not resolved here, so a missing variable is found at `initialize()`. In a file, a relative
    `stateFile` or `auditLogFile` starts at the file's folder: in another working directory, another store or log would
    be begun. Other files, which must exist, start at the working directory.
    """
    if isinstance(source, Config):
        return source
    if isinstance(source, Mapping):
        return _checked(dict(source), "configuration")
    if isinstance(source, (str, os.PathLike)):
        path = os.fspath(source)
        if isinstance(path, str):
            source = f"configuration {path}" if path.isprintable() else "configuration"
            folder = Path(os.path.abspath(path)).parent  # noqa: PTH100  # no links are resolved: one may be exchanged
            return _placed(_checked(_read(path), source), folder, source)
    raise ConfigurationError.of(
        [ConfigFault("$", f"must be a dict, a path or a Config, not a {type(source).__name__}")]
    )


def _checked(document: object, source: str) -> Config:
    if not isinstance(document, dict):
        _refuse("$", "must be an object", source)
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
    if "keyManager" not in body:
        # Without it nothing below can be checked; the keys that are there are most likely a misspelling of it.
        faults = [ConfigFault(child_path(path, "keyManager"), "is required")]
        allowed = ("keyManager", "sequencer") if path == "$" else ("keyManager",)
        faults += [ConfigFault(child_path(path, str(key)), unknown_key(str(key), allowed)) for key in body]
        raise ConfigurationError.of(faults, source=source)

    known: dict[int, tuple[str, ...]] = {}
    faults = []
    config: Config | None = None
    try:
        config = Config.model_validate(body, context=known)
    except ValidationError as error:
        faults = faults_of(error, body, path, known)
    # Raised outside the handler: pydantic's error holds the document and its secrets, and must not be the context.
    if config is None:
        raise ConfigurationError.of(faults, source=source)
    plain: list[str] = []
    _locate(config, path, plain)
    _warn(config, plain)
    return config


def _placed(config: Config, folder: Path, source: str) -> Config:
    """Return the configuration with the paths of what it keeps made absolute."""
    rules = config.key_manager
    found = {"state_file": rules.state_file, "audit_log_file": rules.audit_log_file}
    relative = {name: path for name, path in found.items() if path is not None and not Path(path).is_absolute()}
    faults = [
        ConfigFault(
            child_path(rules.where, to_camel(name)),
            f"starts at the configuration's folder: {folder / path}; move {Path(path).absolute()} there, or name it so",
        )
        for name, path in relative.items()
        if os.path.exists(path) and not os.path.exists(folder / path)  # noqa: PTH110  # never raises
    ]
    if faults:
        raise ConfigurationError.of(faults, source=source)
    changes = {name: str(folder / path) for name, path in relative.items()}
    return config.model_copy(update={"key_manager": rules.model_copy(update=changes)}) if changes else config


def _locate(value: object, path: str, plain: list[str]) -> None:
    """Set every part's JSON path; collect the paths of secrets in plain text."""
    if isinstance(value, Model):
        value.locate(path)
        for name, key, part in value.parts():
            # A PIN that is set but not given comes from the PKCS#11 URI beside it.
            from_uri = name == "pin" and name not in value.model_fields_set
            _locate(part, child_path(path, "uri" if from_uri else key), plain)
    elif isinstance(value, tuple):
        for index, item in enumerate(value):
            _locate(item, child_path(path, index), plain)
    elif isinstance(value, dict):
        for key, item in value.items():
            _locate(item, child_path(path, key), plain)
    elif isinstance(value, Secret):
        value.locate(path)
        if value.kind == "plain" and not value.is_placeholder:
            plain.append(path)


def _warn(config: Config, plain: list[str]) -> None:
    log = get_logger()
    for path in plain:
        log.warning(
            'secret in plain text in the configuration: use {"env": …}, {"file": …} or {"awsSecretsManager": …}',
            path=path,
        )
    for path in config.placeholders:
        log.warning("placeholder in the configuration: put in the real value", path=path)


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


def _read(path: str) -> object:
    if path.lstrip().startswith("{"):
        raise ConfigurationError.of([ConfigFault("$", "is JSON text; give a dict, or the path of a file")])
    source = f"configuration {path}" if path.isprintable() else "configuration"
    raw = b""
    problem = ""
    try:
        with Path(path).open("rb") as file:
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
        return None, f"not JSON at line {error.lineno}, column {error.colno}: {error.msg}"
    except RecursionError:
        return None, "the document is nested too deeply"
    except ValueError:
        return None, "NaN, Infinity and numbers of thousands of digits are not allowed"


def _find_repeated(value: object, path: str, faults: list[ConfigFault]) -> None:
    if isinstance(value, _Object):
        faults.extend(ConfigFault(child_path(path, key), "is given more than once") for key in value.repeated)
        for key, item in value.items():
            _find_repeated(item, child_path(path, key), faults)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _find_repeated(item, child_path(path, index), faults)
