"""The short way of a request, as bindings/routes.pxi has it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import monotonic_ns
from typing import Any

from hsmcore._native import freeze
from hsmcore.errors import HsmError


class Routes:
    def __init__(
        self, long_way: Callable[..., Any], long_way_with_receipt: Callable[..., Any], fall_back: Callable[..., Any]
    ) -> None:
        self._long, self._long_with_receipt, self._fall_back = long_way, long_way_with_receipt, fall_back
        self._members: list[Any] = []
        self._shares: list[list[int]] = []
        """Of each member: index of its key, weight, turn."""
        self._ramping, self._round, self._halve, self._decide = 0, 1, False, None

    def aim(
        self,
        ramping: Sequence[tuple[Any, int, int]],
        steady: Sequence[tuple[Any, int, int]],
        *,
        round: int = 1,  # noqa: A002  # as the binding
        halve: bool = False,
        decide: Any = None,
    ) -> None:
        turns = {id(self._members[at]): self._shares[at][2] for at in range(self._ramping)}
        members = [*ramping, *steady]
        for engine, _, _ in members:
            engine.fall_back = self._fall_back
        self._shares = [[key, weight, turns.get(id(engine), 0)] for engine, key, weight in members]
        self._members = [engine for engine, _, _ in members]
        self._ramping, self._round, self._halve, self._decide = len(ramping), round, halve, decide or None

    def _pick(self) -> int:
        for at in range(self._ramping):
            share = self._shares[at]
            share[2] += share[1]
            if share[2] >= self._round:
                share[2] = 0
                return at
        steady = range(self._ramping, len(self._members))
        return min(steady, key=lambda at: self._members[at].in_flight + self._members[at].waiting, default=-1)

    def pick(self) -> Any:
        at = self._pick()
        return None if at < 0 else self._members[at].place

    def submit(self, message: Any, timeout: float | None = None, _key: int = 0, extra: bytes | None = None) -> Any:
        at = self._place_for(message)
        return self._long(message, timeout, extra) if at < 0 else self._attempt(at, message, timeout, extra)

    def ask(
        self,
        message: Any,
        timeout: float | None = None,
        _key: int = 0,
        extra: bytes | None = None,
        gather: bool = False,
        only: bytes | None = None,
        waiter: Any = None,
    ) -> Any:
        at = self._place_for(message)
        if at < 0:
            return self._long_with_receipt(message, timeout, extra, only)
        return self._attempt(at, message, timeout, extra, receipt=True, only=only, waiter=waiter)

    def _place_for(self, message: Any) -> int:
        if self._decide is not None and (self._decide is True or self._decide(message)):
            return -1
        return self._pick()

    def _attempt(
        self,
        at: int,
        message: Any,
        timeout: float | None,
        extra: Any,
        *,
        receipt: bool = False,
        only: Any = None,
        waiter: Any = None,
    ) -> Any:
        engine, key = self._members[at], self._shares[at][0]
        limit = engine._ns(timeout)
        deadline = monotonic_ns() + limit
        data = freeze(message)
        share = limit - limit // 2 if self._halve else limit
        try:
            return engine.ask_for(data, share, key, extra, receipt=receipt, routed=deadline, only=only, waiter=waiter)
        except HsmError as error:
            begun = deadline - limit if receipt else 0
            return self._fall_back(None, engine.place, key, deadline, data, error, extra, only, begun)
