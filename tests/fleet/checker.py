"""What must hold of a fleet's history, whatever happened to it.

    two digests      at each position, signatures of one payload at most were released
    not bound        each released payload with a position is bound there in the database, after all that went wrong,
                     or stands at or below a floor
    unrecorded       each released signature is in the audit log of its host
    epoch went back  neither a host's own log nor the order of commits in the database goes back to an earlier epoch
    two holders      one process has bound all that was bound under an epoch
    wrong message    what is given to be finished is what its position is bound to
    unanswered       each request of a process that was not killed has ended
    overlap          no signature without a position was released under an epoch after one under a later epoch
    bad signature    what was released verifies
    below a floor    nothing that was asked for behind the raising of a floor was released at or below it
    two copies       of a process that goes on twice, one has stopped to hand out under an epoch when the lease is over
                     that both had when it was copied

Of overlap, that is what leases promise as long as clocks run at about one rate: a host whose clock was shown at another
rate, and those beside it, are left out. A process that was stopped may have been stopped between the check of its lease
and the line of its history: a request that it had begun before, and ended at once when it went on, is left out too; so
it is where the machine had no time for the process, which notes that itself. So are signatures under an epoch before
one that was claimed by force, which waits for no lease.

A database that loses what it confirmed may forget a claim: the one that held the epoch before goes on, once the lease
of the forgotten one is over. So across a loss, of overlap is asked that the two never hand out at one time, and an
epoch may go back.

Rows of positions that alone are put back to what they were (`backs`) are missed by the process that bound them. One
that was stopped, cut off or killed before it asked again cannot: two digests are none of that kind.

Counted beside that: a request is refused without need (`refused_without_need`) if it had time left, and the process
that refused it handed out something else of its sort in that time under the same epoch, with no other host in between.
So it could have waited, whatever went wrong.
"""

from __future__ import annotations

from bisect import bisect
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from tests.fleet.history import Host

AT_ONCE = 100_000_000
"""Nanoseconds from a SIGCONT to the line of what was under way."""
RATES = 0.02
"""The difference of a clock's rate that counts as none."""
LEFT = 500_000_000
"""Nanoseconds of its deadline that a request must have left at its refusal, and others behind the signature that shows
that it could have had one."""
OF_ITS_OWN = {"DOUBLE_SIGN", "POLICY_REFUSED", "DEADLINE_EXCEEDED"}
"""Refusals for which waiting is of no use."""
_NEVER = 1 << 62
Fault = Callable[[str, str], None]


class Row(NamedTuple):
    """A bound position, in the order of commits. `holder`: host:pid#epoch."""

    domain: str
    position: int
    digest: str
    holder: str
    order: Any

    @property
    def epoch(self) -> int:
        """The epoch that it was bound under; -1: that is not known, since it was put back from an audit log."""
        by, mark, epoch = self.holder.rpartition("#")
        return int(epoch) if mark and not by.endswith(":log") else -1


class Twins(NamedTuple):
    """Two names of one process that goes on twice. `until`: when the lease is over that it had when it was copied."""

    one: str
    other: str
    until: int


def check(
    hosts: Sequence[Host],
    rows: Sequence[Row],
    floors: Mapping[str, int],
    fault: Fault,
    losses: Sequence[tuple[int, int]] = (),
    twins: Sequence[Twins] = (),
    raised: Sequence[tuple[int, str, int]] = (),
    backs: Sequence[tuple[int, int]] = (),
) -> None:
    """Tell `fault` of everything that must not be. `floors`: nothing is signed at or below them any more, by domain.
    `losses`: when the database lost what it had confirmed, each from before to after it. `raised`: when, in which
    domain and to what a floor was raised. `backs`: when rows of positions were kept, and put back."""
    _check_positions(hosts, rows, floors, fault, backs)
    _check_floors(hosts, raised, fault)
    for host in hosts:
        _check_log(host, fault, losses)
        _check_requests(host, fault)
    _check_order(rows, fault)
    _check_leases(hosts, fault, losses, twins)


