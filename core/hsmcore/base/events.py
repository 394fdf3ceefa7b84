"""Events that an application can subscribe to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, Literal, get_args

from hsmcore.base.log import get_logger
from hsmcore.errors import BadArgument

EventName = Literal[
    "initialized",
    "closed",
    "key-generated",
    "key-changed",
    "key-deactivated",
    "key-rotated",
    "rotation-begun",
    "rotation-failed",
    "rotation-aborted",
    "member-down",
    "member-up",
    "failover",
    "failback",
    "outage",
    "recovered",
    "emergency-operation",
    "operator-action",
    "store-not-genuine",
    "fleet",
]
EVENTS: Final[tuple[EventName, ...]] = get_args(EventName)

_MEANT: Final = {"rotation": "key-rotated"}
"""What a name means that looks more like another one's."""
Callback = Callable[[Mapping[str, Any]], object]


class Events:
    """Callbacks by event name. They run in the event loop and must return at once. An error of a callback is logged and
    does not reach other callbacks or requests."""

    def __init__(self) -> None:
        self._callbacks: dict[str, list[Callback]] = {name: [] for name in EVENTS}

    def on(self, event: str, callback: Callback) -> Callable[[], None]:
        """Call `callback(details)` for each `event`. Returns a function that unsubscribes. Raises BadArgument."""
        if event not in self._callbacks:
            from difflib import get_close_matches  # for a mistake

            near = _MEANT.get(event) or next(iter(get_close_matches(event, EVENTS, 1)), None)
            hint = None if near is None else f'Did you mean "{near}"?'
            raise BadArgument(f"no event named {event!r}; there are {', '.join(EVENTS)}", hint=hint)
        callbacks = self._callbacks[event]
        callbacks.append(callback)

        def off() -> None:
            if callback in callbacks:
                callbacks.remove(callback)

        return off

    def emit(self, event: str, **details: Any) -> None:
        """Call the callbacks of an event."""
        for callback in tuple(self._callbacks[event]):
            try:
                callback(details)
            except Exception:  # noqa: BLE001  # any error of the application's code
                get_logger().exception("event callback failed", name=event)
