"""Whose turn it is: shares of a scarce thing by weight. Knows no clock, no event loop and no key manager."""

from __future__ import annotations

from collections import OrderedDict
from heapq import heappop, heappush
from typing import Generic, TypeVar

T = TypeVar("T")
_LATELY = 4
_PIECES = 4
"""Of what may be under way, a large piece of work takes such a part at a time: the others keep the keys busy."""


class Flow(Generic[T]):
    """What one client asks for. `weight`: its share in relation to the others'. The rest is for FairQueue."""

    __slots__ = ("finish", "listed", "waiting", "weight")

    def __init__(self, weight: int = 1) -> None:
        self.weight = weight
        self.finish = 0.0
        """When what it has had so far would be done at its share, in virtual time."""
        self.waiting: OrderedDict[T, int] = OrderedDict()
        """Work that waits, in its order, and what it costs; of work that has begun, what is left."""
        self.listed = False


class FairQueue(Generic[T]):
    """Lets work begin while less than `most` is under way, and else in its turn: start-time fair queueing. While
    several flows wait, each gets of what there is by its weight, whatever it asks for; one that asked for nothing has
    saved nothing. Work that costs much begins in pieces, between which others have their turns."""

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
        """Works of which something waits."""
        return sum(len(flow.waiting) for _, _, flow in self._order)

    def take(self, flow: Flow[T], work: T, cost: int = 1) -> list[tuple[T, int]]:
        """Ask for turns for a work. Returns what begins now, and how much of it; what does not waits until `free` or
        `withdraw` returns it."""
        if flow is not self._last:
            self._shared = 0 if self._last is None else _LATELY * self._alone
            self._last = flow
        if cost == 1 and not self._order and self.under_way < self.most:
            self._begin(flow, max(self._now, flow.finish), 1)
            return [(work, 1)]
        flow.waiting[work] = cost
        self._list(flow)
        return self._next()

    def free(self, cost: int = 1) -> list[tuple[T, int]]:
        """So much is done: return what begins now, as `take`."""
        self.under_way -= cost
        return self._next() if self._order else []

    def withdraw(self, flow: Flow[T], work: T) -> list[tuple[T, int]]:
        """What waits of a work begins no more: return what begins now, because it stood in the way."""
        del flow.waiting[work]
        return self._next()

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

    def _next(self) -> list[tuple[T, int]]:
        begun: list[tuple[T, int]] = []
        while self._order:
            start, _, flow = self._order[0]
            if flow.waiting:
                work, left = next(iter(flow.waiting.items()))
                piece = min(left, max(self.most // _PIECES, 1))
                if self.under_way + piece > self.most:
                    break
                if piece < left:
                    flow.waiting[work] = left - piece
                else:
                    del flow.waiting[work]
                self._begin(flow, start, piece)
                begun.append((work, piece))
            heappop(self._order)
            flow.listed = False
            if flow.waiting:
                self._list(flow)
        return begun