def refused_without_need(hosts: Sequence[Host]) -> list[tuple[Host, dict[str, Any]]]:
    """Return the refusals of requests that could have waited."""
    released = sorted(
        ((line["at"], host, line) for host in hosts for line in host.of("release")), key=lambda found: found[0]
    )
    times = [at for at, _, _ in released]
    found = []
    for host in hosts:
        for line in host.of("answer"):
            if line["status"] in OF_ITS_OWN or line["until"] - line["at"] < LEFT:
                continue
            place = bisect(times, line["at"])
            for at, other, signed in released[place:] if place else ():
                if at > line["until"] - LEFT // 2 or other is not host:
                    break
                if (signed["position"] is None) == (line["position"] is None):
                    before = released[place - 1]
                    same = before[1] is host and before[2]["epoch"] == signed["epoch"] != 0
                    if same and signed["asked"] > line["at"] and not _stood_still(host, line["asked"], at):
                        found.append((host, line))
                    break
    return found


def _stood_still(host: Host, begun: int, ended: int) -> bool:
    return any(stopped < ended and begun < went_on for stopped, went_on in host.stops)


def _check_floors(hosts: Sequence[Host], raised: Sequence[tuple[int, str, int]], fault: Fault) -> None:
    for host in hosts:
        for line in host.of("release"):
            for at, domain, floor in raised if line["position"] is not None else ():
                if line["domain"] == domain and line["asked"] > at and line["position"] <= floor:
                    fault("below a floor", f"{host.name}: {floor} since {at}: {line}")


def _was_missed(host: Host, first: dict[str, Any], second: dict[str, Any], backs: Sequence[tuple[int, int]]) -> bool:
    """Whether rows were put back behind a block, and its process asked for no other one until another was released."""
    asks = [line for what in ("release", "answer") for line in host.of(what) if line["position"] is not None]
    asks = [line for line in asks if line.get("status", "FLEET_BEHIND") == "FLEET_BEHIND"]
    return any(
        kept < first["at"] and first["asked"] < back < second["at"]
        and not any(back < line["asked"] and line["at"] < second["at"] for line in asks)
        for kept, back in backs
    )  # fmt: skip


def _check_positions(
    hosts: Sequence[Host],
    rows: Sequence[Row],
    floors: Mapping[str, int],
    fault: Fault,
    backs: Sequence[tuple[int, int]] = (),
) -> None:
    released: defaultdict[tuple[str, int], dict[str, str]] = defaultdict(dict)
    first: dict[tuple[str, int], tuple[Host, dict[str, Any]]] = {}
    bound = {(row.domain, row.position): row for row in rows}
    of_all = [(line, host) for host in hosts for line in host.of("release") if line["position"] is not None]
    for line, host in sorted(of_all, key=lambda found: found[0]["at"]):
        place = line["domain"], line["position"]
        before = first.setdefault(place, (host, line))
        if line["digest"] != before[1]["digest"] and _was_missed(*before, line, backs):
            released[place], first[place] = {}, (host, line)
        released[place].setdefault(line["digest"], f"{host.name}#{line['epoch']}")
    for place, digests in sorted(released.items()):
        if len(digests) > 1:
            fault("two digests", f"{place}: {digests}; the database has {bound.get(place)}")
        for digest, by in digests.items():
            row = bound.get(place)
            if place[1] > floors.get(place[0], -1) and (row is None or row.digest != digest):
                fault("not bound", f"{place}: {digest} by {by}; the database has {row}")


def _check_log(host: Host, fault: Fault, losses: Sequence[tuple[int, int]]) -> None:
    recorded = {record.get("signature") for record in host.records if record["operation"] == "sign"}
    for line in host.of("release"):
        if line["signature"] not in recorded:
            fault("unrecorded", f"{host.name}: {line}")
        if not line["verifies"]:
            fault("bad signature", f"{host.name}: {line}")
    claimed = [record["epoch"] for record in host.records if record["operation"] == "fleet-claim"]
    if len(_falls(claimed)) > len(losses):
        fault("epoch went back", f"{host.name}: its log has {_falls(claimed)}")
    for one, two in pairwise(line for line in host.of("release") if line["epoch"]):
        if two["epoch"] < one["epoch"] and not _lost_between(losses, one["at"], two["at"]):
            fault("epoch went back", f"{host.name}: its history has {two['epoch']} after {one['epoch']}: {two}")


