"""The checker sees each thing that must not be, and nothing in a history without fault."""

from __future__ import annotations

from typing import Any

import pytest
from tests.fleet.checker import AT_ONCE, Row, Twins, check, refused_without_need
from tests.fleet.history import Host, stalled_for

CHAIN = "default/block"
SECOND = 1_000_000_000


def release(at: float, position: int | None, digest: str = "d", *, epoch: int = 1, **more: Any) -> dict[str, Any]:
    """A line of a signature that was asked for a tenth of a second before."""
    found = {"what": "release", "at": int(at * SECOND), "asked": int((at - 0.1) * SECOND), "position": position}
    return {**found, "domain": CHAIN, "digest": digest, "epoch": epoch, "signature": f"{at}", "verifies": True, **more}


def host(name: str, *lines: dict[str, Any], **more: Any) -> Host:
    """A host whose log has all that it released."""
    records = [{"operation": "sign", "signature": line["signature"]} for line in lines if line["what"] == "release"]
    return Host(name, list(lines), records, **more)


def row(position: int, digest: str = "d", holder: str = "x:1#1", order: int | None = None) -> Row:
    """A bound position."""
    return Row(CHAIN, position, digest, holder, position if order is None else order)


def faults(
    *hosts: Host, rows: tuple[Row, ...] = (), floor: int = -1, lost: tuple[float, ...] = (), **more: Any
) -> list[str]:
    """What the checker says."""
    found: list[str] = []
    losses = [(int((at - 0.1) * SECOND), int((at + 0.1) * SECOND)) for at in lost]
    check(hosts, rows, {CHAIN: floor}, lambda kind, _note: found.append(kind), losses, **more)
    return found


def answer(at: float, left: float, position: int | None = None, status: str = "NOT_HOLDER") -> dict[str, Any]:
    """A line of a refusal of what was asked for just before, and had so much time left."""
    times = {"asked": int((at - 0.01) * SECOND), "until": int((at + left) * SECOND)}
    return {"what": "answer", "at": int(at * SECOND), **times, "position": position, "status": status, "why": ""}


def test_a_history_without_fault():
    first = host("x", release(1.0, 0), release(1.1, None), {"what": "end", "asked": 2, "answered": 2})
    second = host("y", release(2.0, 1, epoch=2), release(2.1, 0, epoch=2), release(2.2, None, epoch=2))
    assert faults(first, second, rows=(row(0), row(1, holder="y:2#2"))) == []


@pytest.mark.parametrize("floor", [-1, 5])
def test_two_digests_at_one_position(floor):
    first, second = host("x", release(1.0, 0)), host("y", release(2.0, 0, "other", epoch=2))
    assert faults(first, second, rows=(row(0),), floor=floor)[0] == "two digests"


def test_rows_that_were_put_back_where_their_process_asked_for_nothing_more():
    lost, other = release(1.0, 0), host("y", release(2.0, 0, "other", epoch=2))
    backs = [(int(0.5 * SECOND), int(1.5 * SECOND))]
    assert faults(host("x", lost), other, rows=(row(0, "other"),), backs=backs) == []
    assert "two digests" in faults(host("x", lost), other, rows=(row(0, "other"),))
    asked = release(1.7, 1) | {"asked": int(1.6 * SECOND)}
    assert "two digests" in faults(host("x", lost, asked), other, rows=(row(0, "other"), row(1)), backs=backs)
    refused = answer(1.7, 1.0, 1, "FLEET_BEHIND")
    assert "two digests" in faults(host("x", lost, refused), other, rows=(row(0, "other"),), backs=backs)


def test_a_release_that_is_not_bound():
    assert faults(host("x", release(1.0, 0)), rows=()) == ["not bound"]
    assert faults(host("x", release(1.0, 0)), rows=(row(0, "other"),)) == ["not bound"]
    assert faults(host("x", release(1.0, 0)), rows=(), floor=0) == []  # given up: nothing is signed there any more


def test_a_release_without_record_and_one_that_does_not_verify():
    bare = Host("x", [release(1.0, None)])
    assert faults(bare) == ["unrecorded"]
    assert faults(host("x", release(1.0, None, verifies=False))) == ["bad signature"]


def test_stalls_of_several_processes_count_once():
    def stall(since: float, at: float) -> dict[str, Any]:
        return {"what": "stall", "since": int(since * SECOND), "at": int(at * SECOND)}

    histories = [stall(0.5, 0.9), stall(1.5, 2.5)], [release(1.2, 0), stall(2.0, 3.0), stall(4.0, 4.5)]
    assert stalled_for(histories, SECOND) == 2.0
    assert stalled_for(histories, 2 * SECOND) == 1.5


def test_an_epoch_that_goes_back():
    claims = [{"operation": "fleet-claim", "epoch": epoch} for epoch in (2, 1)]
    assert faults(Host("x", [], claims)) == ["epoch went back"]
    late = (row(0, holder="y:2#2", order=1), row(1, holder="x:1#1", order=2))
    assert faults(rows=late) == ["epoch went back"]
    put_back = (row(0, holder="y:2#2", order=1), row(1, holder="x:log#1", order=2), row(2, holder="y:2#2", order=3))
    assert faults(rows=put_back) == []
    assert faults(rows=(row(0, holder="y:2#0"),)) == ["epoch went back"]


def test_two_processes_that_bind_under_one_epoch():
    assert faults(rows=(row(0, holder="x:1#1"), row(1, holder="x:2#1"))) == ["two holders"]


