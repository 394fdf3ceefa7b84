"""A transaction in a file as an exchange: its statements go to SQLite as they are."""

from pathlib import Path

import pytest
from sqlalchemy import bindparam, event, insert, literal, select, update
from tests.support.loops import one_loop

from hsmcore.state.errors import StoreChanged, StoreError
from hsmcore.state.exchange import Change, Question
from hsmcore.state.schema import BOUND
from hsmcore.state.store import Store

pytestmark = one_loop

ADD = insert(BOUND)
SEEN = select(BOUND.c.position, literal(7)).where(BOUND.c.domain == bindparam("name")).order_by(BOUND.c.position)
MOVE = update(BOUND).where(BOUND.c.position == bindparam("at")).execution_options(hot=True)


def row(position: int, holder: object = "a") -> dict[str, object]:
    return {"domain": "d", "position": position, "digest": "aa", "holder": holder, "bound_ns": 1, "mac": ""}


async def seen(store: Store) -> list[tuple[int, int]]:
    found = await store.exchange([Question(SEEN, {"name": "d"})], lambda answers: (answers[0], []))
    return [(position, constant) for position, constant in found]


async def test_it_asks_decides_and_writes_past_sqlalchemy(tmp_path: Path) -> None:
    store = await Store.open(tmp_path / "state.db")
    by_sqlalchemy: list[str] = []
    connection = store._database._opened[1]  # type: ignore[attr-defined]
    event.listen(connection, "before_cursor_execute", lambda _c, _d, text, *_: by_sqlalchemy.append(text))
    changes = [Change(ADD, [row(1), row(2)]), Change(ADD, [row(3)]), Change(MOVE, [{"at": 3, "holder": "b"}], True)]
    assert await store.exchange([Question(SEEN, {"name": "d"}, False)], lambda a: (len(a[0]), changes)) == 0
    assert await seen(store) == [(1, 7), (2, 7), (3, 7)]
    assert set(by_sqlalchemy) == {"BEGIN IMMEDIATE"}
    await store.close()


async def test_nothing_is_written_where_a_row_is_missing(tmp_path: Path) -> None:
    store = await Store.open(tmp_path / "state.db")
    none = [Change(ADD, [row(1)]), Change(MOVE, [{"at": 9, "holder": "b"}], True)]
    with pytest.raises(StoreChanged):
        await store.exchange([], lambda _: (None, none))
    with pytest.raises(StoreChanged):
        await store.exchange([Question(SEEN, {"name": "d"}, True)], lambda _: (None, [Change(ADD, [row(1)])]))
    assert await seen(store) == []
    await store.close()


async def test_an_error_tells_no_value(tmp_path: Path) -> None:
    store = await Store.open(tmp_path / "state.db")
    with pytest.raises(StoreError) as caught:
        await store.exchange([], lambda _: (None, [Change(ADD, [row(1, "told to nobody"), row(1, "told to nobody")])]))
    assert "told to nobody" not in str(caught.value)
    assert "UNIQUE" in str(caught.value)
    assert await seen(store) == []
    await store.close()
