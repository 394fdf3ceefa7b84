"""Logging: structlog events under the name "hsmcore", with secrets dropped as a second line of defence.

The library never configures logging for its host. Where the host has configured structlog, events go through the
host's processors; where it has not, they go to the standard library's logger "hsmcore" (so a host without any logging
sees warnings on stderr and nothing on stdout). Only the command line calls `configure`.
"""

from __future__ import annotations

import functools
import itertools
import logging
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from threading import get_ident
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from structlog.typing import EventDict, Processor

DROPPED = "<dropped>"

_WORD = r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+"
_SECRET_WORDS = frozenset(
    {"pin", "puk", "password", "passwd", "passphrase", "secret", "secrets", "credential", "credentials", "seed"}
)
_SECRET_PAIRS = frozenset({("private", "key"), ("secret", "key"), ("api", "key"), ("access", "key")})


# What `configure` was told before structlog, which is slow to import, was needed: most commands log nothing.
_deferred: list[tuple[bool, int]] = []


@contextmanager
def muted(names: Iterable[str]) -> Iterator[None]:
    """Drop what this thread logs to these loggers of the standard library."""
    thread, loggers = get_ident(), [logging.getLogger(name) for name in names]

    def others(record: logging.LogRecord) -> bool:
        return record.thread != thread

    for logger in loggers:
        logger.addFilter(others)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(others)


def looks_secret(key: str) -> bool:
    """Return whether a name in snake_case or camelCase may hold a secret: "userPin" yes, "spinMicros" no."""
    words = [word.lower() for word in re.findall(_WORD, key)]
    return not _SECRET_WORDS.isdisjoint(words) or not _SECRET_PAIRS.isdisjoint(itertools.pairwise(words))


def drop_secrets(_logger: Any, _method: str, event: EventDict) -> EventDict:
    """A structlog processor that replaces the value of every secret-looking key, at any depth, by `DROPPED`.

    hsmcore logs no secret; this is for a mistake.
    """
    return {key: DROPPED if looks_secret(str(key)) else _clean(value) for key, value in event.items()}