def _check_order(rows: Sequence[Row], fault: Fault) -> None:
    latest: dict[str, Row] = {}
    holders: dict[int, str] = {}
    for row in sorted(rows, key=lambda row: row.order):
        before = latest.setdefault(row.domain, row)
        if row.epoch < 0:
            continue
        if row.epoch == 0:
            fault("epoch went back", f"bound under no epoch: {row}")
        if holders.setdefault(row.epoch, row.holder) != row.holder:
            fault("two holders", f"{holders[row.epoch]} has epoch {row.epoch} too: {row}")
        if row.epoch < before.epoch:
            fault("epoch went back", f"bound under {row.epoch} after one under {before.epoch}: {row}")
        else:
            latest[row.domain] = row


def _check_requests(host: Host, fault: Fault) -> None:
    for line in host.of("end"):  # a process that was killed has none
        if line["asked"] != line["answered"]:
            fault("unanswered", f"{host.name}: {line}")
    for line in host.of("late"):
        fault("unanswered", f"{host.name}: {line}")
    for line in host.of("wrong message"):
        fault("wrong message", f"{host.name}: {line}")


def _check_leases(
    hosts: Sequence[Host], fault: Fault, losses: Sequence[tuple[int, int]], twins: Sequence[Twins]
) -> None:
    if any(abs(host.rate - 1.0) > RATES for host in hosts):
        return
    spans: dict[tuple[int, str], tuple[int, int]] = {}
    """When the first and the last signature under each epoch of a host were released."""
    lines: list[tuple[int, int, Host, dict[str, Any]]] = []
    for host in hosts:
        for line in host.of("release"):
            if line["position"] is None and line["epoch"]:
                first, last = spans.get((line["epoch"], host.name), (_NEVER, 0))
                spans[line["epoch"], host.name] = min(first, line["at"]), max(last, line["at"])
                lines.append((line["epoch"], line["at"], host, line))
    first_of = {two.other: two.one for two in twins}
    copied = {(epoch, name): first_of.get(name, name) for epoch, name in spans}
    _check_twins([found for found in lines if not _was_stopped(found[2], found[3])], twins, fault)
    forced = {line["forced"] for host in hosts for line in host.of("event") if line["forced"]}
    for epoch, at, host, line in lines:
        waited = min((other for other in forced if other > epoch), default=_NEVER)
        later = min(
            (
                begun
                for (other, name), (begun, ended) in spans.items()
                if (epoch < other < waited or (epoch == other and copied[epoch, name] != copied[epoch, host.name]))
                and not (at > ended and _lost_between(losses, begun, at))
            ),
            default=_NEVER,
        )
        if at > later and not _was_stopped(host, line):
            fault("overlap", f"{host.name}: {(at - later) / 1e6:.0f} ms after a later epoch: {line}")


def _check_twins(lines: Sequence[tuple[int, int, Host, dict[str, Any]]], twins: Sequence[Twins], fault: Fault) -> None:
    last: dict[tuple[int, str], int] = {}
    for epoch, at, host, _ in lines:
        last[epoch, host.name] = max(at, last.get((epoch, host.name), 0))
    for one, other, until in twins:
        for epoch in sorted({epoch for epoch, name in last if name == other}):
            late = min(last.get((epoch, one), 0), last[epoch, other]) - until
            if late > 0:
                fault("two copies", f"{one} and {other} under {epoch}, {late / 1e6:.0f} ms too long")


def _lost_between(losses: Sequence[tuple[int, int]], earlier: int, later: int) -> bool:
    return any(earlier < ended and begun < later for begun, ended in losses)


def _was_stopped(host: Host, line: dict[str, Any]) -> bool:
    # What it does first when it goes on may come before its own line of a stall.
    return any(line["asked"] < went_on and stopped < line["at"] < went_on + AT_ONCE for stopped, went_on in host.stops)


def _falls(epochs: Sequence[int]) -> list[tuple[int, int]]:
    return [(one, two) for one, two in pairwise(epochs) if two < one]
