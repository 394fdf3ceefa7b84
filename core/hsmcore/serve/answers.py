"""The answers to what the server's process asks (questions.py), from a source: in the process that has the source."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from typing import Any, Final

import orjson

from hsmcore.base.log import get_logger
from hsmcore.errors import HsmError
from hsmcore.metrics import render
from hsmcore.metrics.text import content_type
from hsmcore.serve.access import Access
from hsmcore.serve.actions import BadRequest, carry_out, parse
from hsmcore.serve.ledger import Ledger
from hsmcore.serve.source import Source, Unanswered

STATE_SECONDS: Final = 0.25
"""A question that comes sooner than this gets the previous state."""
TEXT_SECONDS: Final = 1.0
"""The same of metrics and of the set of keys: to read them shares the interpreter with the signing thread."""
_KINDS: Final = 8
"""Most answers of one question that are kept, by its arguments."""


class Answers:
    """For the event loop of Site's thread."""

    def __init__(self, source: Source, access: Access) -> None:
        self._source, self._access = source, access
        self._ledger = Ledger(source.config)
        self._state: dict[str, Any] = {}
        self._kept: dict[tuple[str, Any], tuple[float, Any]] = {}
        self._turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def close(self) -> None:
        """Close the state store."""
        await self._ledger.close()

    async def of(self, name: str, arguments: list[Any]) -> tuple[Any, str]:
        """Return the answer to a question, and "" or why there is none."""
        known: dict[str, Callable[..., Awaitable[Any]]] = {
            "look": lambda views: self._recent(STATE_SECONDS, "look", bool(views), self._look),
            "events": lambda after: self._recent(STATE_SECONDS, "events", int(after), self._ledger.events),
            "metrics": lambda accept: self._recent(TEXT_SECONDS, "metrics", content_type(accept), self._metrics),
            "keys": lambda: self._recent(TEXT_SECONDS, "keys", None, self._keys),
            "act": self._act,
            "refused": self._refused,
        }
        try:
            return await known[name](*arguments), ""
        except (HsmError, Unanswered) as error:
            return None, str(error)

    async def _recent(self, seconds: float, name: str, argument: Any, work: Callable[[Any], Awaitable[Any]]) -> Any:
        """The answer of at most `seconds` ago: however many requests there are, they cost this process no more."""
        async with self._turns[name]:
            at, found = self._kept.get((name, argument), (float("-inf"), None))
            if time.monotonic() - at > seconds:
                found = await work(argument)
                while len(self._kept) >= _KINDS:
                    del self._kept[next(iter(self._kept))]
                self._kept[name, argument] = time.monotonic(), found
        return found

    async def _look(self, views: bool) -> dict[str, Any]:
        """`problem`: why there is no new state. `view` is None unless it was asked for; see Ledger.view."""
        problem = ""
        try:
            self._state = await self._source.describe()
        except Unanswered as error:
            problem = str(error)
        view = await self._ledger.view() if views else None
        return {"state": self._state, "problem": problem, "view": view, "storeProblem": self._ledger.problem}

    async def _metrics(self, kind: str) -> tuple[str, str]:
        manager = self._source.manager
        return ("" if manager is None else (await asyncio.to_thread(render, manager, kind))[0].decode()), kind

    async def _keys(self, _argument: None) -> tuple[str, str]:
        manager = self._source.manager
        return ("", "") if manager is None else (manager.key_set().decode(), manager.key_set(-1).decode())

    async def _act(self, header: str, peer: str, name: str, body: str) -> tuple[int, dict[str, Any]]:
        # Once more, and here: what acts trusts no process that strangers speak with.
        if self._access.judge(header, "operator", peer).problem:
            return 403, {"error": "forbidden", "message": "this token may not act"}
        try:
            await self._recent(STATE_SECONDS, "look", False, self._look)
            order = parse(name, orjson.loads(body.encode("latin-1")), self._source.config, self._state)
        except (orjson.JSONDecodeError, BadRequest) as error:
            text = "the body is not JSON" if isinstance(error, orjson.JSONDecodeError) else str(error)
            return 400, {"error": "bad request", "message": text}

        async def record(result: str, error: str) -> int | None:
            fields: dict[str, Any] = {**order.fields, "ip": peer} | ({"error": error} if error else {})
            return await self._source.record(order.command, result, fields)

        try:
            number = await carry_out(order, self._source.config, record)
        except (HsmError, Unanswered) as error:
            return 503, {"error": "not done", "message": str(error)}
        return 202, {"asked": order.command, "auditSeq": number, **order.fields}

    async def _refused(self, peer: str, problem: str, path: str, count: int) -> None:
        fields = {"ip": peer, "error": problem, "file": path, "count": count}
        try:
            await self._source.record("console", "refused", fields)
        except (HsmError, Unanswered) as error:
            get_logger().error("a refusal was not recorded", error=str(error), peer=peer, problem=problem)
