"""What binds positions in one message: a connection of its own on the event loop, whose messages carry conditions
instead of asking first. For manager/policy/watermark.py; which conditions, docs/decisions/0070 says.

An answer is waited for no longer than `seconds` once the server has confirmed others: then the connection is one that a
firewall has forgotten.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Final

import orjson
from sqlalchemy import TextClause, text

from hsmcore.state.errors import StoreAway, StoreUnknown
from hsmcore.state.exchange import Asking, Change, Question, Reply
from hsmcore.state.postgres.link import FACTS, Facts
from hsmcore.state.postgres.schema import rare_of

_JUDGED: Final = Facts._fields[: Facts._fields.index("backend")]
"""What is the same for each connection."""
_COLUMNS: Final = "store", "counter", "digests", "mac", "highs", "rare"
"""Those of rare_of."""


def same_server(facts: Facts) -> Question:
    """Return what finds a row on the server that was judged, as it was then."""
    return Question(_SERVER, _known(facts), required=True)


def same_rows(vouching: TextClause, facts: Facts, rare: str, store: str, counter: int) -> Question:
    """As `same_server`, and while the rows that a seal vouches for are as they were checked, under that seal or a later
    one of the same store. `vouching`: of `vouched`."""
    return Question(vouching, _known(facts) | {"rare": rare, "store": store, "counter": counter}, required=True)


def vouched(schema: str) -> TextClause:
    """Return the statement of `same_rows`."""
    columns, join = rare_of(schema)
    rows = f"SELECT {columns} FROM (SELECT) AS one {join}"  # noqa: S608  # our names
    same = _same((*_JUDGED, "rare", "store"))
    return text(f"{_SAME}, ({rows}) AS rows ({', '.join(_COLUMNS)}) WHERE {same} AND counter >= :counter")


def went_back(before: str, now: str) -> bool:
    """Whether a domain's highest position is lower, or gone, by two texts of rare_of."""
    if before == now:
        return False
    highs: dict[str, int] = orjson.loads(now)
    return any(highs.get(name, -1) < high for name, high in orjson.loads(before).items())


def _known(facts: Facts) -> dict[str, Any]:
    return {name: str(getattr(facts, name)) for name in _JUDGED}


def _same(names: Sequence[str]) -> str:
    return f"({', '.join(names)}) = ({', '.join(f':{name}' for name in names)})"


_SAME: Final = f"SELECT 1 FROM ({FACTS}) AS facts ({', '.join(Facts._fields)})"  # noqa: S608  # our names
_SERVER: Final = text(f"{_SAME} WHERE {_same(_JUDGED)}")


class Binding:
    """Belongs to one event loop. `asking`: the connection; `conditions`: returns what each message begins with, None
    while that is not known; `seconds`: as above."""

    def __init__(self, asking: Asking, conditions: Callable[[], list[Question] | None], seconds: float) -> None:
        self._asking, self._conditions, self._seconds = asking, conditions, seconds
        self._limit: asyncio.Timeout | None = None
        self._ending = False
        self._sent = 0.0

    async def ask(self, work: Sequence[Question | Change], seconds: float) -> Reply:
        """As Asking, if each condition is met. Raises StoreError; StoreAway while they are not known."""
        conditions = self._conditions()
        if conditions is None:
            raise StoreAway("not all that a bind relies on is known")
        self._sent = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(self._seconds if self._ending else None) as self._limit:
                return await self._asking.ask([*conditions, *work], seconds)
        except TimeoutError:
            raise StoreUnknown("the server answers others, and did not answer this") from None
        finally:
            self._limit = None

    def hasten(self, *, hurries: bool = False) -> None:
        """The server has confirmed another transaction: give up what is under way if it was sent long ago. `hurries`:
        whenever it was. In the loop."""
        if hurries or asyncio.get_running_loop().time() >= self._sent + self._seconds:
            self._give_up(0.0)

    def ends(self) -> None:
        self._ending = True
        self._give_up(self._sent + self._seconds)

    def _give_up(self, at: float) -> None:
        if self._limit is not None and not self._limit.expired():
            self._limit.reschedule(at)

    async def close(self) -> None:
        """Close the connection. Idempotent."""
        await self._asking.close()
