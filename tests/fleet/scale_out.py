"""What more hosts bring: signatures a second of one, two and four hosts, under a lease and on any host. Each has an
audit log, and a device of its own that takes 5 ms for a signature (docs/CHAOS.md).

    python -m tests.fleet.scale_out --rounds 5

The device serves two at a time, 400 a second. So four hosts ask the processors for 1,600, far less than they can, and
the devices are the limit. Prints medians and spreads.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Final

from tests.support.chaos import Chaos, wrap_noop
from tests.support.fleet_member import FleetMember
from tests.support.postgres import cluster

COUNTS: Final = (1, 2, 4)
SESSIONS, CALLERS = 4, 16
"""Of each host: its device never waits for one."""
SECONDS: Final = 4.0
_DEVICE: Final = {
    "latency": {"C_Sign": {"kind": "constant", "microseconds": 5000}},
    "capacity": {"servers": 2},
}


def start(folder: Path, url: str, unordered: str, number: int) -> FleetMember:
    """Start a host, and wait until it is open."""
    own = folder / f"{unordered}-{number}"
    own.mkdir()
    fleet = {"store": {"url": url}, "name": "scale", "singleNode": True, "unordered": unordered}
    rules = {"policy": {"kinds": ["raw", "block"]}, "auditLogFile": str(own / "audit.log"), "fleet": fleet}
    config = Chaos(own, wrap_noop(), **_DEVICE).config(settings={"sessions": SESSIONS}, **rules)
    return FleetMember(own, config, f"host-{number}").begun()


def rate(hosts: list[FleetMember], numbers: itertools.count[int]) -> float:
    """Have all hosts sign at the same time. Returns signatures a second, of all together."""
    for host in hosts:
        host.tell("load", seconds=SECONDS, callers=CALLERS, stream=next(numbers))
    return sum(host.answer()["rate"] for host in hosts)


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description="What more hosts bring.")
    parser.add_argument("--rounds", type=int, default=5)
    rounds, numbers = parser.parse_args().rounds, itertools.count()
    with cluster() as server, tempfile.TemporaryDirectory() as made:
        for unordered in ("lease", "any"):
            url = server.database()
            hosts = [start(Path(made), url, unordered, number) for number in range(max(COUNTS))]
            hosts[0].until("holder")
            found: dict[int, list[float]] = {count: [] for count in COUNTS}
            for _ in range(rounds):
                for count in COUNTS:
                    found[count].append(rate(hosts[:count], numbers))
            for count, rates in found.items():
                ratios = sorted(own / one for own, one in zip(rates, found[1], strict=True))
                middle, spread = statistics.median(ratios), f"{ratios[0]:.3f} to {ratios[-1]:.3f}"
                each = f"{unordered:6} {count} hosts {statistics.median(rates):8,.0f}/s"
                sys.stdout.write(f"{each}  {middle:.3f} × one ({spread})\n")
            for host in hosts:
                host.close()
    sys.stdout.write(f"load average {os.getloadavg()[0]:.1f}\n")


if __name__ == "__main__":
    main()