def _clean(value: object) -> object:
    if isinstance(value, Mapping):
        return {key: DROPPED if looks_secret(str(key)) else _clean(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_clean(item) for item in value]
    return value


def add_trace(_logger: Any, _method: str, event: EventDict) -> EventDict:
    """A structlog processor that adds `trace_id` and `span_id` inside an OpenTelemetry span."""
    trace = sys.modules.get("opentelemetry.trace")
    if trace is not None:
        context = trace.get_current_span().get_span_context()
        if context.is_valid:
            event["trace_id"], event["span_id"] = f"{context.trace_id:032x}", f"{context.span_id:016x}"
    return event


def get_logger(**bound: Any) -> Any:
    """Return a structlog logger named "hsmcore" with `bound` key names. Call it for each event, not at import: the
    result depends on the logging configuration of that moment. Any thread."""
    if "structlog" not in sys.modules:  # so the host has not configured it
        return _Unready(bound)
    import structlog

    if _deferred and not structlog.is_configured():
        _configure(*_deferred[-1])
    if structlog.is_configured():
        return structlog.wrap_logger(
            None,
            processors=[add_trace, drop_secrets, *structlog.get_config()["processors"]],
            logger_factory_args=["hsmcore"],
            **bound,
        )
    return structlog.wrap_logger(
        logging.getLogger("hsmcore"),
        wrapper_class=structlog.stdlib.BoundLogger,
        processors=[
            structlog.stdlib.filter_by_level,
            add_trace,
            drop_secrets,
            structlog.processors.format_exc_info,
            *_where_no_handler_is(),
        ],
        **bound,
    )


def _where_no_handler_is() -> list[Processor]:
    """Return what renders an event for the standard library: with time and level where the host has no handler, which
    would add them, and Python prints the bare text on stderr."""
    from structlog.processors import KeyValueRenderer, TimeStamper, add_log_level

    if logging.getLogger("hsmcore").hasHandlers():
        return [KeyValueRenderer(key_order=["event"])]
    order = ["timestamp", "level", "event"]
    return [add_log_level, TimeStamper(fmt="iso", utc=True), KeyValueRenderer(key_order=order)]


def tell(level: str, event: str, **details: Any) -> None:
    """Log, and raise nothing: for work that must go on, whatever the processors of a host application raise."""
    with suppress(Exception):
        getattr(get_logger(), level)(event, **details)


def prepare(*, lasts: bool = False) -> None:
    """Import what logging needs, before there is something to log: an event loop that handles a fault has no time for
    it, and a process without a free descriptor cannot do it. Not in a command, which ends soon, unless it `lasts`.
    Takes some 0.1 s the first time. Any thread."""
    if lasts or not _deferred:
        with suppress(Exception):  # see _Unready
            import structlog  # noqa: F401


class _Unready:
    """A logger that imports structlog with the first event of a level that is shown."""

    def __init__(self, bound: dict[str, Any]) -> None:
        self._bound = bound

    def __getattr__(self, method: str) -> Any:
        number = logging.ERROR if method == "exception" else logging.getLevelNamesMapping().get(method.upper())
        least = _deferred[-1][1] if _deferred else logging.getLogger("hsmcore").getEffectiveLevel()
        if number is not None and number < least:
            return _nothing
        try:
            import structlog  # noqa: F401  # from here on get_logger returns structlog's
        except Exception:  # noqa: BLE001
            # The process may read its interpreter's folder no more: it has no descriptor, another user or another root.
            return functools.partial(_plain, number or logging.WARNING, self._bound, exc_info=method == "exception")
        return getattr(get_logger(**self._bound), method)


def _plain(level: int, bound: Mapping[str, Any], event: str, *, exc_info: bool, **said: Any) -> None:
    """Log an event without structlog, lest its absence be an error in place of the event."""
    pairs = [f"{key}={value!r}" for key, value in drop_secrets(None, "", {**bound, **said}).items()]
    logging.getLogger("hsmcore").log(level, "%s", " ".join([event, *pairs]), exc_info=exc_info)


def _nothing(*_arguments: Any, **_event: Any) -> None:
    pass


def configure(*, json: bool = False, level: str | int = "INFO") -> None:
    """Configure structlog for a process of ours: events on stderr, as JSON lines or for a person.

    `level` is a name such as "WARNING" or a number; an unknown name raises ValueError.
    """
    _deferred[:] = [(json, _level_of(level))]
    if "structlog" in sys.modules:
        _configure(*_deferred.pop())


def _configure(json: bool, level: int) -> None:
    import structlog

    # Plain tracebacks: the rich ones print local variables, and a PIN may be among them.
    renderer: list[Processor]
    if json:
        renderer = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(serializer=_json)]
    else:
        renderer = [
            structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback)
        ]
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            drop_secrets,
            *renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )


def _level_of(level: str | int) -> int:
    if isinstance(level, int):
        return level
    number = logging.getLevelNamesMapping().get(level.upper())
    if number is None:
        raise ValueError(f"unknown log level {level!r}: use DEBUG, INFO, WARNING, ERROR or CRITICAL")
    return number


def _json(event: Any, **_options: Any) -> str:
    import orjson

    return orjson.dumps(event, default=str, option=orjson.OPT_NON_STR_KEYS).decode()


def said(error: Exception) -> str:
    """Return what went wrong, of which file if the error names one."""
    if not isinstance(error, OSError) or not error.strerror:
        return str(error)
    return error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"


MAX_REASON: Final = 400
"""Most characters of an operator's reason."""


def is_reason(text: str) -> bool:
    """Return whether a text may be recorded as an operator's reason. It is shown at terminals, as it is."""
    return bool(text.strip()) and len(text) <= MAX_REASON and text.isprintable()


def printable(text: str, most: int = 400) -> str:
    """Return untrusted text fit for a terminal: one line, without control characters, at most `most` characters."""
    clean = "".join(char if char.isprintable() else "?" for char in text.replace("\n", " "))
    return clean if len(clean) <= most else f"{clean[: most - 1]}…"