def test_a_request_without_answer():
    assert faults(host("x", {"what": "end", "asked": 3, "answered": 2})) == ["unanswered"]


def test_leases_that_overlap():
    late, successor = release(2.0, None), host("y", release(1.5, None, epoch=2))
    assert faults(host("x", late), successor) == ["overlap"]
    stopped = [(int(1.95 * SECOND), 2 * SECOND - AT_ONCE // 2)]
    assert faults(host("x", late, stops=stopped), successor) == []
    stalled = [(int(1.95 * SECOND), int(2.05 * SECOND))]  # noted by the process, after what it did first
    assert faults(host("x", late, stops=stalled), successor) == []
    later = [(int(2.05 * SECOND), int(2.2 * SECOND))]
    assert faults(host("x", late, stops=later), successor) == ["overlap"]
    # What was asked for after it went on has no such excuse.
    early = [(int(1.0 * SECOND), int(1.89 * SECOND))]
    assert faults(host("x", late, stops=early), successor) == ["overlap"]
    assert faults(host("x", late, rate=1.5), successor) == []
    # A claim by force waits for no lease; one after it does.
    forced = host("y", {"what": "event", "forced": 2}, release(1.5, None, epoch=2))
    assert faults(host("x", late), forced) == []
    third = host("z", release(1.8, None, epoch=3))
    assert faults(host("x", release(1.6, None)), forced, third) == []
    assert faults(host("x", release(1.9, None, epoch=2)), forced, third) == ["overlap"]


def test_a_claim_that_the_database_forgot():
    before, forgotten = release(1.0, None), host("y", release(1.5, None, epoch=2), release(1.7, None, epoch=2))
    after = release(2.2, None)
    assert faults(host("x", before, after), forgotten) == ["overlap"]
    assert faults(host("x", before, after), forgotten, lost=(2.0,)) == []
    assert faults(host("x", before, after), forgotten, lost=(1.2,)) == ["overlap"]  # it was claimed after that
    at_one_time = host("y", release(1.5, None, epoch=2), release(2.3, None, epoch=2))
    assert faults(host("x", before, after), at_one_time, lost=(2.0,)) == ["overlap"]
    again = host("z", release(2.2, None, epoch=2))
    assert faults(again, forgotten) == ["overlap"]
    assert faults(again, forgotten, lost=(2.0,)) == []
    assert faults(again, at_one_time, lost=(2.0,)) == ["overlap", "overlap"]


def test_an_epoch_goes_back_once_for_each_loss():
    claims = [{"operation": "fleet-claim", "epoch": epoch} for epoch in (3, 2, 3, 1)]
    assert faults(Host("x", [], claims), lost=(1.0,)) == ["epoch went back"]
    assert faults(Host("x", [], claims), lost=(1.0, 2.0)) == []
    back = host("x", release(1.0, None, epoch=2), release(2.0, None))
    assert faults(back, lost=(1.5,)) == []
    assert faults(back, lost=(0.5,)) == ["epoch went back", "overlap"]


def test_what_is_released_below_a_floor():
    raised = [(2 * SECOND, CHAIN, 4)]
    before, after = release(1.0, 4), release(3.0, 4)
    assert faults(host("x", before), rows=(row(4),), raised=raised) == []
    assert faults(host("x", before, after), rows=(row(4),), raised=raised) == ["below a floor"]
    assert faults(host("x", release(2.05, 4)), rows=(row(4),), raised=raised) == []  # it was asked for before
    assert faults(host("x", release(3.0, 5)), rows=(row(5),), raised=raised) == []


def test_two_copies_of_a_process():
    first, second = (
        host("x", release(1.0, None), release(2.5, None)),
        host("x~0", release(1.5, None), release(1.9, None)),
    )
    assert set(faults(first, second)) == {"overlap"}
    assert faults(first, second, twins=[Twins("x", "x~0", 2 * SECOND)]) == []
    assert faults(first, second, twins=[Twins("x", "x~0", int(1.8 * SECOND))]) == ["two copies"]
    third = host("y", release(1.7, None, epoch=2))
    assert set(faults(first, second, third, twins=[Twins("x", "x~0", 2 * SECOND)])) == {"overlap"}


@pytest.mark.parametrize("position", [None, 7])
def test_a_refusal_of_what_could_have_waited(position):
    before, after = release(1.0, None), release(2.0, position)

    def refused(line: dict[str, Any], *others: Host, first: Any = before, then: Any = after, **more: Any) -> int:
        return len(refused_without_need([host("x", first, line, then, **more), *others]))

    assert refused(answer(1.5, 1.0, position)) == 1
    assert refused(answer(1.5, 0.6, position)) == 0  # too little was left behind that signature
    assert refused(answer(1.5, 1.0, position, "DOUBLE_SIGN")) == 0
    assert refused(answer(1.95, 1.0, position)) == 0  # what was released was asked for before that
    assert refused(answer(1.5, 1.0, None if position else 7)) == 0  # nothing of its sort was released
    assert refused(answer(1.5, 1.0, position), first=release(1.0, None, epoch=2)) == 0
    assert refused(answer(1.5, 1.0, position), stops=[(int(1.6 * SECOND), int(1.7 * SECOND))]) == 0
    other = host("y", release(1.7, None, epoch=2))
    assert refused(answer(1.5, 1.0, position), other) == 0
