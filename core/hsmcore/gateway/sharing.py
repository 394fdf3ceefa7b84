"""Whose turn it is: shares of a scarce thing by weight. Knows no clock, no event loop and no key manager."""

from __future__ import annotations

from collections import OrderedDict
from heapq import heappop, heappush
from typing import Generic, TypeVar

T = TypeVar("T")
_LATELY = 4


class Flow(Generic[T]):
    """What one client asks for. `weight`: its share in relation to the others'. The rest is for Turns."""

    __slots__ = ("finish", "listed", "waiting", "weight")

    def __init__(self, weight: int = 1) -> None:
        self.weight = weight
        self.finish = 0.0
        """When what it has had so far would be done at its share, in virtual time."""
        self.waiting: OrderedDict[T, int] = OrderedDict()
        """Work that waits, in its order, and what it costs."""
        self.listed = False


class Turns(Generic[T]):
    """Lets work begin while less than `most` is under way, and else in its turn: start-time fair queueing. While
    several flows wait, each gets of what there is by its weight, whatever it asks for; one that asked for nothing has
    saved nothing. Work that costs more than `most` begins when nothing else is under way."""

    def __init__(self, most: int, alone: int = 0) -> None:
        """`alone`: as `most`, while one flow is the only one that has asked for anything lately; 0: the same."""
        self._most, self._alone = most, max(alone, most)
        self.under_way = 0
        self._last: Flow[T] | None = None
        self._shared = 0
        """So much work is begun before the flow that asked last counts as the only one."""
        self._now = 0.0
        self._order: list[tuple[float, int, Flow[T]]] = []
        """The flows in which work waits: when the first piece begins, in virtual time; then in the order of entry."""
        self._entries = 0

    @property
    def waiting(self) -> int:
        """Pieces of work that wait."""
        return sum(len(flow.waiting) for _, _, flow in self._order)

    def take(self, flow: Flow[T], work: T, cost: int = 1) -> bool:
        """Return whether the work begins now; else it waits until `free` or `withdraw` returns it."""
        if flow is not self._last:
            self._shared = 0 if self._last is None else _LATELY * self._alone
            self._last = flow
        if not self._order and self._fits(cost):
            self._begin(flow, max(self._now, flow.finish), cost)
            return True
        flow.waiting[work] = cost
        self._list(flow)
        return False

    def free(self, cost: int = 1) -> list[T]:
        """Work of this cost is done: return what begins now."""
        self.under_way -= cost
        return self._next() if self._order else []

    def withdraw(self, flow: Flow[T], work: T) -> list[T]:
        """Work that waits begins no more: return what begins now, because it stood in the way."""
        del flow.waiting[work]
        return self._next()

    def _fits(self, cost: int) -> bool:
        return self.under_way + cost <= self.most or not self.under_way

    @property
    def most(self) -> int:
        """Work that may be under way now."""
        return self._most if self._shared > 0 else self._alone

    def _begin(self, flow: Flow[T], start: float, cost: int) -> None:
        self._now, flow.finish = start, start + cost / flow.weight
        self.under_way += cost
        self._shared -= cost

    def _list(self, flow: Flow[T]) -> None:
        if not flow.listed:
            flow.listed = True
            self._entries += 1
            heappush(self._order, (max(self._now, flow.finish), self._entries, flow))

    def _next(self) -> list[T]:
        begun: list[T] = []
        while self._order:
            start, _, flow = self._order[0]
            if flow.waiting:
                work, cost = next(iter(flow.waiting.items()))
                if not self._fits(cost):
                    break
                del flow.waiting[work]
                self._begin(flow, start, cost)
                begun.append(work)
            heappop(self._order)
            flow.listed = False
            if flow.waiting:
                self._list(flow)
        return begun
